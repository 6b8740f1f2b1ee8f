"""`dot_target_attention`: the contracts of CONTRIBUTING on both backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from dot_cases import Case, Config, make
from dot_variants import COUNTS, every_variant, some_variants
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import mixpol_kernels
from mixpol_kernels.testing.layouts import LAYOUTS
from mixpol_kernels.testing.recorder import Recorder


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
