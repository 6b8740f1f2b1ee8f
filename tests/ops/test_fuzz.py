"""Differential fuzzing: hypothesis draws shapes, layouts, options, views and magnitudes; float64 references judge.

The same examples in every run of a revision, others for another MIXPOL_TEST_SEED; MIXPOL_FUZZ=<n> tries n per test. A
new op or option joins when it joins `configurations.CHOICES`, a new dtype when the compiled kernels take it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import dot_cases
import pytest
import statistics_cases
import torch
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from kinks import far_from_kinks
from poison import poisoned
from torch import Tensor
from views import VIEWS

from mixpol_kernels.backend import refusal
from mixpol_kernels.checks import FLOAT_TYPES
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.configurations import CHOICES, DEEPER, UNITS, WIDTHS, config
from mixpol_kernels.testing.inputs import OPS, Case, Config, make
from mixpol_kernels.testing.layouts import LAYOUTS, Placement

EXAMPLES = int(os.environ.get("MIXPOL_FUZZ", "0"))
DTYPES = [dtype for dtype in FLOAT_TYPES if not refusal("polarity_fusion", "cpu", torch.empty(0, dtype=dtype))]
TOKEN_OUT = ("polarity_embedding", "polarity_fusion")
# With inputs and cases of their own, and a compiled kernel that takes float32 only.
OTHERS = ("dot_target_attention", "unit_statistics")
# How much larger than any step of the reference a step of a kernel may be: W_k - W_d and W_q + W_d double a weight,
# and their products with target and token add up before what would cancel them is added.
HEADROOM = 16.0


def fuzz(examples: int) -> Any:
    """At most `examples`, or MIXPOL_FUZZ; tests/conftest.py says which ones."""
    return settings(
        max_examples=EXAMPLES or examples,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


generators = st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))
every_op = pytest.mark.parametrize("op", OPS)
these_and_others = pytest.mark.parametrize("op", [*OPS, *OTHERS])


@st.composite
def configs(draw: st.DrawFn, op: str) -> Config:
    """Any options, and any number of users with any number of tokens each."""
    choice = {name: draw(st.sampled_from(values)) for name, values in CHOICES[op].items()}
    counts = draw(counts_for(choice["layout"]))
    return config(op, choice | {"counts": counts, "items": draw(st.integers(1, 100))})


@st.composite
def counts_for(draw: st.DrawFn, layout: str) -> tuple[int, ...]:
    if layout == "full":
        return (draw(st.integers(0, 20)),) * draw(st.integers(0, 5))
    return tuple(draw(st.lists(st.sampled_from([0, 1, 2]) | st.integers(0, 60), max_size=6)))


@st.composite
def dot_configs(draw: st.DrawFn, bare: bool, all_tokens: bool) -> dot_cases.Config:
    """Any options of `dot_target_attention`; `bare`: no projections; `all_tokens`: no `top_k`."""
    layout, heads = draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from([1, 2, 4]))
    width = heads * draw(st.sampled_from([1, 3, 8, 16, 25]))
    inner = heads * draw(st.sampled_from([1, 4, 10]))
    only: list[tuple[str, ...] | None] = [None, ("w_q", "w_k", "w_v"), ("w_q", "w_o")]
    chosen = draw(st.sampled_from([*only, ("w_q", "w_k"), ("w_k",), ("w_v",)] if heads == 1 else only))
    one_sided = chosen is not None and len({"w_q", "w_k"} & set(chosen)) == 1
    return dot_cases.Config(
        layout=layout,
        counts=draw(counts_for(layout)),
        width=width,
        attention=None if bare or draw(st.booleans()) else width if one_sided else inner,
        heads=heads,
        only=chosen,
        candidates=draw(st.sampled_from([None, 1, 3, 31])),
        scale=draw(st.sampled_from([None, 1.0, -0.4])),
        top_k=None if all_tokens else draw(st.sampled_from([None, 1, 3, 50])),
        index_dtype=draw(st.sampled_from([torch.int64, torch.int32])),
    )


@st.composite
def statistics_configs(draw: st.DrawFn) -> statistics_cases.Config:
    layout, choices = draw(st.sampled_from(LAYOUTS)), CHOICES["target_attention"]
    hidden = (draw(st.sampled_from(UNITS)), *draw(st.sampled_from(DEEPER)))
    dropout = draw(st.sampled_from(choices["dropout"]))
    return statistics_cases.Config(
        layout=layout,
        counts=draw(counts_for(layout)),
        width=draw(st.sampled_from(WIDTHS)),
        hidden=hidden,
        dropout=dropout,
        pads=None if dropout and len(hidden) > 1 else draw(st.sampled_from([None, 0, 7])),
        **{k: draw(st.sampled_from(choices[k])) for k in ("candidates", "activation", "blocks", "index_dtype")},
    )


def draw_case(
    op: str, draw: st.DataObject, generator: torch.Generator, *, bare: bool = False, all_tokens: bool = False
) -> Any:
    """A case of any op: they have the same methods."""
    if op == "dot_target_attention":
        drawn = draw.draw(dot_configs(bare, all_tokens))
        try:
            return dot_cases.make(drawn, generator)
        except RuntimeError:  # which tokens are the best hangs on rounding in every draw
            assume(False)
    if op == "unit_statistics":
        return statistics_cases.make(draw.draw(statistics_configs()), generator)
    return make(draw.draw(configs(op)), generator)


def place(case: Case, generator: torch.Generator, draw: st.DataObject) -> Placement:
    """The case in its layout; padded ones sometimes longer than the longest row."""
    longest = max(case.counts, default=0)
    padded = case.config.layout not in ("jagged", "full")
    return case.place(generator, length=longest + draw.draw(st.integers(0, 5)) if padded else None)


def spread_out(case: Case, where: Placement) -> bool:
    """For statistics: no unit whose mean is far larger than its spread. Of such a unit plain PyTorch centres the
    gradient through the variance once more, and gets digits right that the rounded mean has lost."""
    if case.config.op != "unit_statistics":
        return True
    with torch.no_grad():
        mean, variance = case.call(case.arguments(where, torch.float64), "reference")
    return bool((mean**2 <= 16 * variance).all())


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
@these_and_others
@fuzz(60)
@given(data=st.data())
def test_within_budget(op: str, dtype: torch.dtype, data: st.DataObject) -> None:
    """Ordinary magnitudes, all options."""
    generator = data.draw(generators)
    case = draw_case(op, data, generator)
    where = place(case, generator, data)
    assume(far_from_kinks(case, where, dtype) and spread_out(case, where))
    lines = budget.over_budget(case, where, generator, dtype=dtype)
    assert not lines, "\n".join(lines)


@these_and_others
@fuzz(60)
@given(data=st.data())
def test_magnitudes(op: str, data: st.DataObject) -> None:
    """One or two inputs far from 1, wherever plain PyTorch is finite with room to spare."""
    generator = data.draw(generators)
    case = draw_case(op, data, generator)
    names = data.draw(st.lists(st.sampled_from(groups(case)), min_size=1, max_size=2, unique=True))
    reach = 30 if len(names) == 1 else 14  # a product of three of them stays a normal number
    factors = {name: 10.0 ** data.draw(st.integers(-reach, reach), label=name) for name in names}
    case = scaled(case, factors)
    where = place(case, generator, data)
    assume(far_from_kinks(case, where, torch.float32))
    assume(safe(case, where, torch.float32))
    assume(spread_out(case, where))
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
    got, expected = map(where.gather, pair) if case.config.op in TOKEN_OUT else pair
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


@these_and_others
@fuzz(60)
@given(data=st.data())
def test_nan(op: str, data: st.DataObject) -> None:
    """One NaN anywhere: NaN in the same places as in the reference."""
    generator = data.draw(generators)
    case = draw_case(op, data, generator, all_tokens=True)
    name = data.draw(st.sampled_from(sorted(case.floats)))
    assume(case.floats[name].numel())
    at = data.draw(st.integers(0, case.floats[name].numel() - 1))
    case.floats[name].view(-1)[at] = torch.nan
    got, expected = outputs(case, place(case, generator, data))
    assert torch.equal(kinds(got), kinds(expected)), (name, at)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@these_and_others
@fuzz(30)
@given(data=st.data())
def test_same_bits(op: str, dtype: torch.dtype, data: st.DataObject) -> None:
    """Poisoned memory, any views, two threads and another layout change no bit; pads and inputs stay what they were.

    Without projections around `dot_target_attention`: their last bits are PyTorch's.
    """
    generator = data.draw(generators)
    case = draw_case(op, data, generator, bare=True)
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


@these_and_others
@fuzz(60)
@given(data=st.data())
def test_any_offsets_and_lengths(op: str, data: st.DataObject) -> None:
    """Valid ones run, and everything else is refused by name: no value reads or writes out of bounds."""
    generator = data.draw(generators)
    layout = data.draw(st.sampled_from(["jagged", "lengths"]))
    counts = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    case: Any
    if op == "dot_target_attention":
        case = dot_cases.make(dot_cases.Config(layout=layout, counts=tuple(counts)), generator)
    elif op == "unit_statistics":
        case = statistics_cases.make(statistics_cases.Config(layout=layout, counts=tuple(counts)), generator)
    else:
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
