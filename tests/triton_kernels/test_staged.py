"""The staged Triton kernels: units of any size, dropout and dice_row, against the float64 reference, interpreted."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mixpol_kernels
from mixpol_kernels.history import Layout
from mixpol_kernels.ops.target_attention.autograd import BACKWARD, FORWARD
from mixpol_kernels.ops.target_attention.triton import staged, support
from mixpol_kernels.ops.unit import ACTIVATIONS
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.inputs import Case, Config, make
from mixpol_kernels.testing.layouts import LAYOUTS
from mixpol_kernels.testing.recorder import Recorder

# Histories of several granules of 16, one that fills two, and an empty one; two blocks of 32 units.
COUNTS = (35, 0, 7, 32)
BASE = Config(op="target_attention", counts=COUNTS, hidden=(40,))
NORMALIZE = {1: "none", 2: "softmax", 3: "sigmoid"}


@pytest.fixture(autouse=True)
def _staged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that one kernel could take go through the stages too, so that small cases suffice."""
    monkeypatch.setattr(support, "fused", lambda *_: False)


def check(case: Case, generator: torch.Generator, dtype: torch.dtype = torch.float32, **options: Any) -> None:
    __tracebackhide__ = True
    where = case.place(generator, **options)
    lines = budget.over_budget(case, where, generator, backend="triton", dtype=dtype)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "leaky_relu"])
def test_activations_and_depths(activation: str, generator: torch.Generator, source: random.Random) -> None:
    hidden = source.choice([(40,), (20, 40), (40, 36, 20)])
    config = replace(BASE, activation=activation, hidden=hidden, normalize=NORMALIZE[len(hidden)], counts=(18, 0, 3))
    check(make(config, generator), generator)


@pytest.mark.parametrize("hidden", [(40,), (36, 40), (40, 17, 33)], ids=len)
@pytest.mark.parametrize("activation", ["silu", "dice_row"])
def test_depths(activation: str, hidden: tuple[int, ...], generator: torch.Generator) -> None:
    config = replace(BASE, activation=activation, hidden=hidden, normalize=NORMALIZE[len(hidden)])
    check(make(config, generator), generator)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, generator: torch.Generator, source: random.Random) -> None:
    counts = (19,) * 2 if layout == "full" else (18, 0, 3)
    normalize = source.choice(["none", "softmax", "sigmoid"])
    check(make(replace(BASE, layout=layout, counts=counts, normalize=normalize, candidates=2), generator), generator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["silu", "dice", "dice_row"])
def test_low_precision(activation: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    half = dtype == torch.float16
    config = replace(BASE, counts=(18, 0, 3), activation=activation, hidden=(40, 20) if half else (40,), candidates=2)
    check(make(replace(config, normalize="softmax" if half else "none"), generator, dtype), generator, dtype)


EDGES: dict[str, dict[str, Any]] = {
    "no users": {"counts": ()},
    "one token": {"counts": (1,)},
    "all empty": {"counts": (0, 0, 0)},
    "rows around a granule": {"counts": (15, 16, 17, 31, 33)},
    "all sizes one": {"width": 1, "hidden": (1,), "counts": (1, 2)},
    "three layers of one": {"hidden": (1, 1, 1), "counts": (3, 2)},
    "wide tokens": {"width": 70, "hidden": (9,), "counts": (5, 18)},
    "wide units": {"hidden": (130, 70), "counts": (18,)},
    "many candidates": {"candidates": 9, "counts": (3, 18)},
    "no candidates": {"candidates": 0},
}


@pytest.mark.parametrize("edge", EDGES)
def test_edge_shapes(edge: str, generator: torch.Generator, source: random.Random) -> None:
    normalize, layout = source.choice([("none", "jagged"), ("softmax", "lengths")])
    check(make(replace(BASE, layout=layout, normalize=normalize, **EDGES[edge]), generator), generator)


def test_parts_of_long_histories(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "PART", 16)
    check(make(replace(BASE, normalize="softmax", candidates=2), generator), generator)


def test_chunks_do_not_show(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and candidates a few at a time: what is of a user has the same bits, and parameters stay in their budget."""
    config = replace(BASE, layout="mask_holes", candidates=2, normalize="softmax", activation="dice_row")
    case = make(replace(config, counts=(7, 70)), generator)
    where = case.place(generator)
    expected = case.run("triton", where)
    monkeypatch.setattr(staged, "MOST_ROWS", 64)
    several = case.run("triton", where)
    for name in ("out", "grad target", "grad tokens"):
        assert torch.equal(several[name], expected[name]), name
    monkeypatch.setattr(staged, "MOST_CANDIDATES", 1)
    assert torch.equal(case.run("triton", where)["out"], expected["out"])
    lines = budget.over_budget(case, where, generator, backend="triton")
    assert not lines, "\n".join(lines)


def test_nothing_waits_for_the_device(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """No value of a tensor decides what is launched, so that a step can be captured in a CUDA graph."""
    monkeypatch.setattr(Layout, "check_values", lambda _: None)  # only while interpreting

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = str(function)
            assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique")), name
            return function(*args, **(kwargs or {}))

    case = make(replace(BASE, layout="mask_holes", normalize="softmax", counts=(5, 0, 2)), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    with Watched():
        case.call(arguments, "triton").backward(case.grad_out)


def test_same_bits_every_time_and_alone(generator: torch.Generator) -> None:
    """A user's output and gradients do not depend on the batch or the layout; nothing depends on the run."""
    config = replace(BASE, counts=(35, 0, 7, 18), normalize="softmax", activation="dice", hidden=(20,))
    case = make(config, generator)
    where = case.place(generator)
    expected = case.run("triton", where)
    again = case.run("triton", where)
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    ends = torch.tensor(case.counts).cumsum(0).tolist()
    for user, layout in ((0, "lengths"), (2, "jagged"), (3, "mask_holes")):
        alone = case.take([user])
        got = alone.run("triton", alone.place(generator, layout, length=40 if layout != "jagged" else None))
        assert torch.equal(got["out"][0], expected["out"][user])
        assert torch.equal(got["grad target"][0], expected["grad target"][user])
        rows = slice(ends[user] - case.counts[user], ends[user])
        assert torch.equal(got["grad tokens"], expected["grad tokens"][rows])


@pytest.mark.parametrize("activation", ["relu", "dice_row"])
def test_dropout(activation: str, generator: torch.Generator) -> None:
    """The same units as the reference and the CPU kernels drop, in any layout."""
    config = replace(BASE, dropout=0.4, activation=activation, hidden=(20, 9), candidates=2, normalize="softmax")
    case = make(replace(config, layout="mask_holes", counts=(5, 0, 3)), generator)
    check(case, generator)
    where = case.place(generator)
    ours, cpu = (case.run(backend, where) for backend in ("triton", "cpu"))
    for name, expected in cpu.items():
        if name == "grad biases[2]":
            continue  # a softmax does not feel it
        torch.testing.assert_close(ours[name], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()), msg=name)


def test_dropout_behind_a_gate(generator: torch.Generator) -> None:
    """Candidates that have a pass each drop what they drop together."""
    config = Config(op="mixed_polarity_attention", counts=(5, 0, 2), candidates=2, dropout=0.4)
    check(make(config, generator), generator)


@pytest.mark.parametrize("normalize", ["none", "softmax", "sigmoid"])
def test_gradient_through_the_weights(normalize: str, generator: torch.Generator) -> None:
    config = replace(BASE, layout="mask_holes", normalize=normalize, candidates=2, hidden=(20,), counts=(18, 0, 3))
    case = make(config, generator)
    where = case.place(generator)
    grads = {}
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float32), ("exact", torch.float64)):
        arguments = case.arguments(where, dtype, requires_grad=True)
        pooled, weights = case.call(arguments, "reference" if backend == "exact" else backend, return_weights=True)
        assert not where.pads(weights.detach()).any(), "weights at pads"
        upstream = torch.linspace(-1, 1, weights.numel(), dtype=dtype).view(weights.shape)
        torch.autograd.backward([pooled, weights], [case.grad_out.to(dtype), upstream])
        leaves = {"target": arguments["target"], "history": arguments["history"], "weight": arguments["weights"][0]}
        grads[backend] = {name: leaf.grad.nan_to_num() for name, leaf in leaves.items()}
    eps = torch.finfo(torch.float32).eps
    for name, exact in grads["exact"].items():
        ours, plain = (float((grads[b][name] - exact).abs().max()) for b in ("triton", "reference"))
        assert ours <= 5 * plain + 4 * eps * float(exact.abs().max()), name


def test_strided_history(generator: torch.Generator) -> None:
    """Rows apart, users apart, and a last dimension that is not contiguous."""
    case = make(replace(BASE, layout="lengths", width=12, hidden=(20,), counts=(18, 0, 3)), generator)
    where = case.place(generator)
    expected = case.run("triton", where)

    def wide(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() < 2 or not tensor.is_floating_point():
            return tensor
        apart = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 5), torch.nan, dtype=tensor.dtype)
        apart[..., 2:-3] = tensor
        return apart[..., 2:-3]

    def columns(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2) if tensor.dim() > 1 else tensor

    for view in (wide, columns):
        got = case.run("triton", where, view=view)
        assert all(torch.equal(got[name], expected[name]) for name in expected), view.__name__


@pytest.mark.parametrize("where", ["target of an empty history", "pads' output"])
def test_what_is_not_finite_stays_where_it_is(where: str, generator: torch.Generator) -> None:
    case = make(replace(BASE, layout="mask_holes", counts=(3, 0, 7), normalize="softmax"), generator)
    if where == "pads' output":
        case.grad_out[0, 2] = torch.inf
        case.run("triton", case.place(generator))  # raises where something other than zeros is at the pads
        return
    case.floats["target"][1] = torch.nan
    results = case.run("triton", case.place(generator))
    assert all(value.isfinite().all() for value in results.values())


def test_offsets_beyond_32_bits() -> None:
    """Two users whose histories lie 2³¹ elements apart; memory that nobody touches costs nothing."""
    apart = 2**31 + 16
    room = torch.empty(apart + 200, dtype=torch.float16)
    history = room.as_strided((2, 3, 16), (apart, 16, 1))
    history.copy_(torch.randn(2, 3, 16))
    target, weights = torch.randn(2, 16).half(), [torch.randn(8, 64).half(), torch.randn(1, 8).half()]
    biases = [torch.zeros(8).half(), torch.zeros(1).half()]
    near = mixpol_kernels.target_attention(target, history.clone(), weights, biases, backend="triton")
    far = mixpol_kernels.target_attention(target, history, weights, biases, backend="triton")
    assert torch.equal(far, near)
    assert far[1].any()


def test_opcheck(generator: torch.Generator) -> None:
    case = make(replace(BASE, dropout=0.2, activation="dice_row", hidden=(4,), width=3, counts=(3, 0, 5)), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    with Recorder() as recorder:
        case.call(arguments, "triton").backward(case.grad_out)
    calls = [call for call in recorder.calls if call[0] in (FORWARD.triton, BACKWARD.triton)]
    assert len(calls) == 2
    for op, args in calls:
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))
