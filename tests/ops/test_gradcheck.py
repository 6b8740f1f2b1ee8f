"""float64 inputs run the reference, whose gradients are those of finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mixpol_kernels.ops.target_attention._statistics.api import unit_statistics
from mixpol_kernels.testing.inputs import OPS, Config, make

CONFIGS = [
    *[Config(op=op, counts=(3, 0, 2), width=3, hidden=(4,), items=4) for op in OPS],
    Config(op="target_attention", counts=(3, 2), width=3, hidden=(4, 2), activation="dice", normalize="softmax"),
    Config(op="target_attention", counts=(3, 2), width=3, hidden=(4, 5), activation="dice_row"),
    Config(op="target_attention", counts=(3, 2), width=3, hidden=(9, 7), activation="silu", dropout=0.3),
    Config(
        op="target_attention", counts=(3, 2), width=3, hidden=(4,), activation="gelu", normalize="sigmoid", scale=0.5
    ),
    Config(
        counts=(2, 1), width=3, hidden=(4,), items=4, gate_inputs="full", n_extra=2, candidates=2, activation="tanh"
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.op}-{c.activation}-{c.normalize}")
def test_gradcheck(config: Config, generator: torch.Generator) -> None:
    case = make(config, generator)
    arguments = case.arguments(case.place(generator), torch.float64, requires_grad=True)
    names = [(k, i) for k, v in arguments.items() for i in range(len(v) if isinstance(v, list) else 1)]
    leaves = [(k, i) for k, i in names if _leaf(arguments, k, i)]

    def call(*values: Tensor) -> Any:
        given = {k: list(v) if isinstance(v, list) else v for k, v in arguments.items()}
        for (k, i), value in zip(leaves, values, strict=True):
            if isinstance(given[k], list):
                given[k][i] = value
            else:
                given[k] = value
        if case.config.has_unit:
            return case.call(given, return_weights=True)
        return case.call(given)

    assert torch.autograd.gradcheck(call, [_value(arguments, k, i) for k, i in leaves])


def test_unit_statistics(generator: torch.Generator) -> None:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    inputs = (normal(2, 3), normal(5, 3), normal(4, 12), normal(2, 4), normal(4), normal(2))

    def call(target: Tensor, history: Tensor, w1: Tensor, w2: Tensor, b1: Tensor, b2: Tensor) -> Any:
        found = unit_statistics(
            target, history, [w1, w2], [b1, b2], activation="silu", pad_to=4, offsets=torch.tensor([0, 3, 5])
        )
        return found.mean, found.variance

    assert torch.autograd.gradcheck(call, inputs)


def _value(arguments: dict[str, Any], name: str, i: int) -> Any:
    value = arguments[name]
    return value[i] if isinstance(value, list) else value


def _leaf(arguments: dict[str, Any], name: str, i: int) -> bool:
    value = _value(arguments, name, i)
    return isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad and name != "sign"
