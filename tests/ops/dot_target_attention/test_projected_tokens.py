"""Many candidates of one history: the compiled form of `dot_target_attention` that projects the tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dot_cases import Case, Config, make
from torch._dynamo.testing import CompileCounterWithBackend
from views import transposed, with_gaps

import mixpol_kernels
from mixpol_kernels.ops.dot_target_attention.api import projecting_is_less
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.recorder import Recorder

# Tokens around chunks of 48, candidates around parts of 24.
COUNTS = (5, 0, 37, 64, 1, 130, 16, 47, 48, 49, 2, 97)
CONFIGS = {
    "plain": Config(candidates=31, heads=4, width=64, attention=64, counts=COUNTS),
    "odd": Config(candidates=50, heads=3, width=7, attention=12, counts=COUNTS, layout="lengths"),
    "two heads": Config(candidates=24, heads=2, width=20, attention=10, counts=COUNTS, layout="mask_holes"),
    "left": Config(candidates=49, heads=4, width=24, attention=8, counts=COUNTS, layout="mask_left", scale=-2.0),
    "peaked": Config(candidates=31, heads=4, width=64, attention=64, counts=COUNTS, spread=30.0),
    "one head": Config(candidates=60, width=48, attention=17, counts=COUNTS),
    "scale 1": Config(candidates=25, heads=2, width=20, attention=10, scale=1.0, only=("w_k", "w_v", "w_q")),
    "no output": Config(candidates=31, heads=4, width=64, attention=64, only=("w_q", "w_k", "w_v")),
    "all empty": Config(candidates=31, heads=4, width=64, attention=64, counts=(0, 0)),
    "no users": Config(candidates=31, heads=4, width=64, attention=64, counts=()),
}
OPS = ["mixpol::dot_attention_projected_fwd", "mixpol::dot_attention_projected_bwd"]
every_config = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture
def case(name: str, generator: torch.Generator) -> Case:
    return make(CONFIGS[name], generator)


@every_config
def test_budget(name: str, generator: torch.Generator) -> None:
    """Output and the gradients of target, history and projections, against the float64 reference."""
    case = make(CONFIGS[name], generator)
    lines = budget.over_budget(case, case.place(generator), generator)
    assert not lines, "\n".join(lines)


@every_config
def test_ops(case: Case, generator: torch.Generator) -> None:
    """These with and without gradients; opcheck holds; no bit hangs on threads or on what fresh memory holds."""
    where = case.place(generator)
    with Recorder() as recorder:
        case.run("cpu", where)
        case.call(case.arguments(where), "cpu")
    assert [func._schema.name for func, _ in recorder.calls] == [*OPS, OPS[0]]
    for func, args in recorder.calls[:2]:
        assert set(torch.library.opcheck(func, args).values()) == {"SUCCESS"}
        expected = func(*args)
        for number in (2, 3):
            torch.set_num_threads(number)
            same(func(*args), expected)
        torch.use_deterministic_algorithms(True)
        try:
            same(func(*args), expected)
        finally:
            torch.use_deterministic_algorithms(False)


def same(got: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@every_config
def test_agrees_with_the_absorbed_form(case: Case, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    where = case.place(generator)
    projected = case.run("cpu", where)
    monkeypatch.setattr("mixpol_kernels.ops.dot_target_attention.api.projecting_is_less", lambda *_: False)
    with Recorder() as recorder:
        absorbed = case.run("cpu", where)
    assert not {func._schema.name for func, _ in recorder.calls} & set(OPS)
    for what, value in absorbed.items():
        scale = float(value.abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(projected[what], value, rtol=1e-3, atol=1e-4 * scale + 1e-6, msg=what)


def inputs(generator: torch.Generator) -> list[Any]:
    case = make(Config(width=24, heads=3, attention=15, counts=COUNTS), generator)
    queries = torch.randn(len(COUNTS), 50, 3, 5, generator=generator)
    offsets = case.place(generator).arguments["offsets"]
    return [queries, case.floats["history"], offsets, None, None, case.floats["w_k"], case.floats["w_v"]]


def test_rows_do_not_see_the_batch_or_each_other(generator: torch.Generator) -> None:
    forward, backward = torch.ops.mixpol.dot_attention_projected_fwd, torch.ops.mixpol.dot_attention_projected_bwd
    queries, history, *rest = given = inputs(generator)
    weights = rest[3:]
    whole = forward(*given)
    upstream = torch.randn(whole[0].shape, generator=generator)
    grads = backward(upstream, whole[1], *given)
    for rows in ([0], [49, 4], [7, 7, 2, 1, 0]):
        some = forward(queries[:, rows], history, *rest)
        same(some, tuple(t[:, rows] for t in whole))
        assert torch.equal(backward(upstream[:, rows], some[1], queries[:, rows], history, *rest)[0], grads[0][:, rows])
    for user in (5, 1):
        start, count = sum(COUNTS[:user]), COUNTS[user]
        alone = [queries[user : user + 1], history[start : start + count], torch.tensor([0, count]), None, None]
        pooled, stats = forward(*alone, *weights)
        assert torch.equal(pooled[0], whole[0][user])
        grad_queries, grad_history, *_ = backward(upstream[user : user + 1], stats, *alone, *weights)
        assert torch.equal(grad_queries[0], grads[0][user])
        assert torch.equal(grad_history, grads[1][start : start + count])


def test_strided_views(generator: torch.Generator) -> None:
    forward, backward = torch.ops.mixpol.dot_attention_projected_fwd, torch.ops.mixpol.dot_attention_projected_bwd
    given = inputs(generator)
    views = [with_gaps(given[0]), with_gaps(given[1]), *given[2:5], *map(transposed, given[5:])]
    expected = forward(*given)
    same(forward(*views), expected)
    upstream = torch.randn(expected[0].shape, generator=generator)
    same(
        backward(with_gaps(upstream), with_gaps(expected[1]), *views),
        backward(upstream, expected[1], *given),
    )


def test_without_candidates_gradients_are_zeros() -> None:
    queries, history = torch.randn(2, 0, 2, 4), torch.randn(2, 5, 6)
    given = (queries, history, None, torch.tensor([3, 5]), None, torch.randn(8, 6), torch.randn(10, 6))
    pooled, stats = torch.ops.mixpol.dot_attention_projected_fwd(*given)
    grads = torch.ops.mixpol.dot_attention_projected_bwd(pooled, stats, *given)
    assert [list(g.shape) for g in grads] == [[2, 0, 2, 4], [2, 5, 6], [8, 6], [10, 6]]
    assert not any(g.count_nonzero() for g in grads)


@pytest.mark.parametrize("attention", [8, 200])
def test_whatever_costs_less(attention: int, generator: torch.Generator) -> None:
    """From the candidates on where `projecting_is_less` says so, and not before."""
    config = Config(heads=4, width=16, attention=attention, counts=(3, 2))
    weight = torch.empty(attention, 16)
    less = [m for m in range(1, 400) if projecting_is_less(m, 4, 16, weight, weight)]
    many = less[0] if less else 399
    assert bool(less) == (attention == 8)
    for candidates in (many - 1, many):
        case = make(Config(**{**vars(config), "candidates": candidates}), generator)
        with Recorder() as recorder:
            case.run("cpu", case.place(generator))
        names = [func._schema.name for func, _ in recorder.calls]
        assert (names == OPS) == (candidates in less)


def test_nothing_follows_from_what_is_in_the_pads(generator: torch.Generator) -> None:
    """NaN there, in all of them: no gradient of a projection sees it."""
    case = make(CONFIGS["left"], generator)
    where = case.place(generator)
    assert case.arguments(where)["history"].isnan().any()
    for name, value in case.run("cpu", where).items():
        assert value.isfinite().all(), name


def test_full_graph(generator: torch.Generator) -> None:
    """One compilation, forward and backward, serves two batch sizes and numbers of candidates."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mixpol_kernels.dot_target_attention, fullgraph=True, dynamic=True, backend=counter)
    for counts, candidates in (((4,) * 17, 40), ((7,) * 19, 50)):
        case = make(Config(heads=4, width=16, attention=24, counts=counts, candidates=candidates), generator)
        where = case.place(generator)
        results = []
        for function in (mixpol_kernels.dot_target_attention, compiled):
            arguments = case.arguments(where, requires_grad=True)
            out = function(**arguments, backend="cpu")
            out.backward(case.grad_out)
            results.append([out.detach(), *[arguments[name].grad for name in case.floats]])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected)
    assert counter.frame_count == 1
