"""bfloat16 and float16 inputs of the ops that store them: float32 inside, one rounding on the way out.

But for bfloat16 where the CPU multiplies it in pairs (test_bfloat16_products.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from products import IN_PAIRS
from torch import Tensor
from views import VIEWS

import mixpol_kernels
from mixpol_kernels.ops.unit import ACTIVATIONS
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.configurations import drawn, grid, label
from mixpol_kernels.testing.inputs import Case, Config, make
from mixpol_kernels.testing.layouts import Placement
from mixpol_kernels.testing.recorder import recorded

LOW = (torch.bfloat16, torch.float16)
OPS = ("target_attention", "mixed_polarity_attention")
GRID = [config for op in OPS for config in grid(op)]

pytestmark = pytest.mark.parametrize("dtype", LOW, ids=["bfloat16", "float16"])


def widened(case: Case, where: Placement) -> dict[str, Tensor]:
    """The compiled kernel in float32 on the same values: what the low-precision one computes before it rounds."""
    return case.run("cpu", where)


def rounded_once(low: Tensor, full: Tensor) -> bool:
    """Whether `low` is `full` to the bit but for its own rounding. In pairs the error budget says how near it is."""
    if IN_PAIRS and low.dtype == torch.bfloat16:
        return low.shape == full.shape and bool(low.isfinite().all())
    return torch.equal(low, full.to(low.dtype))


@pytest.mark.parametrize("config", GRID, ids=[f"{c.op}-{label(c)}" for c in GRID])
def test_budget_of_every_pair_of_options(config: Config, dtype: torch.dtype, generator: torch.Generator) -> None:
    case = make(config, generator, dtype)
    lines = budget.over_budget(case, case.place(generator), generator, dtype=dtype)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("draw", range(4))
@pytest.mark.parametrize("op", OPS)
def test_budget_of_fresh_options(
    op: str, draw: int, dtype: torch.dtype, generator: torch.Generator, source: random.Random
) -> None:
    case = make(drawn(op, source), generator, dtype)
    lines = budget.over_budget(case, case.place(generator), generator, dtype=dtype)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("candidates", [None, 3])
@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_holes"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("op", OPS)
def test_is_the_float32_result_rounded_once(
    op: str, activation: str, layout: str, candidates: int | None, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Bitwise, gradients included: also those that add up over candidates, users and repeated ids."""
    config = Config(op=op, activation=activation, layout=layout, candidates=candidates, width=23, hidden=(36,), items=7)
    case = make(config, generator, dtype)
    where = case.place(generator)
    got, expected = case.run("cpu", where, dtype), widened(case, where)
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert value.dtype == dtype, name
        assert rounded_once(value, expected[name]), name


@pytest.mark.parametrize("normalize", ["none", "softmax", "sigmoid"])
@pytest.mark.parametrize("candidates", [None, 3])
@pytest.mark.parametrize("op", OPS)
def test_attention_weights(
    op: str, candidates: int | None, normalize: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Returned in the dtype of the target, as the reference does; kept in float32; their gradient flows."""
    case = make(Config(op=op, layout="lengths", candidates=candidates, normalize=normalize), generator, dtype)
    where = case.place(generator)
    results = {}
    for kind in (dtype, torch.float32):
        arguments = case.arguments(where, kind, requires_grad=True)
        pooled, weights = case.call(arguments, "cpu", return_weights=True)
        assert pooled.dtype == weights.dtype == kind
        with torch.no_grad():
            plain = case.call(arguments, "cpu", return_weights=True)
        assert torch.equal(plain[0], pooled)
        assert torch.equal(plain[1], weights)
        assert case.call(arguments, "reference", return_weights=True)[1].dtype == kind
        (weights.sum() + pooled.sum()).backward()
        results[kind] = (weights.detach(), arguments["target"].grad)
    for low, full in zip(results[dtype], results[torch.float32], strict=True):
        assert rounded_once(low, full)


@pytest.mark.parametrize("op", OPS)
def test_sparse_table_gradient(op: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    case = make(Config(op=op, items=7, sparse=True, batch=9), generator, dtype)
    where = case.place(generator)
    got, expected = case.run("cpu", where, dtype), widened(case, where)
    assert all(rounded_once(got[name], expected[name]) for name in expected)
    if op == "mixed_polarity_attention":
        arguments = case.arguments(where, dtype, requires_grad=True)
        (grad,) = torch.autograd.grad(case.call(arguments, "cpu").sum(), arguments["item_table"])
        assert grad.is_sparse
        assert grad.is_coalesced()
        assert grad.dtype == dtype


@pytest.mark.parametrize("op", OPS)
def test_same_bits_for_any_threads_and_any_batch(op: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    case = make(Config(op=op, width=40, hidden=(36,), batch=70, length=60, items=11), generator, dtype)
    where = case.place(generator)
    expected = case.run("cpu", where, dtype)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        got = case.run("cpu", where, dtype)
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    torch.set_num_threads(1)
    for user in (0, 33, 69):
        part = case.take([user])
        alone = part.run("cpu", part.place(generator, "lengths"), dtype)
        for name in ("out", "grad target"):
            assert torch.equal(alone[name][0], expected[name][user]), name
        if "grad tokens" in alone:
            start = sum(case.counts[:user])
            assert torch.equal(alone["grad tokens"], expected["grad tokens"][start : start + case.counts[user]])


@pytest.mark.parametrize("layout", ["jagged", "lengths"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("op", OPS)
def test_strided_views(
    op: str, view: Callable[[Tensor], Tensor], layout: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    case = make(Config(op=op, layout=layout, candidates=2, width=24), generator, dtype)
    where = case.place(generator)
    expected = case.run("cpu", where, dtype)
    got = case.run("cpu", where, dtype, lambda _, tensor: view(tensor))
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("config", [{"batch": 0}, {"counts": (0, 0, 0)}, {"candidates": 0}], ids=str)
@pytest.mark.parametrize("layout", ["jagged", "lengths"])
@pytest.mark.parametrize("op", OPS)
def test_empty(op: str, layout: str, config: dict[str, Any], dtype: torch.dtype, generator: torch.Generator) -> None:
    case = make(replace(Config(op=op, layout=layout, normalize="softmax"), **config), generator, dtype)
    results = case.run("cpu", case.place(generator), dtype)
    assert all(value.dtype == dtype and not value.count_nonzero() for value in results.values())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("name", ["target", "tokens", "weights[1]", "biases[0]"])
def test_nonfinite_values(name: str, value: float, dtype: torch.dtype, generator: torch.Generator) -> None:
    case = make(Config(op="target_attention", activation="silu", width=24, counts=(4, 2, 0, 20)), generator, dtype)
    where = case.place(generator)
    case.floats[name].view(-1)[0] = value
    got = case.call(case.arguments(where, dtype), "cpu")
    expected = case.call(case.arguments(where), "reference")  # in float32: a sign is not left to rounding
    kinds = [t.isnan() + 2 * t.isposinf() + 3 * t.isneginf() for t in (got, expected)]
    assert kinds[1].any()
    assert torch.equal(*kinds)


def test_overflow_is_infinite_as_in_the_reference(dtype: torch.dtype, generator: torch.Generator) -> None:
    """A sum that float16 does not hold is inf, of the sign that the reference has; bfloat16 holds it."""
    case = make(Config(op="target_attention", counts=(1, 1)), generator, dtype)
    where = case.place(generator)
    case.floats["weights[0]"].zero_(), case.floats["biases[0]"].fill_(1.0)
    case.floats["weights[1]"].fill_(512.0)  # every weight is 8 * 512
    case.floats["tokens"].copy_(case.floats["tokens"].sign() * 100)
    got, expected = (case.call(case.arguments(where, dtype), b) for b in ("cpu", "reference"))
    assert bool(got.isinf().any()) == (dtype == torch.float16)
    assert torch.equal(got.isposinf(), expected.isposinf())
    assert torch.equal(got.isneginf(), expected.isneginf())


@pytest.mark.parametrize("candidates", [None, 3])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, candidates: int | None, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Fakes have the dtypes of the kernels, for every call that a forward and backward makes."""
    layout, activation = ("lengths", "silu") if candidates else ("jagged", "relu")
    config = Config(op=op, layout=layout, activation=activation, candidates=candidates, gate_inputs="full", n_extra=3)
    calls = recorded(config, generator, dtype)
    assert len(calls) >= 2
    for func, args in calls:
        results = torch.library.opcheck(func, args)
        assert set(results.values()) == {"SUCCESS"}, (func, results)


@pytest.mark.parametrize("op", OPS)
def test_compiles_as_one_graph(op: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    torch._dynamo.reset()
    case = make(Config(op=op, normalize="softmax"), generator, dtype)
    arguments = case.arguments(case.place(generator), dtype, requires_grad=True)
    compiled = torch.compile(getattr(mixpol_kernels, op), fullgraph=True, dynamic=True, backend="aot_eager")
    results = []
    for function in (getattr(mixpol_kernels, op), compiled):
        pooled, weights = function(**arguments, backend="cpu", return_weights=True)
        (grad,) = torch.autograd.grad(pooled.sum() + weights.sum(), arguments["target"])
        results.append((pooled, weights, grad))
    for eager, other in zip(*results, strict=True):
        assert other.dtype == dtype
        assert torch.equal(other, eager)


@pytest.mark.parametrize("op", OPS)
def test_mixed_dtypes_are_refused(op: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    """By name, in Python and in the registered op."""
    case = make(Config(op=op), generator, dtype)
    arguments = case.arguments(case.place(generator), dtype)
    arguments["weights"][1] = arguments["weights"][1].float()
    with pytest.raises(TypeError, match=r"weights\[1\].*float32.*target.*float16"):
        case.call(arguments, "cpu")
    func, args = recorded(Config(op=op), generator, dtype)[0]
    args = tuple([a[0].float(), *a[1:]] if isinstance(a, list) and len(a) == 2 else a for a in args)
    with pytest.raises(RuntimeError, match=r"weights\[0\] is not b?float16; expected the dtype"):
        func(*args)


@pytest.mark.parametrize("width", [1, 7, 16, 33])
def test_every_finite_value_is_converted_exactly(width: int, dtype: torch.dtype) -> None:
    every = all_values(dtype)
    rows = every[: len(every) // width * width].reshape(-1, 1, width)
    assert torch.equal(pooled_with_weight_one(rows), rows[:, 0])


def test_rounds_to_nearest_even(dtype: torch.dtype, generator: torch.Generator) -> None:
    """Pairs of tokens whose sum lies between two values: ties, subnormal numbers and overflow among them."""
    every = all_values(dtype)
    first = torch.randint(len(every), (6000, 24), generator=generator)
    second = torch.randint(len(every), (6000, 24), generator=generator)
    near = (first + torch.randint(-4096, 4096, (6000, 24), generator=generator)).clamp(0, len(every) - 1)
    second[::2] = near[::2]
    a, b = every[first], every[second]
    expected = (a.float() + b.float()).to(dtype)
    assert (expected.float() != a.float() + b.float()).any()
    assert expected.isinf().any()
    assert torch.equal(pooled_with_weight_one(torch.stack([a, b], 1)), expected)


def all_values(dtype: torch.dtype) -> Tensor:
    """Every finite value of a 16-bit dtype."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    return every[every.isfinite()]


def pooled_with_weight_one(rows: Tensor) -> Tensor:
    """The sums over n of rows [B, n, D], as the pooled vectors of a unit whose scores are all 1."""
    target, zero, one = rows.new_zeros(rows.shape[0], rows.shape[2]), rows.new_zeros, rows.new_ones(1)
    weights = [zero(1, 4 * rows.shape[2]), zero(1, 1)]
    return mixpol_kernels.target_attention(target, rows, weights, [one, one], backend="cpu")
