"""Differential fuzzing: hypothesis draws shapes, layouts, options, views and magnitudes; float64 references judge.

The same examples in every run; MIXPOL_FUZZ=<n> draws n fresh ones per test instead. A new op or option joins when it
joins `configurations.CHOICES`, a new dtype when the compiled kernels take it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from poison import poisoned
from torch import Tensor
from torch.overrides import TorchFunctionMode
from views import VIEWS

from mixpol_kernels.backend import cpu_refusal
from mixpol_kernels.checks import FLOAT_TYPES
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.configurations import CHOICES, config
from mixpol_kernels.testing.inputs import OPS, Case, Config, make
from mixpol_kernels.testing.layouts import LAYOUTS, Placement

EXAMPLES = int(os.environ.get("MIXPOL_FUZZ", "0"))
DTYPES = [dtype for dtype in FLOAT_TYPES if not cpu_refusal(torch.empty(0, dtype=dtype))]
KINKED = ("relu", "prelu", "leaky_relu")
# How much larger than any step of the reference a step of a kernel may be: W_k - W_d and W_q + W_d double a weight,
# and their products with target and token add up before what would cancel them is added.
HEADROOM = 16.0


def fuzz(examples: int) -> Any:
    """At most `examples` fixed examples, or MIXPOL_FUZZ fresh ones."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


generators = st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))
every_op = pytest.mark.parametrize("op", OPS)


@st.composite
def configs(draw: st.DrawFn, op: str) -> Config:
    """Any options, and any number of users with any number of tokens each."""
    choice = {name: draw(st.sampled_from(values)) for name, values in CHOICES[op].items()}
    if choice["layout"] == "full":
        counts = [draw(st.integers(0, 20))] * draw(st.integers(0, 5))
    else:
        counts = draw(st.lists(st.sampled_from([0, 1, 2]) | st.integers(0, 60), max_size=6))
    return config(op, choice | {"counts": tuple(counts), "items": draw(st.integers(1, 100))})


def place(case: Case, generator: torch.Generator, draw: st.DataObject) -> Placement:
    """The case in its layout; padded ones sometimes longer than the longest row."""
    longest = max(case.counts, default=0)
    padded = case.config.layout not in ("jagged", "full")
    return case.place(generator, length=longest + draw.draw(st.integers(0, 5)) if padded else None)


class _Kinks(TorchFunctionMode):
    """Notes how close to 0 any unit of any linear layer comes, relative to the sizes of what is added up."""

    def __init__(self) -> None:
        super().__init__()
        self.closest = torch.inf

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and out.numel() and len(args) == 3:
            inputs, weight, bias = (t.abs() for t in args)
            size = torch.nn.functional.linear(inputs, weight, bias)
            self.closest = min(self.closest, float((out.abs() / size)[size > 0].min()))
        return out


def far_from_kinks(case: Case, where: Placement, dtype: torch.dtype) -> bool:
    """Whether no rounding error can decide on which side of 0 a rectified unit lies."""
    if not case.config.has_unit or case.config.activation not in KINKED:
        return True
    with _Kinks() as kinks, torch.no_grad():
        case.call(case.arguments(where, torch.float64), "reference")
    return kinks.closest > 16 * torch.finfo(dtype).eps


def groups(case: Case) -> list[str]:
    """Inputs that are scaled together."""
    return sorted({name.split("[")[0] for name in case.floats} | {"grad_out"})


def scaled(case: Case, factors: dict[str, float]) -> Case:
    floats = {name: t * factors.get(name.split("[")[0], 1.0) for name, t in case.floats.items()}
    return replace(case, floats=floats, grad_out=case.grad_out * factors.get("grad_out", 1.0))


def all_finite(results: dict[str, Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in results.values())


def safe(case: Case, where: Placement, dtype: torch.dtype) -> bool:
    """Whether no step comes near the largest number (the reference is finite for larger inputs too), and plain
    PyTorch gets two digits right: a softmax of scores that are off by 1 says nothing."""
    plain, truth = case.run("reference", where, dtype), case.run("reference", where, torch.float64)
    larger = (scaled(case, {name: HEADROOM}).run("reference", where, dtype) for name in groups(case))
    return all_finite(plain) and all(map(all_finite, larger)) and all(
        bool(((plain[name] - value).abs() <= 0.01 * value.abs().max() + torch.finfo(dtype).tiny).all())
        for name, value in truth.items()
        if value.numel() and not name.startswith("grad biases")  # that of a softmax's output is 0
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_op
@fuzz(60)
@given(data=st.data())
def test_within_budget(op: str, dtype: torch.dtype, data: st.DataObject) -> None:
    """Ordinary magnitudes, all options."""
    generator = data.draw(generators)
    case = make(data.draw(configs(op)), generator)
    where = place(case, generator, data)
    assume(far_from_kinks(case, where, dtype))
    lines = budget.over_budget(case, where, generator, dtype=dtype)
    assert not lines, "\n".join(lines)


@every_op
@fuzz(60)
@given(data=st.data())
def test_magnitudes(op: str, data: st.DataObject) -> None:
    """One or two inputs far from 1, wherever plain PyTorch is finite with room to spare."""
    generator = data.draw(generators)
    case = make(data.draw(configs(op)), generator)
    names = data.draw(st.lists(st.sampled_from(groups(case)), min_size=1, max_size=2, unique=True))
    reach = 30 if len(names) == 1 else 14  # a product of three of them stays a normal number
    factors = {name: 10.0 ** data.draw(st.integers(-reach, reach), label=name) for name in names}
    case = scaled(case, factors)
    where = place(case, generator, data)
    assume(far_from_kinks(case, where, torch.float32))
    assume(safe(case, where, torch.float32))
    note(f"{factors}, {case.config}")
    lines = budget.over_budget(case, where, generator)
    assert not lines, "\n".join(lines)


def kinds(tensor: Tensor) -> Tensor:
    """0 finite, 1 NaN, 2 inf, 3 -inf."""
    return tensor.isnan() + 2 * tensor.isposinf() + 3 * tensor.isneginf()


def outputs(case: Case, where: Placement) -> tuple[Tensor, Tensor]:
    """What the kernels and the reference return, in ragged form."""
    with torch.no_grad():
        pair = [case.call(case.arguments(where), backend) for backend in ("cpu", "reference")]
    got, expected = pair if case.config.has_unit else map(where.gather, pair)
    return got, expected


@every_op
@fuzz(40)
@given(data=st.data())
def test_overflow(op: str, data: st.DataObject) -> None:
    """Products far beyond the largest number: inf where the reference has it, finite where it is finite.

    NaN of the reference, inf - inf, is left out: in a chain of fused multiply-adds the first inf stays, since the
    product that is added to it does not overflow by itself. And behind a first hidden layer that overflows NaN may
    come instead of inf, since the columns that pad a layer multiply it by 0.
    """
    generator = data.draw(generators)
    case = make(data.draw(configs(op)), generator)
    names = [name for name in ("target", "tokens", "item_table") if name in groups(case)]
    sign = data.draw(st.sampled_from([1.0, -1.0]))
    case = scaled(case, dict.fromkeys(names, sign * 1e30))
    got, expected = outputs(case, place(case, generator, data))
    same = (kinds(got) == kinds(expected)) | expected.isnan()
    if case.config.has_unit and len(case.config.hidden) > 1:
        same |= got.isnan()
    assert same.all(), (got, expected)


@every_op
@fuzz(60)
@given(data=st.data())
def test_nan(op: str, data: st.DataObject) -> None:
    """One NaN anywhere: NaN in the same places as in the reference."""
    generator = data.draw(generators)
    case = make(data.draw(configs(op)), generator)
    name = data.draw(st.sampled_from(sorted(case.floats)))
    assume(case.floats[name].numel())
    at = data.draw(st.integers(0, case.floats[name].numel() - 1))
    case.floats[name].view(-1)[at] = torch.nan
    got, expected = outputs(case, place(case, generator, data))
    assert torch.equal(kinds(got), kinds(expected)), (name, at)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_op
@fuzz(30)
@given(data=st.data())
def test_same_bits(op: str, dtype: torch.dtype, data: st.DataObject) -> None:
    """Poisoned memory, any views, two threads and another layout change no bit; pads and inputs stay what they were."""
    generator = data.draw(generators)
    case = make(data.draw(configs(op)), generator)
    where = place(case, generator, data)
    expected = case.run("cpu", where, dtype)

    def compare(got: dict[str, Tensor], what: str) -> None:
        for name, value in expected.items():
            assert torch.equal(got[name], value), f"{name} differs: {what}, {case.config}"

    with poisoned():
        compare(case.run("cpu", where, dtype), "memory poisoned")
    views: dict[str, Any] = {}

    def view(name: str, tensor: Tensor) -> Tensor:
        # Fewer draws, smaller examples: the tensors of a list share a view.
        prefix = name.split("[")[0]
        if prefix not in views:
            views[prefix] = data.draw(st.sampled_from([torch.clone, *VIEWS]), label=prefix)
        return views[prefix](tensor)

    compare(case.run("cpu", where, dtype, view=view), "views")
    torch.set_num_threads(2)
    try:
        compare(case.run("cpu", where, dtype), "two threads")
    finally:
        torch.set_num_threads(1)
    equal = len(set(case.counts)) <= 1
    other = data.draw(st.sampled_from([name for name in LAYOUTS if equal or name != "full"]), label="other layout")
    compare(case.run("cpu", case.place(generator, other), dtype), f"layout {other}")


wild_integers = st.integers(-(2**63), 2**63 - 1) | st.integers(-100, 200)


@every_op
@fuzz(60)
@given(data=st.data())
def test_any_offsets_and_lengths(op: str, data: st.DataObject) -> None:
    """Valid ones run, and everything else is refused by name: no value reads or writes out of bounds."""
    generator = data.draw(generators)
    layout = data.draw(st.sampled_from(["jagged", "lengths"]))
    counts = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    case = make(Config(op=op, layout=layout, counts=tuple(counts)), generator)
    arguments = case.arguments(case.place(generator))
    name = "offsets" if layout == "jagged" else "lengths"
    at = data.draw(st.integers(0, len(arguments[name]) - 1))
    arguments[name][at] = data.draw(wild_integers | st.integers(0, sum(counts)))
    value = arguments[name]
    if name == "offsets":
        good = int(value[0]) == 0 and int(value[-1]) == sum(counts) and bool((value[1:] >= value[:-1]).all())
    else:
        good = bool(((value >= 0) & (value <= max(counts))).all())
    if good:
        # Positions that were pads may hold wild ids now: those are refused, by name too.
        for ids in ("item_ids", "polarity"):
            if arguments.get(ids) is not None:
                arguments[ids] = arguments[ids].clamp(0, 1)
        assert case.call(arguments, "cpu").shape
    else:
        with pytest.raises(RuntimeError, match=name):
            case.call(arguments, "cpu")


@pytest.mark.parametrize("op", [op for op in OPS if "id_dtype" in CHOICES[op]])
@fuzz(60)
@given(data=st.data())
def test_any_id(op: str, data: st.DataObject) -> None:
    """An id outside its table is refused by name and value at a token, and not read at a pad."""
    generator = data.draw(generators)
    case = make(data.draw(configs(op)), generator)
    where = place(case, generator, data)
    arguments = case.arguments(where)
    names = [name for name in ("item_ids", "polarity") if isinstance(arguments.get(name), Tensor)]
    assume(names)
    name = data.draw(st.sampled_from(names))
    ids = arguments[name].long()
    assume(ids.numel())
    at = data.draw(st.integers(0, ids.numel() - 1))
    rows = case.config.items if name == "item_ids" else case.config.n_polarity
    value = data.draw(wild_integers | st.sampled_from([-1, rows]))
    ids.view(-1)[at] = value
    arguments[name] = ids
    kept = where.index is None or bool((where.index == at).any())
    if kept and not 0 <= value < rows:
        with pytest.raises(RuntimeError, match=rf"{name} has {value} at position {at}"):
            case.call(arguments, "cpu")
    else:
        assert case.call(arguments, "cpu").isfinite().all()
