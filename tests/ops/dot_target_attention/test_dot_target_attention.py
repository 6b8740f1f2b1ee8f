"""`dot_target_attention`: the contracts of CONTRIBUTING on both backends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from dot_cases import Case, Config, formula, make
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import mixpol_kernels
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.layouts import LAYOUTS
from mixpol_kernels.testing.recorder import Recorder

# Both sides of every tile: tokens by 4 and 48, rows by 6 and 24, columns by 16.
COUNTS = (5, 0, 37, 64, 1, 130, 16, 47, 48, 49, 2, 97)
VARIANTS = {
    "one head": Config(),
    "one head, no projections": Config(attention=None),
    "two heads": Config(heads=2, layout="lengths", width=24, attention=40),
    "two heads, no projections": Config(heads=2, attention=None, layout="mask_left", width=64),
    "four heads": Config(heads=4, width=64, attention=64, layout="mask_holes"),
    "four heads, no projections": Config(heads=4, width=64, attention=None, candidates=3),
    "narrow heads, no projections": Config(heads=4, width=20, attention=None, layout="lengths", candidates=2),
    "odd width": Config(width=7, attention=10, heads=2, index_dtype=torch.int32),
    "width 1": Config(width=1, attention=4, heads=4, candidates=2),
    "wide": Config(width=200, attention=96, heads=3),
    "three candidates": Config(candidates=3, heads=4, layout="lengths", width=40, attention=8),
    "many candidates": Config(candidates=31, heads=2, counts=(3, 100, 0)),
    "many candidates, no projections": Config(candidates=31, heads=2, counts=(3, 100, 0), attention=None),
    "one candidate": Config(candidates=1, heads=2),
    "no candidates": Config(candidates=0, heads=2),
    "no users": Config(counts=()),
    "all empty": Config(counts=(0, 0, 0), heads=2),
    "keys only": Config(only=("w_k", "w_q")),
    "bilinear": Config(only=("w_k",), attention=16),
    "values only": Config(only=("w_v",), scale=0.3),
    "queries and output": Config(only=("w_q", "w_o"), heads=2, attention=16),
    "no output": Config(only=("w_q", "w_k", "w_v"), heads=3),
    "scale 1": Config(scale=1.0, attention=None, width=16),
    "negative scale": Config(scale=-0.4, heads=2),
    "peaked": Config(spread=30.0, heads=2, counts=COUNTS),
    "rows around a tile": Config(counts=COUNTS, heads=2),
    "best of one": Config(top_k=1, heads=2, counts=COUNTS),
    "best three": Config(top_k=3, heads=4, layout="mask_holes", width=24, attention=40),
    "best 50": Config(top_k=50, heads=2, counts=COUNTS, layout="lengths", candidates=2),
    "best 50, no projections": Config(top_k=50, heads=2, counts=COUNTS, layout="mask_left", attention=None),
    "best of many candidates": Config(top_k=7, candidates=31, heads=2, counts=(3, 100, 0), width=7),
    "best of few": Config(top_k=200, heads=2),
    "one very long row": Config(counts=(2, 4000, 0, 1), heads=2),
}  # fmt: skip
every_variant = pytest.mark.parametrize("variant", VARIANTS)
SOME = ("best 50", "one head", "four heads", "narrow heads, no projections", "three candidates")
some_variants = pytest.mark.parametrize("variant", SOME)


@pytest.fixture
def case(variant: str, generator: torch.Generator) -> Case:
    return make(VARIANTS[variant], generator)


def check_budget(case: Case, generator: torch.Generator, **options: Any) -> None:
    __tracebackhide__ = True
    lines = budget.over_budget(case, case.place(generator, **options), generator)
    assert not lines, "\n".join(lines)


@every_variant
def test_reference_is_the_formula(case: Case, generator: torch.Generator) -> None:
    where = case.place(generator)
    expected, weights = formula(case)
    out, got = case.call(case.arguments(where, torch.float64), "reference", return_weights=True)
    got = got if case.config.candidates is not None else got[..., None, :]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(where.gather(got), weights, rtol=1e-12, atol=1e-12)
    assert not where.pads(got).any()


@every_variant
def test_budget(case: Case, generator: torch.Generator) -> None:
    """Output and the gradients of target, history and projections, against the float64 reference."""
    check_budget(case, generator)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("layout", ["lengths", "mask_left", "mask_holes"])
def test_padded_longer_than_any_row(heads: int, layout: str, generator: torch.Generator) -> None:
    check_budget(make(Config(heads=heads, layout=layout), generator), generator, length=151)


@pytest.mark.parametrize("attention", [None, 16])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_scores(size: float, attention: int | None, generator: torch.Generator) -> None:
    """Scores of ±1e4: the softmax neither overflows nor loses a row; one token has all the weight."""
    case = make(Config(heads=2, attention=attention, candidates=2, counts=(3, 130, 1)), generator)
    logs = formula(case)[1].log()
    default = ((attention or case.config.width) / 2) ** -0.5
    scale = default * size / float((logs.amax(0) - logs.amin(0)).max())
    case = replace(case, config=replace(case.config, scale=scale))
    _, weights = formula(case)
    where = case.place(generator)
    out, got = case.call(case.arguments(where), "cpu", return_weights=True)
    assert out.isfinite().all()
    assert weights.max() > 0.99
    torch.testing.assert_close(got.double(), weights, rtol=0, atol=2e-2)
    # Where one weight is nearly 1, float64 itself rounds what the scale and the width's dot product multiply.
    floor = torch.finfo(torch.float64).eps * abs(scale) * case.config.width
    lines = budget.over_budget(case, where, generator, floor=floor)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("candidates", [None, 2])
def test_saturated_softmax_has_no_gradient(candidates: int | None, generator: torch.Generator) -> None:
    """Where one weight is exactly 1, the scores' gradients cancel to the last bit, over any number of chunks."""
    case = make(Config(attention=None, width=16, candidates=candidates, counts=(1, 200, 48)), generator)
    target = case.floats["target"]
    first = torch.tensor([0, 1, 201])
    case.floats["history"][first] = 100.0 * (target if candidates is None else target[:, 0]).sign()
    case = replace(case, config=replace(case.config, scale=100.0))
    if candidates:
        case.floats["target"][:, 1] = target[:, 0] * 2
    results = case.run("cpu", case.place(generator))
    assert not results["grad target"].any()
    expected = torch.zeros_like(results["grad history"])
    expected[first] = case.grad_out if candidates is None else case.grad_out.sum(1)
    assert torch.equal(results["grad history"], expected)


@pytest.mark.parametrize("gap", [8.0, 16.0, 24.0])
def test_nearly_saturated_softmax(gap: float, generator: torch.Generator) -> None:
    """Two tokens, weights of 1 - exp(-gap) and exp(-gap): what rounding keeps their sum from 1 must not show."""
    case = make(Config(attention=None, width=16, counts=(2,)), generator)
    first, second = case.floats["history"]
    case.floats["target"][0] = gap * (first - second) / (first - second).square().sum()
    case = replace(case, config=replace(case.config, scale=1.0))
    where = case.place(generator)
    results, truth = case.run("cpu", where), case.run("reference", where, torch.float64)
    error = (results["grad target"] - truth["grad target"]).abs()
    assert (error <= saturated_bound(case)).all()


def saturated_bound(case: Case) -> Tensor:
    """By how much rounding to float32 may move the target's gradient of one history of two tokens, [1, D].

    It is p1 p2 (d1 - d2) (x1 - x2) with scores q·x1 and q·x2, weights p1 > p2 = exp(-gap) and d = g·x. A dot product of
    D terms is off by at most γ Σ|terms|, γ = D u / (1 - D u): that of the scores scales p2, that of g·x adds to a
    difference that may be small by chance. What else is rounded, exp included, is within 16 u of each value; but the
    mean that is taken from d, nearly d1, is known to u² of itself (two float32), not to a share of what is left of d.
    """
    u = torch.finfo(torch.float32).eps / 2
    width = case.config.width
    gamma = width * u / (1 - width * u)
    query, g = case.floats["target"][0].double(), case.grad_out[0].double()
    x = case.floats["history"].double()
    scores, d = x @ query, x @ g
    weights = scores.softmax(0)
    of_scores, of_d = (float((gamma * (x.abs() @ other.abs())).sum()) for other in (query, g))
    relative = math.expm1(of_scores + u * float(scores.abs().sum())) + 16 * u
    inner = abs(float(d[0] - d[1])) * relative + of_d + 16 * u * float(d.abs().sum())
    return (float(weights.prod()) * inner + 2 * u**2 * float(d.abs().max())) * x.abs().sum(0)[None]


@every_variant
def test_attention_weights(case: Case, generator: torch.Generator) -> None:
    where = case.place(generator)
    arguments = case.arguments(where, requires_grad=True)
    out, weights = case.call(arguments, "cpu", return_weights=True)
    candidates = [] if case.config.candidates is None else [case.config.candidates]
    assert weights.shape == (*where.shape, *candidates, case.config.heads)
    assert weights.dtype == torch.float32
    assert not weights.requires_grad
    # Tokens may be projected, as long as their weights are not asked for.
    torch.testing.assert_close(out, case.call(arguments, "cpu"), rtol=1e-3, atol=1e-4)
    truth = case.call(case.arguments(where, torch.float64), "reference", return_weights=True)[1]
    plain = case.call(case.arguments(where), "reference", return_weights=True)[1]
    error, allowed = ((w.double() - truth).abs() for w in (weights, plain))
    assert error.numel() == 0 or error.max() <= 4 * allowed.max() + 1e-6
    assert not where.pads(weights).count_nonzero()


@every_variant
def test_layouts_agree(case: Case, generator: torch.Generator) -> None:
    """Bitwise, as one batch: jagged, lengths, masks on the left and with holes, and more padding."""
    expected = case.run("cpu", case.place(generator, "jagged"))
    longest = max(case.counts, default=0)
    for layout in LAYOUTS[1:-1]:
        for length in (longest, longest + 45):
            got = case.run("cpu", case.place(generator, layout, length=length))
            for name, value in expected.items():
                assert torch.equal(got[name], value), (layout, length, name)


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("candidates", [None, 3, 31])
@pytest.mark.parametrize("width", [64, 24, 7 * 2])
def test_batch_invariance(
    width: int, candidates: int | None, heads: int, top_k: int | None, generator: torch.Generator
) -> None:
    """Alone or in any batch a user gets the same bits. Without projections: those are PyTorch's."""
    config = Config(attention=None, width=width, heads=heads, candidates=candidates, counts=COUNTS, top_k=top_k)
    case = make(config, generator)
    whole = case.run("cpu", case.place(generator))
    starts = [sum(COUNTS[:b]) for b in range(len(COUNTS))]
    users = list(range(len(COUNTS)))
    for batch in ([3], [1], [5], users[::-1], users[1::2], [3, 3, 0, 5], users + users):
        part = case.take(batch)
        got = part.run("cpu", part.place(generator))
        at = 0
        for i, b in enumerate(batch):
            for name in ("out", "grad target"):
                assert torch.equal(got[name][i], whole[name][b]), (batch, b, name)
            tokens = got["grad history"][at : at + COUNTS[b]]
            assert torch.equal(tokens, whole["grad history"][starts[b] : starts[b] + COUNTS[b]]), (batch, b)
            at += COUNTS[b]


@pytest.mark.parametrize("top_k", [0, 20])
@pytest.mark.parametrize("heads", [1, 2])
def test_query_rows_do_not_see_the_batch_or_each_other(heads: int, top_k: int, generator: torch.Generator) -> None:
    """The op between the projections, on rows that read whole tokens: bitwise the same among any others."""
    queries = torch.randn(len(COUNTS), 13, heads, 24, generator=generator)
    case = make(Config(width=24, counts=COUNTS), generator)
    history, offsets = case.floats["history"], case.place(generator).arguments["offsets"]
    op = torch.ops.mixpol.dot_attention_fwd
    whole = op(queries, history, offsets, None, None, False, top_k, False)
    for rows in ([0], [12, 4], [7, 7, 2, 1, 0]):
        some = op(queries[:, rows], history, offsets, None, None, False, top_k, False)
        for got, expected in zip(some[:2], whole[:2], strict=True):
            assert torch.equal(got, expected[:, rows])
    alone = op(queries[5:6], history[case_slice(5)], torch.tensor([0, COUNTS[5]]), None, None, False, top_k, False)
    assert torch.equal(alone[0][0], whole[0][5])


def case_slice(user: int) -> slice:
    start = sum(COUNTS[:user])
    return slice(start, start + COUNTS[user])


@pytest.mark.parametrize(
    "config",
    [
        Config(heads=4, width=64, attention=None, counts=(60, 3, 0, 41, 22) * 20),
        Config(heads=4, width=24, attention=None, counts=(60, 3, 0, 41, 22) * 5, candidates=40, layout="lengths"),
        Config(heads=1, width=40, attention=None, counts=(3, 5000, 0, 2), candidates=2),
        Config(heads=2, width=40, counts=(60, 3, 0, 41, 22) * 20),
        Config(heads=2, width=40, attention=None, counts=(60, 3, 0, 41, 22) * 4, top_k=5),
    ],
)
def test_any_number_of_threads(config: Config, generator: torch.Generator) -> None:
    """The same bits. Projections stay on one thread here: theirs are PyTorch's."""
    queries = torch.randn(len(config.counts), config.candidates or 1, config.heads, config.width, generator=generator)
    case = make(config, generator)
    where = case.place(generator)
    layout = [where.arguments.get(name) for name in ("offsets", "lengths", "mask")]
    history = where.spread(case.floats["history"])
    grad = torch.randn(queries.shape, generator=generator)

    def run() -> list[Tensor]:
        results = list(torch.ops.mixpol.dot_attention_fwd(queries, history, *layout, False, config.top_k or 0, True))
        back = torch.ops.mixpol.dot_attention_bwd(grad, results[1], queries, history, *layout, False, config.top_k or 0)
        whole = case.run("cpu", where) if config.attention is None else {}
        return [*results, *back, *whole.values()]

    expected = run()
    for number in (1, 2, 2, 3):
        torch.set_num_threads(number)
        for got, true in zip(run(), expected, strict=True):
            assert torch.equal(got, true), number


@some_variants
def test_under_deterministic_algorithms_and_poisoned_memory(case: Case, generator: torch.Generator) -> None:
    """Fresh memory is NaN there: every element of every result is written."""
    where = case.place(generator)
    expected = case.run("cpu", where)
    weights = case.call(case.arguments(where), "cpu", return_weights=True)[1]
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        got = case.run("cpu", where)
        got_weights = case.call(case.arguments(where), "cpu", return_weights=True)[1]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert torch.equal(got_weights, weights)


@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_left", "full"])
@pytest.mark.parametrize("attention", [None, 12])
def test_empty_histories(layout: str, attention: int | None, backend: str, generator: torch.Generator) -> None:
    """Zeros and zero gradients, never NaN."""
    case = make(Config(counts=(0, 0, 0), layout=layout, attention=attention, heads=2), generator)
    for length in (None, 4) if layout in ("lengths", "mask_left") else (None,):
        for name, value in case.run(backend, case.place(generator, length=length)).items():
            assert not value.count_nonzero(), name
    if layout != "full":
        case = make(Config(counts=(3, 0, 2, 0), layout=layout, attention=attention, heads=2), generator)
        results = case.run(backend, case.place(generator))
        assert all(value.isfinite().all() for value in results.values())
        for name in ("out", "grad target"):
            assert not results[name][[1, 3]].count_nonzero(), name
            assert results[name][[0, 2]].any(), name


def test_one_token_is_copied(backend: str, generator: torch.Generator) -> None:
    case = make(Config(counts=(1, 1), heads=4, attention=None), generator)
    out = case.call(case.arguments(case.place(generator)), backend)
    assert torch.equal(out, case.floats["history"])


@pytest.mark.parametrize("layout", ["jagged", "mask_holes"])
@pytest.mark.parametrize("top_k", [1, 4, 50, 100])
def test_ties(top_k: int, layout: str, backend: str, generator: torch.Generator) -> None:
    """Of equal scores the earlier tokens are chosen: small whole numbers, of which many are equal, 0 and -0 too."""
    case = make(Config(attention=None, heads=2, width=8, candidates=3, scale=1.0, counts=(0, 120, 49, 3)), generator)
    case = replace(case, config=replace(case.config, top_k=top_k, layout=layout))
    for name in ("target", "history"):
        case.floats[name].copy_(torch.randint(-1, 2, case.floats[name].shape, generator=generator))
    where = case.place(generator)
    _, expected = formula(case)
    arguments = case.arguments(where, requires_grad=True)
    out, weights = case.call(arguments, backend, return_weights=True)
    weights = where.gather(weights)
    assert torch.equal(weights > 0, expected > 0)
    assert weights.count_nonzero() == 3 * 2 * sum(min(top_k, n) for n in case.counts)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=0)
    out.sum().backward()
    unseen = ~(expected > 0).any(1).repeat_interleave(4, 1)  # by no candidate, in the columns of a head
    grad = where.gather(arguments["history"].grad)
    assert not grad[unseen].count_nonzero()
    assert grad[~unseen].count_nonzero()


def test_best_of_negative_infinity(backend: str) -> None:
    """Scores of -inf are worth less than any other, and of those the earlier come first."""
    history = torch.zeros(1, 60, 2)
    history[0, :, 1] = torch.arange(60.0)
    history[0, :57, 0] = -1e38
    target = torch.tensor([[1e38, 0.0]])
    out, weights = mixpol_kernels.dot_target_attention(
        target, history, scale=1.0, top_k=5, return_weights=True, backend=backend
    )
    torch.testing.assert_close(out, torch.tensor([[0.0, 58.0]]))
    assert weights.count_nonzero() == 3


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize(
    "variant", ["one head", "one head, no projections", "four heads, no projections", "four heads"]
)
def test_nonfinite_inputs(case: Case, value: float, generator: torch.Generator) -> None:
    """They propagate as in the reference, and only to the user that has them."""
    case = replace(case, config=replace(case.config, layout="jagged"))
    where = case.place(generator)
    clean = case.run("cpu", where)
    for name in ("target", "history", *(n for n in case.floats if n in ("w_q", "w_o"))):
        floats = {k: t.clone() for k, t in case.floats.items()}
        row = floats[name][0].view(-1)
        row[int(torch.randint(row.numel(), (), generator=generator))] = value
        sick = replace(case, floats=floats)
        got, expected = (sick.call(sick.arguments(where), b) for b in ("cpu", "reference"))
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(kind(got), kind(expected)), (name, kind)
        if name in ("target", "history"):
            results = sick.run("cpu", where)
            assert torch.equal(results["out"][1:], clean["out"][1:])
            rest = slice(case.counts[0] if name == "history" else 1, None)
            assert torch.equal(results[f"grad {name}"][rest], clean[f"grad {name}"][rest])


def test_scores_of_minus_infinity(backend: str) -> None:
    """A token whose score is -inf has no weight, wherever it stands; if all have, there is no answer."""
    target = torch.tensor([[1.0, 0.0]])
    history = torch.zeros(1, 100, 2)
    history[..., 1] = torch.arange(100.0)
    history[0, :60, 0] = -1e38
    out = mixpol_kernels.dot_target_attention(target * 1e38, history, scale=1.0, backend=backend)
    torch.testing.assert_close(out, torch.tensor([[0.0, 79.5]]))
    history[..., 0] = -1e38
    assert mixpol_kernels.dot_target_attention(target * 1e38, history, scale=1.0, backend=backend).isnan().all()


def with_gaps(tensor: Tensor) -> Tensor:
    """Every second element of every dimension of a larger buffer of NaN, True or the largest integer."""
    shape = [2 * n + 1 for n in tensor.shape]
    if tensor.is_floating_point():
        buffer = torch.full(shape, torch.nan, dtype=tensor.dtype)
    else:
        highest = True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max
        buffer = torch.full(shape, highest, dtype=tensor.dtype)
    return buffer[tuple(slice(1, 2 * n, 2) for n in tensor.shape)].copy_(tensor)


def transposed(tensor: Tensor) -> Tensor:
    """Dimensions stored in reverse."""
    order = list(range(tensor.dim()))[::-1]
    return tensor.permute(order).contiguous().permute(order)


def sliced(tensor: Tensor) -> Tensor:
    """The middle of wider rows."""
    wide = torch.zeros([*tensor.shape[:-1], tensor.shape[-1] + 8], dtype=tensor.dtype)
    return wide[..., 3 : 3 + tensor.shape[-1]].copy_(tensor)


@pytest.mark.parametrize("view", [with_gaps, transposed, sliced])
@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_holes"])
@some_variants
def test_strided_views(case: Case, layout: str, view: Callable[[Tensor], Tensor], generator: torch.Generator) -> None:
    where = case.place(generator, layout)
    expected = case.run("cpu", where)
    got = case.run("cpu", where, view=lambda _, tensor: view(tensor))
    for name, value in expected.items():
        # PyTorch's products may choose another kernel for another layout of the weights.
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)
    bare = make(replace(case.config, attention=None), generator)
    expected = bare.run("cpu", where)
    for name, value in bare.run("cpu", where, view=lambda _, tensor: view(tensor)).items():
        assert torch.equal(value, expected[name]), name


def test_users_far_apart() -> None:
    """A history whose second user starts beyond 2^31 elements."""
    try:
        huge = torch.empty(2**31 + 1024)
    except RuntimeError as error:
        pytest.skip(f"8 GB of address space are not to be had: {error}")
    history = huge.as_strided((2, 5, 16), (2**31 + 64, 64, 1))
    values, target = torch.randn(2, 5, 16), torch.randn(2, 16)
    history.copy_(values)
    far, near = (mixpol_kernels.dot_target_attention(target, h, num_heads=2, backend="cpu") for h in (history, values))
    assert torch.equal(far, near)


@every_variant
def test_opcheck(case: Case, generator: torch.Generator) -> None:
    where = case.place(generator)
    with Recorder() as recorder:
        case.run("cpu", where)
        case.call(case.arguments(where), "cpu", return_weights=True)
    called = [func._schema.name.removeprefix("mixpol::dot_attention_") for func, _ in recorder.calls]
    assert called in (["fwd", "bwd", "fwd"], ["projected_fwd", "projected_bwd", "fwd"])
    for func, args in recorder.calls:
        assert set(torch.library.opcheck(func, args).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("backend", "config"),
    [
        ("cpu", Config(heads=4, width=24, attention=40)),
        ("cpu", Config(heads=2, attention=None, layout="mask_left")),
        ("cpu", Config(heads=2, candidates=3, layout="lengths", top_k=3)),
        ("reference", Config(heads=2, candidates=3)),
        ("reference", Config(layout="lengths", attention=None, top_k=3)),
    ],
    ids=str,
)
def test_full_graph(backend: str, config: Config, generator: torch.Generator) -> None:
    """One compilation, forward and backward, serves two batch sizes and gives what the eager call gives."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mixpol_kernels.dot_target_attention, fullgraph=True, dynamic=True, backend=counter)
    for counts in ((4,) * 17, (7,) * 19):  # sizes that equal no other size, which would be traced as one
        case = make(replace(config, counts=counts), generator)
        where = case.place(generator, length=10)
        results = []
        for function in (mixpol_kernels.dot_target_attention, compiled):
            arguments = case.arguments(where)
            leaves = [arguments[name].nan_to_num_().requires_grad_() for name in case.floats]
            out, weights = function(**arguments, backend=backend, return_weights=True)
            out.backward(case.grad_out)
            results.append([out.detach(), weights, *[leaf.grad for leaf in leaves]])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected)
    assert counter.frame_count == 1


def kept_bytes(case: Case, arguments: dict[str, Any]) -> int:
    """Bytes saved for the backward in storages that belong to no input and not to the output."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = case.call(arguments, "cpu")
    known = {t.untyped_storage().data_ptr() for t in [out, *arguments.values()] if isinstance(t, Tensor)}
    return sum(size for pointer, size in saved.items() if pointer not in known)


@every_variant
def test_nothing_is_kept_for_a_token(case: Case, generator: torch.Generator) -> None:
    """A few rows a target, whatever the length of the histories; as `explain` says."""
    kept = []
    for factor in (1, 3):
        longer = make(replace(case.config, counts=tuple(factor * n for n in case.counts)), generator)
        arguments = longer.arguments(longer.place(generator), requires_grad=True)
        kept.append(kept_bytes(longer, arguments))
        said = mixpol_kernels.explain(mixpol_kernels.dot_target_attention, **arguments, backend="cpu").saved_bytes
        assert said == kept[-1]
        with torch.no_grad():
            assert kept_bytes(longer, arguments) == 0
    assert kept[0] == kept[1]


def test_double_backward_is_refused(generator: torch.Generator) -> None:
    case = make(Config(heads=2), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    out = case.call(arguments, "cpu")
    (grad,) = torch.autograd.grad((out * out).sum(), arguments["history"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_changed_in_place_is_noticed(generator: torch.Generator) -> None:
    case = make(Config(heads=2), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    out = case.call(arguments, "cpu")
    with torch.no_grad():
        arguments["history"].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("layout", ["jagged", "mask_holes"])
@pytest.mark.parametrize(("attention", "top_k"), [(None, None), (4, None), (4, 2)])
def test_gradcheck(attention: int | None, top_k: int | None, layout: str, generator: torch.Generator) -> None:
    config = Config(
        counts=(3, 0, 2), width=4, top_k=top_k, attention=attention, outputs=2, heads=2, candidates=2, layout=layout
    )
    case = make(config, generator)
    arguments = case.arguments(case.place(generator), torch.float64)
    inputs = [arguments[name].nan_to_num().requires_grad_() for name in case.floats]

    def function(*given: Tensor) -> Tensor:
        return case.call(arguments | dict(zip(case.floats, given, strict=True)), "reference")

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype, generator: torch.Generator) -> None:
    """On the reference; the compiled kernels say that they take float32."""
    case = make(Config(heads=2, layout="lengths"), generator)
    where = case.place(generator)
    got, truth = case.run("reference", where, dtype), case.run("reference", where, torch.float64)
    for name, value in got.items():
        assert value.dtype == dtype
        scale = float(truth[name].abs().max()) + 1
        assert float((value - truth[name]).abs().max()) < 64 * torch.finfo(dtype).eps * scale, name
    with pytest.raises(ValueError, match=rf"dot_target_attention: backend='cpu'.*float32.*{dtype}"):
        case.call(case.arguments(where, dtype), "cpu")
