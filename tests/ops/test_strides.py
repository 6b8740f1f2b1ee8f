"""Contract 7: any strided view gives, bitwise, what its contiguous copy gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from views import VIEWS

from mixpol_kernels.testing.configurations import CHOICES, config, pairwise
from mixpol_kernels.testing.inputs import OPS, Config, make


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_holes"])
@pytest.mark.parametrize("op", OPS)
def test_views_of_every_input(
    op: str, layout: str, view: Callable[[Tensor], Tensor], generator: torch.Generator
) -> None:
    for width, hidden, candidates, more in (
        (16, (36,), None, {}), (7, (8, 5), 3, {"gate_inputs": "full", "n_extra": 3}),
    ):  # fmt: skip
        base = Config(
            op=op, layout=layout, width=width, hidden=hidden, candidates=candidates, activation="prelu",
            normalize="softmax", **more,
        )  # fmt: skip
        case = make(base, generator)
        where = case.place(generator)
        expected = case.run("cpu", where)
        names: list[str] = []

        def everything(name: str, tensor: Tensor, names: list[str] = names) -> Tensor:
            names.append(name)
            return view(tensor)

        for name, value in case.run("cpu", where, view=everything).items():
            assert torch.equal(value, expected[name]), f"{name}, all inputs {view.__name__}"
        for one in dict.fromkeys(names):
            got = case.run("cpu", where, view=lambda n, t, one=one: view(t) if n == one else t)
            for name, value in got.items():
                assert torch.equal(value, expected[name]), f"{name}, {one} {view.__name__}"


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("op", OPS)
def test_reference_takes_views(op: str, view: Callable[[Tensor], Tensor], generator: torch.Generator) -> None:
    case = make(Config(op=op, layout="mask_holes", activation="silu", gate_inputs="full", n_extra=3), generator)
    where = case.place(generator)
    expected = case.run("reference", where, torch.float64)
    for name, value in case.run("reference", where, torch.float64, view=lambda _, t: view(t)).items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("op", OPS)
def test_random_views(op: str, generator: torch.Generator, source: Any) -> None:
    """A random view of each input, over a sample of configurations."""
    for choice in source.sample(pairwise(CHOICES[op]), 8):
        case = make(config(op, choice), generator)
        where = case.place(generator)
        expected = case.run("cpu", where)
        got = case.run("cpu", where, view=lambda _, t: source.choice(VIEWS)(t))
        for name, value in got.items():
            assert torch.equal(value, expected[name]), f"{name} at {case.config}"


def expand(tensor: Tensor, *dims: int) -> Tensor:
    """Stride 0 along `dims`: the first element stands for all."""
    for dim in dims:
        tensor = tensor.narrow(dim, 0, 1).expand(tensor.shape)
    return tensor


EXPANSIONS = {
    "target": [(0,), (-1,), (0, 1)],
    "tokens": [(0,), (1,), (-1,), (0, 1, 2)],
    "history": [(0,), (1,), (-1,), (0, 1, 2)],
    "item_ids": [(0,), (1,), (0, 1)],
    "polarity": [(0,), (1,), (0, 1)],
    "extra_ids": [(0,), (1,), (0, 1)],
    "mask": [(0,), (1,)],
    "item_table": [(0,), (1,)],
    "polarity_table": [(0,), (1,), (0, 1)],
    "extra_table": [(0,), (1,), (0, 1)],
    "weights": [(0,), (1,)],
    "biases": [(0,)],
    "slopes": [(0,)],
    "gate": [(0,)],
    "sign": [(0,)],
}


@pytest.mark.parametrize("op", OPS)
def test_expanded_inputs(op: str, generator: torch.Generator) -> None:
    """Broadcast views: one value for all users, all tokens, all units, ...; and the stride-0 grad of sum()."""
    config = Config(op=op, layout="mask_holes", width=8, activation="prelu", gate_inputs="full", n_extra=2)
    case = make(config, generator)
    # No wild values in the pads: they would be what an expanded dimension repeats.
    arguments = {
        k: v.nan_to_num() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in case.arguments(case.place(generator)).items()
    }
    for name in ("item_ids", "polarity", "extra_ids"):
        if isinstance(arguments.get(name), Tensor):
            arguments[name] = arguments[name].clamp(0, 1)

    def run(changed: dict[str, Any]) -> list[Tensor]:
        leaves = []
        for key, value in changed.items():
            entries = value if isinstance(value, list) else [value]
            for i, tensor in enumerate(entries):
                if isinstance(tensor, Tensor) and tensor.is_floating_point() and key != "sign":
                    entries[i] = tensor.detach().requires_grad_()
                    leaves.append(entries[i])
            changed[key] = entries if isinstance(value, list) else entries[0]
        out = case.call(changed, "cpu")
        out.sum().backward()
        return [out.detach(), *[t.grad for t in leaves]]

    for name, cases in EXPANSIONS.items():
        if arguments.get(name) is None:
            continue
        for dims in cases:
            pair = []
            for copy in (False, True):
                value = arguments[name]
                value = [expand(t, *dims) for t in value] if isinstance(value, list) else expand(value, *dims)
                if copy:
                    value = [t.clone() for t in value] if isinstance(value, list) else value.clone()
                    if isinstance(value, Tensor):
                        value = value.contiguous()
                changed = {k: list(v) if isinstance(v, list) else v for k, v in arguments.items()}
                pair.append(run({**changed, name: value}))
            for got, expected in zip(*pair, strict=True):
                assert torch.equal(got, expected), (name, dims)


@pytest.mark.parametrize("op", OPS)
def test_mask_of_any_dtype(op: str, backend: str, generator: torch.Generator) -> None:
    """Nonzero is kept."""
    case = make(Config(op=op, layout="mask_holes"), generator)
    arguments = case.arguments(case.place(generator))
    expected = case.call(arguments, backend)
    for dtype in (torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64):
        got = case.call({**arguments, "mask": arguments["mask"].to(dtype) * 3}, backend)
        assert torch.equal(got, expected)
