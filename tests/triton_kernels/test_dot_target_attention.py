"""The Triton kernels of `dot_target_attention` against the float64 reference, interpreted, every access checked."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from dot_cases import Case, Config, make
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.errors import InterpreterError

import mixpol_kernels
from mixpol_kernels import explain
from mixpol_kernels.ops.dot_target_attention.autograd import BACKWARD, FORWARD, TRITON_STATS
from mixpol_kernels.ops.dot_target_attention.triton import configs, launch
from mixpol_kernels.ops.triton import parts
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.layouts import LAYOUTS
from mixpol_kernels.testing.recorder import Recorder

# Histories that end within a tile of 16, one that fills two, and an empty one.
COUNTS = (35, 0, 7, 32)
BASE = Config(counts=COUNTS, heads=2)
FORMS: dict[str, dict[str, Any]] = {
    "one head, no projections": {"heads": 1, "attention": None},
    "heads": {"width": 24, "attention": 40},
    "heads, no projections": {"width": 20, "heads": 4, "attention": None, "candidates": 3},
    "two blocks of rows": {"candidates": 9},
    "two blocks of rows a head": {"candidates": 17, "attention": None, "counts": (18, 0, 3)},
    "bilinear": {"heads": 1, "only": ("w_k",), "attention": 16},
    "values only, scale": {"heads": 1, "only": ("w_v",), "scale": -0.3},
}


class Rounded(Case):
    """A case of values that a dtype holds, drawn again as such."""

    def jitter(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Case:
        return rounded(super().jitter(generator, dtype), dtype)


def rounded(case: Case, dtype: torch.dtype) -> Case:
    floats = {name: t.to(dtype).float() for name, t in case.floats.items()}
    return Rounded(case.config, floats, case.grad_out.to(dtype).float())


def check(case: Case, generator: torch.Generator, dtype: torch.dtype = torch.float32, **options: Any) -> None:
    __tracebackhide__ = True
    lines = budget.over_budget(case, case.place(generator, **options), generator, backend="triton", dtype=dtype)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, generator: torch.Generator) -> None:
    check(make(replace(BASE, **FORMS[form]), generator), generator)


@pytest.mark.parametrize("attention", [None, 12])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, attention: int | None, generator: torch.Generator) -> None:
    counts = (19,) * 3 if layout == "full" else COUNTS
    config = replace(BASE, layout=layout, counts=counts, attention=attention, candidates=9)
    check(make(config, generator), generator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["heads", "heads, no projections", "two blocks of rows"])
def test_low_precision(form: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    check(rounded(make(replace(BASE, **FORMS[form]), generator), dtype), generator, dtype)


EDGES: dict[str, dict[str, Any]] = {
    "no users": {"counts": ()},
    "one token": {"counts": (1,)},
    "all empty": {"counts": (0, 0, 0)},
    "all empty, masked": {"counts": (0, 0), "layout": "mask_holes"},
    "rows around a tile": {"counts": (15, 16, 17, 31, 33)},
    "one wide": {"width": 1, "attention": 4, "heads": 4, "counts": (1, 2)},
    "odd": {"width": 23, "attention": 10, "counts": (9, 20)},
    "widest": {"width": 128, "counts": (18,)},
    "widest parts": {"width": 256, "attention": None, "counts": (18,)},
    "no candidates": {"candidates": 0},
    "one candidate": {"candidates": 1, "index_dtype": torch.int32},
    "peaked": {"spread": 30.0},
    "long row": {"counts": (300,), "width": 8},
}


@pytest.mark.parametrize("edge", EDGES)
def test_edge_shapes(edge: str, generator: torch.Generator) -> None:
    config = replace(BASE, **EDGES[edge])
    options = {"length": 20} if edge == "all empty, masked" else {}
    check(make(config, generator), generator, **options)


@pytest.mark.parametrize("layout", ["lengths", "mask_left"])
def test_padded_longer_than_any_row(layout: str, generator: torch.Generator) -> None:
    check(make(replace(BASE, layout=layout), generator), generator, length=70)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_scores(size: float, generator: torch.Generator) -> None:
    """Beyond the range of exp; one token has nearly all the weight."""
    case = make(replace(BASE, attention=None, counts=(3, 40), scale=size / 100), generator)
    out = case.call(case.arguments(case.place(generator)), "triton")
    assert out.isfinite().all()
    check(case, generator)


def test_saturated_softmax_has_no_gradient(generator: torch.Generator) -> None:
    """Where one weight is exactly 1, the scores' gradients cancel to the last bit."""
    case = make(Config(attention=None, width=16, candidates=2, counts=(1, 40), scale=100.0), generator)
    first = torch.tensor([0, 1])
    case.floats["history"][first] = 100.0 * case.floats["target"][:, 0].sign()
    case.floats["target"][:, 1] = case.floats["target"][:, 0] * 2
    results = case.run("triton", case.place(generator))
    assert not results["grad target"].any()
    expected = torch.zeros_like(results["grad history"])
    expected[first] = case.grad_out.sum(1)
    assert torch.equal(results["grad history"], expected)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("form", ["heads", "two blocks of rows a head"])
@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_holes"])
def test_attention_weights(layout: str, form: str, requires_grad: bool, generator: torch.Generator) -> None:
    case = make(replace(BASE, layout=layout, **FORMS[form]), generator)
    where = case.place(generator)
    arguments = case.arguments(where, requires_grad=requires_grad)
    out, weights = case.call(arguments, "triton", return_weights=True)
    assert torch.equal(out, case.call(arguments, "triton"))
    truth = case.call(case.arguments(where, torch.float64), "reference", return_weights=True)[1]
    plain = case.call(case.arguments(where), "reference", return_weights=True)[1]
    assert (weights.shape, weights.dtype, weights.requires_grad) == (truth.shape, torch.float32, False)
    error, allowed = ((w.double() - truth).abs() for w in (weights, plain))
    assert error.max() <= 4 * allowed.max() + 1e-6
    assert not where.pads(weights).count_nonzero()


def test_strided_history(generator: torch.Generator) -> None:
    case = make(replace(BASE, layout="lengths", width=12, attention=None, counts=(18, 0, 5)), generator)
    where = case.place(generator)
    expected = case.run("triton", where)

    def wide_rows(name: str, tensor: torch.Tensor) -> torch.Tensor:
        wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 5), torch.nan, dtype=torch.float32)
        wide[..., 2:-3] = tensor
        return wide[..., 2:-3] if name == "history" else tensor

    def columns(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.mT.contiguous().mT if tensor.dim() > 2 else tensor

    for view in (wide_rows, columns):
        got = case.run("triton", where, view=view)
        assert all(torch.equal(got[name], expected[name]) for name in expected), view.__name__


def test_same_bits_every_time_and_alone(generator: torch.Generator) -> None:
    """Without projections: those are PyTorch's."""
    for candidates in (None, 9):
        config = replace(BASE, counts=(20, 0, 7, 16, 18), width=8, attention=None, candidates=candidates)
        case = make(config, generator)
        where = case.place(generator)
        expected = case.run("triton", where)
        again = case.run("triton", where)
        assert all(torch.equal(again[name], expected[name]) for name in expected)
        ends = torch.tensor(case.counts).cumsum(0).tolist()
        for user, layout in ((0, "lengths"), (3, "mask_left")):
            alone = case.take([user])
            got = alone.run("triton", alone.place(generator, layout))
            rows = slice(ends[user] - case.counts[user], ends[user])
            for name in ("out", "grad target"):
                assert torch.equal(got[name][0], expected[name][user])
            assert torch.equal(got["grad history"], expected["grad history"][rows])


def test_saves_rows_not_tokens(generator: torch.Generator) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = make(replace(BASE, candidates=2), generator)
        arguments = case.arguments(case.place(generator), dtype, requires_grad=True)
        given = {t.data_ptr() for t in arguments.values() if torch.is_tensor(t)}
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor, given: set[int] = given, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in given:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            case.call(arguments, "triton")
        found = explain(mixpol_kernels.dot_target_attention, **arguments, backend="triton")
        assert found.saved_bytes == sum(kept.values())


def test_nan_and_infinity_propagate(generator: torch.Generator) -> None:
    """Into the user that has them and no other; without projections into the head that sees them only."""
    for value in (torch.nan, torch.inf):
        for attention in (12, None):
            case = make(replace(BASE, attention=attention), generator)
            case.floats["history"][3, 2] = value
            where = case.place(generator)
            ours, plain = (case.call(case.arguments(where), b) for b in ("triton", "reference"))
            assert torch.equal(ours.isfinite(), plain.isfinite())
            assert not ours[0].isfinite().all()


@pytest.mark.parametrize("form", ["heads", "heads, no projections"])
def test_opcheck(form: str, generator: torch.Generator) -> None:
    case = make(replace(BASE, counts=(3, 0, 5), **FORMS[form]), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    with Recorder() as recorder:
        out, _ = case.call(arguments, "triton", return_weights=True)
        out.backward(case.grad_out)
    assert [call[0] for call in recorder.calls] == [FORWARD.triton, BACKWARD.triton]
    for op, args in recorder.calls:
        torch.library.opcheck(op, args)


def test_compile(generator: torch.Generator) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(mixpol_kernels.dot_target_attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for counts in ((5, 0, 9), (2, 18, 1, 4)):
        case = make(replace(BASE, counts=counts, attention=None), generator)
        where = case.place(generator)
        arguments = case.arguments(where, requires_grad=True)
        compiled(**arguments, backend="triton").backward(case.grad_out)
        expected = case.run("triton", where)
        assert torch.equal(arguments["history"].grad, expected["grad history"])


def test_shapes_on_a_gpu_that_is_not_here() -> None:
    forward, backward = (FORWARD.triton, BACKWARD.triton)
    with FakeTensorMode():
        target, history = torch.empty(4, 3, 16, device="cuda"), torch.empty(4, 9, 16, device="cuda")
        found = explain(mixpol_kernels.dot_target_attention, target, history, num_heads=2)
        assert found.backend == "triton"
        out, weights = mixpol_kernels.dot_target_attention(target, history, num_heads=2, return_weights=True)
        assert (out.shape, weights.shape) == ((4, 3, 16), (4, 9, 3, 2))
        assert out.device.type == weights.device.type == "cuda"
        queries = torch.empty(4, 3, 2, 8, device="cuda")
        stats = forward(queries, history, None, None, None, True, 0, False)[1]
        assert (stats.shape, stats.dtype) == ((4, 3, 2, TRITON_STATS), torch.float32)
        grads = backward(queries, stats, queries, history, None, None, None, True, 0)
        assert [g.shape for g in grads] == [queries.shape, history.shape]
    for op in (forward, backward):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CUDA")


def test_refusals(generator: torch.Generator) -> None:
    empty = {"target": torch.zeros(2, 0), "history": torch.zeros(2, 3, 0)}
    empty |= dict.fromkeys(("w_q", "w_k", "w_v"), torch.zeros(4, 0))
    with pytest.raises(ValueError, match="backend='triton' was requested, but it takes rows of at least one column"):
        mixpol_kernels.dot_target_attention(**empty, backend="triton")  # type: ignore[arg-type]
    case = make(BASE, generator)
    arguments = case.arguments(case.place(generator))
    queries, history = torch.randn(4, 1, 2, 8), arguments["history"]
    with pytest.raises(ValueError, match="history is 16 wide; expected 8"):
        FORWARD.triton(queries, history, arguments["offsets"], None, None, False, 0, False)
    for stats in (torch.zeros(4, 1, 2, 3), torch.zeros(4, 1, 2, 2).double()):
        with pytest.raises(ValueError, match=r"stats is .*; expected torch.float32 \[4, 1, 2, 2\]"):
            BACKWARD.triton(queries, stats, queries, history, arguments["offsets"], None, None, True, 0)
    arguments["offsets"] = torch.tensor([0, 35, 35, 42, 75])
    with pytest.raises(RuntimeError, match="expected 0 to 74"):
        case.call(arguments, "triton")


def test_an_overrun_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kernels, told that a history is longer than it is."""
    right = launch._Call.sizes
    queries, history = torch.randn(1, 1, 1, 16), torch.randn(1, 20, 16)
    pooled, stats, _ = FORWARD.triton(queries, history, None, None, None, False, 0, False)
    monkeypatch.setattr(launch._Call, "sizes", lambda self: (*right(self)[:2], right(self)[2] + 1, *right(self)[3:]))
    with pytest.raises(InterpreterError, match="out of bounds"):
        FORWARD.triton(queries, history, None, None, None, False, 0, False)
    with pytest.raises(InterpreterError, match="out of bounds"):
        BACKWARD.triton(pooled, stats, queries, history, None, None, None, False, 0)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that hold 16 columns, so that wider rows are shared by several."""
    monkeypatch.setattr(configs, "WIDTHS", (16,))


@pytest.mark.parametrize(
    "change",
    [
        {"width": 40, "attention": 12, "counts": (19, 0, 3)},
        {"width": 36, "heads": 2, "attention": None, "layout": "mask_holes", "candidates": 2},
        {"width": 17, "heads": 1, "attention": None, "candidates": 17, "counts": (3, 18), "layout": "lengths"},
    ],
)
def test_rows_wider_than_a_program(change: dict[str, Any], narrow: None, generator: torch.Generator) -> None:
    case = make(replace(BASE, **change), generator)
    check(case, generator)
    where = case.place(generator)
    arguments = case.arguments(where)
    found, truth = (case.call(arguments, backend, return_weights=True) for backend in ("triton", "reference"))
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)


def test_wide_rows_in_parts(narrow: None, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART", 16)
    check(make(replace(BASE, width=20, heads=1, attention=None, counts=(33, 0, 5)), generator), generator)


TOP: dict[str, dict[str, Any]] = {
    "best one": {"top_k": 1, "counts": (3, 0, 18, 1)},
    "tiles": {"top_k": 5, "counts": (35, 0, 4, 17), "heads": 1},
    "as many": {"top_k": 17, "counts": (17, 18, 3)},
    "more than any": {"top_k": 2**40, "counts": (4, 18)},
    "heads, no projections": {"top_k": 3, "attention": None, "layout": "lengths", "counts": (18, 0, 2)},
    "mask": {"top_k": 4, "layout": "mask_holes", "counts": (19, 0), "heads": 1, "candidates": 2},
    "blocks": {"top_k": 2, "heads": 1, "candidates": 17, "attention": None, "counts": (18,)},
    "huge scores": {"top_k": 3, "counts": (20, 2), "spread": 300.0, "attention": None},
}


@pytest.mark.parametrize("form", TOP)
def test_top_k(form: str, generator: torch.Generator) -> None:
    case = make(replace(BASE, **TOP[form]), generator)
    check(case, generator)
    where = case.place(generator)
    found, truth = (case.call(case.arguments(where), name, return_weights=True)[1] for name in ("triton", "reference"))
    assert torch.equal(found != 0, truth != 0) or form == "huge scores"
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-6)


def test_top_k_of_wide_rows(narrow: None, generator: torch.Generator) -> None:
    check(make(replace(BASE, width=20, heads=1, attention=None, counts=(18, 2), top_k=3), generator), generator)


def test_top_k_of_a_long_history(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is not cut: the best tokens are those of all parts."""
    monkeypatch.setattr(parts, "PART", 16)
    check(make(replace(BASE, heads=1, attention=None, counts=(40, 3), top_k=4), generator), generator)


@pytest.mark.parametrize("top_k", [1, 2, 5, 8])
def test_ties(top_k: int) -> None:
    """Of equal scores the earlier tokens, over tiles, zeros of either sign and scores below zero."""
    scores = torch.tensor([2.0, -0.0, 0.0, 2.0, -1.0, 0.0, -0.0, 2.0, -1.0, *[-3.0] * 10, 0.0, 2.0, -1.0])
    history = torch.stack([scores, torch.arange(len(scores)).float()], 1)[None].requires_grad_()
    target = torch.tensor([[1.0, 0.0]])
    found = []
    for backend in ("triton", "reference"):
        out, weights = mixpol_kernels.dot_target_attention(
            target, history, scale=1.0, top_k=top_k, return_weights=True, backend=backend
        )
        found.append((out, weights, torch.autograd.grad(out.sum(), history)[0]))
    assert found[0][1].count_nonzero() == top_k
    assert torch.equal(found[0][1] != 0, found[1][1] != 0)
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_top_k_of_low_precision(dtype: torch.dtype, generator: torch.Generator) -> None:
    """Scores of whole numbers, which every dtype holds."""
    history = torch.randperm(24, generator=generator)[:, None].to(dtype).expand(24, 8)[None].requires_grad_()
    target = torch.full((1, 8), 0.0625, dtype=dtype)
    found = []
    for backend in ("triton", "reference"):
        out, weights = mixpol_kernels.dot_target_attention(
            target, history, scale=1.0, top_k=4, return_weights=True, backend=backend
        )
        found.append((weights, torch.autograd.grad(out.sum(), history)[0]))
    assert torch.equal(found[0][0] != 0, found[1][0] != 0)
    torch.testing.assert_close(found[0], found[1], rtol=0.02, atol=0.1)


@pytest.mark.parametrize("draw", range(3))
def test_fresh_options(draw: int, generator: torch.Generator, source: random.Random) -> None:
    heads = source.choice([1, 2, 3])
    config = Config(
        layout=source.choice(LAYOUTS[:-1]),
        counts=tuple(source.randint(0, 40) for _ in range(source.randint(1, 5))),
        width=heads * source.choice([4, 7, 16]),
        heads=heads,
        attention=source.choice([None, 4 * heads, 10 * heads]),
        candidates=source.choice([None, 1, 3, 20]),
        scale=source.choice([None, 0.3]),
        top_k=source.choice([None, None, 2, 20]),
    )
    check(make(config, generator), generator)
