"""Differential fuzzing of `dice_attention`: the strategies of the other ops, the float64 reference judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from poison import poisoned
from test_fuzz import all_finite, counts_for, fuzz, generators, kinds, wild_integers
from torch import Tensor
from views import VIEWS

from mixpol_kernels.ops.target_attention._dice.api import Attended, dice_attention
from mixpol_kernels.ops.unit import BLOCKS
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.configurations import CHOICES, UNITS, WIDTHS
from mixpol_kernels.testing.inputs import rounded_once
from mixpol_kernels.testing.layouts import LAYOUTS, Placement, place

LISTS = ("weights", "biases")
# Far below and above 1: beyond, plain PyTorch rounds a spread away that its own mean hides.
REACH = 3


@dataclass(frozen=True)
class Config:
    """One random call. `pads`: `pad_to` is so much more than the longest history; None: no pads."""

    op: str = "dice_attention"
    has_unit: bool = True
    layout: str = "jagged"
    counts: tuple[int, ...] = (3, 0, 7)
    width: int = 10
    hidden: tuple[int, ...] = (13,)
    candidates: int | None = None
    normalize: str = "none"
    scale: float = 1.0
    blocks: tuple[str, ...] = BLOCKS
    pads: int | None = None
    affine: bool = True
    eps: float = 1e-3
    index_dtype: torch.dtype = torch.int64


@dataclass(frozen=True)
class Case:
    """Inputs in ragged form, "history" [N, D], float32, and the gradients of pooled and of the weights [N, M]."""

    config: Config
    floats: dict[str, Tensor]
    grads: tuple[Tensor, Tensor]

    @property
    def counts(self) -> tuple[int, ...]:
        return self.config.counts

    def place(self, generator: torch.Generator, layout: str | None = None) -> Placement:
        return place(self.counts, layout or self.config.layout, generator, index_dtype=self.config.index_dtype)

    def arguments(
        self,
        where: Placement,
        dtype: torch.dtype = torch.float32,
        view: Callable[[str, Tensor], Tensor] | None = None,
        requires_grad: bool = False,
    ) -> dict[str, Any]:
        view = view or (lambda _, tensor: tensor)
        config = self.config
        arguments: dict[str, Any] = {name: view(name, tensor) for name, tensor in where.arguments.items()}
        arguments |= {"weights": [], "biases": []}
        for name, tensor in self.floats.items():
            tensor = where.spread(tensor) if name == "history" else tensor.clone()
            leaf = view(name, tensor.to(dtype)).detach().requires_grad_(requires_grad)
            prefix = name.split("[")[0]
            if prefix in LISTS:
                arguments[prefix].append(leaf)
            else:
                arguments[name] = leaf
        arguments |= {key: getattr(config, key) for key in ("normalize", "scale", "blocks", "eps")}
        arguments["pad_to"] = None if config.pads is None else max(self.counts, default=0) + config.pads
        return arguments

    def call(self, arguments: dict[str, Any], backend: str) -> Attended:
        return dice_attention(**arguments, backend=backend, return_weights=True)

    def run(
        self,
        backend: str,
        where: Placement,
        dtype: torch.dtype = torch.float32,
        view: Callable[[str, Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Results and gradients by name; what has a row a token in ragged form."""
        arguments = self.arguments(where, dtype, view, requires_grad=True)
        found = self.call(arguments, backend)
        assert found.attention is not None
        grad_pooled, grad_attention = (grad.to(dtype) for grad in self.grads)
        torch.autograd.backward([found.pooled, found.attention], [grad_pooled, where.spread(grad_attention)])
        results = {
            "pooled": found.pooled.detach(), "attention": where.gather(found.attention.detach()),
            "mean": found.mean, "variance": found.variance,
        }  # fmt: skip
        for name in self.floats:
            prefix, _, index = name.partition("[")
            grad = arguments[prefix][int(index[:-1])].grad if index else arguments[name].grad
            if name == "history":
                assert not where.pads(grad).count_nonzero(), "gradient at pads"
                grad = where.gather(grad)
            results[f"grad {name}"] = grad
        return results

    def jitter(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Case:
        """The same problem a few units in the last place of `dtype` away."""
        eps = 2 * torch.finfo(dtype).eps
        floats = {n: t * (1 + eps * torch.randn(t.shape, generator=generator)) for n, t in self.floats.items()}
        return replace(self, floats=floats)

    def rounded_once(self, generator: torch.Generator) -> Case:
        """Every float of it one rounding to float32 away, in float64."""
        floats = {name: rounded_once(t, generator) for name, t in self.floats.items()}
        return replace(self, floats=floats, grads=tuple(rounded_once(g, generator) for g in self.grads))


def make(config: Config, generator: torch.Generator) -> Case:
    """Draws a case."""

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    several = () if config.candidates is None else (config.candidates,)
    tokens, (units,), inputs = sum(config.counts), config.hidden, len(config.blocks) * config.width
    floats = {
        "target": normal(len(config.counts), *several, config.width),
        "history": normal(tokens, config.width),
        "weights[0]": normal(units, inputs, scale=inputs**-0.5),
        "weights[1]": normal(1, units, scale=units**-0.5),
        "biases[0]": normal(units, scale=0.5),
        "biases[1]": normal(1),
        "alpha": normal(units),
    }
    if config.affine:
        floats |= {"norm_weight": normal(units), "norm_bias": normal(units)}
    return Case(config, floats, (normal(*floats["target"].shape), normal(tokens, *several)))


@st.composite
def configs(draw: st.DrawFn) -> Config:
    choices = {k: v for k, v in CHOICES["target_attention"].items() if k in Config.__dataclass_fields__}
    chosen = {name: draw(st.sampled_from(values)) for name, values in choices.items() if name != "width"}
    return Config(
        **chosen,
        counts=draw(counts_for(chosen["layout"])),
        width=draw(st.sampled_from(WIDTHS)),
        hidden=(draw(st.sampled_from(UNITS)),),
        pads=draw(st.sampled_from([None, 0, 7])),
        affine=draw(st.booleans()),
        eps=draw(st.sampled_from([1e-9, 1e-3])),
    )


def well_posed(case: Case, where: Placement) -> bool:
    """No unit whose spread is rounding: its normalised values are, then, in plain PyTorch too."""
    with torch.no_grad():
        found = case.call(case.arguments(where, torch.float64), "reference")
    return bool((found.mean**2 <= 16 * found.variance).all())


@fuzz(60)
@given(data=st.data())
def test_within_budget(data: st.DataObject) -> None:
    generator = data.draw(generators)
    case = make(data.draw(configs()), generator)
    where = case.place(generator)
    assume(well_posed(case, where))
    lines = budget.over_budget(case, where, generator)  # type: ignore[arg-type]
    assert not lines, "\n".join(lines)


@fuzz(40)
@given(data=st.data())
def test_magnitudes(data: st.DataObject) -> None:
    """One input far from 1."""
    generator = data.draw(generators)
    case = make(data.draw(configs()), generator)
    prefix = data.draw(st.sampled_from(sorted({name.split("[")[0] for name in case.floats})))
    factor = 10.0 ** data.draw(st.integers(-REACH, REACH))
    floats = {name: t * factor if name.split("[")[0] == prefix else t for name, t in case.floats.items()}
    case = replace(case, floats=floats)
    where = case.place(generator)
    assume(well_posed(case, where) and all_finite(case.run("reference", where, torch.float32)))
    lines = budget.over_budget(case, where, generator)  # type: ignore[arg-type]
    assert not lines, f"{prefix} * {factor}\n" + "\n".join(lines)


@fuzz(40)
@given(data=st.data())
def test_nan(data: st.DataObject) -> None:
    """One NaN anywhere: NaN in the same places as in the reference."""
    generator = data.draw(generators)
    case = make(data.draw(configs()), generator)
    name = data.draw(st.sampled_from(sorted(case.floats)))
    assume(case.floats[name].numel())
    case.floats[name].view(-1)[data.draw(st.integers(0, case.floats[name].numel() - 1))] = torch.nan
    where = case.place(generator)
    with torch.no_grad():
        got, expected = (case.call(case.arguments(where), backend) for backend in ("cpu", "reference"))
    for result in ("pooled", "attention", "mean", "variance"):
        assert torch.equal(kinds(getattr(got, result)), kinds(getattr(expected, result))), (name, result)


@fuzz(30)
@given(data=st.data())
def test_same_bits(data: st.DataObject) -> None:
    """Poisoned memory, any views, two threads and another layout change no bit."""
    generator = data.draw(generators)
    case = make(data.draw(configs()), generator)
    where = case.place(generator)
    expected = case.run("cpu", where)

    def compare(got: dict[str, Tensor], what: str) -> None:
        for name, value in expected.items():
            assert torch.equal(got[name], value), f"{name} differs: {what}, {case.config}"

    with poisoned():
        compare(case.run("cpu", where), "memory poisoned")
    view = data.draw(st.sampled_from(VIEWS))
    compare(case.run("cpu", where, view=lambda _, tensor: view(tensor)), "views")
    torch.set_num_threads(2)
    try:
        compare(case.run("cpu", where), "two threads")
    finally:
        torch.set_num_threads(1)
    equal = len(set(case.counts)) <= 1
    other = data.draw(st.sampled_from([name for name in LAYOUTS if equal or name != "full"]))
    compare(case.run("cpu", case.place(generator, other)), f"layout {other}")


@fuzz(40)
@given(data=st.data())
def test_any_offsets_and_lengths(data: st.DataObject) -> None:
    """Valid ones run, and everything else is refused by name."""
    generator = data.draw(generators)
    name, layout = data.draw(st.sampled_from([("offsets", "jagged"), ("lengths", "lengths")]))
    counts = tuple(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5)))
    case = make(Config(layout=layout, counts=counts), generator)
    arguments = case.arguments(case.place(generator))
    value = arguments[name]
    value[data.draw(st.integers(0, len(value) - 1))] = data.draw(wild_integers | st.integers(0, sum(counts)))
    if name == "offsets":
        good = int(value[0]) == 0 and int(value[-1]) == sum(counts) and bool((value.diff() >= 0).all())
    else:
        good = bool(((value >= 0) & (value <= max(counts))).all())
    if good:
        arguments["history"] = arguments["history"].nan_to_num(0, 0, 0)  # positions that were pads may be read now
        assert case.call(arguments, "cpu").pooled.isfinite().all()
    else:
        with pytest.raises(RuntimeError, match=name):
            case.call(arguments, "cpu")
