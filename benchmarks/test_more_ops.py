"""The ops whose inputs are their own: softmax attention, batch statistics, Dice in training. Checked, then timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import mixpol_kernels as mk
from mixpol_kernels.ops.target_attention._dice.api import dice_attention
from mixpol_kernels.ops.target_attention._statistics.api import unit_statistics
from mixpol_models.bench.gate import budget, largest_error, short

WIDTH, UNITS, HEADS, TOKENS = 64, 64, 4, 4000
Leaves = dict[str, Tensor]


def statistics(leaves: Leaves, where: Mapping[str, Tensor], backend: str) -> Tensor:
    found = unit_statistics(
        leaves["target"], leaves["history"], [leaves["weight"]], [leaves["bias"]], backend=backend, **where
    )
    return torch.stack([found.mean, found.variance])


def dice(leaves: Leaves, where: Mapping[str, Tensor], backend: str) -> Tensor:
    weights, biases = [leaves["weight"], leaves["out"]], [leaves["bias"], leaves["out bias"]]
    return dice_attention(
        leaves["target"], leaves["history"], weights, biases, leaves["alpha"], backend=backend, **where
    ).pooled


def dot(leaves: Leaves, where: Mapping[str, Tensor], backend: str) -> Tensor:
    projections = {name: leaves[name] for name in ("w_q", "w_k", "w_v", "w_o")}
    pooled = mk.dot_target_attention(
        leaves["target"], leaves["history"], num_heads=HEADS, backend=backend, **projections, **where
    )
    assert isinstance(pooled, Tensor)
    return pooled


OPS: dict[str, tuple[Callable[[Leaves, Mapping[str, Tensor], str], Tensor], dict[str, tuple[int, ...]]]] = {
    "unit_statistics": (statistics, {"weight": (UNITS, 4 * WIDTH), "bias": (UNITS,)}),
    "dice_attention": (
        dice,
        {"weight": (UNITS, 4 * WIDTH), "bias": (UNITS,), "out": (1, UNITS), "out bias": (1,), "alpha": (UNITS,)},
    ),
    "dot_target_attention": (dot, dict.fromkeys(("w_q", "w_k", "w_v", "w_o"), (WIDTH, WIDTH))),
}


@pytest.fixture(scope="module", params=OPS)
def op(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=["jagged", "lengths"])
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
def test_op(measure: Callable[..., None], op: str, length: int, layout: str, backend: str, direction: str) -> None:
    call, parameters = OPS[op]
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    users = max(2, TOKENS // length)
    lengths = torch.randint(1, length + 1, (users,), generator=generator)
    tokens = int(lengths.sum())
    leaves = {"target": drawn(users, WIDTH)}
    leaves["history"] = drawn(tokens, WIDTH) if layout == "jagged" else drawn(users, length, WIDTH)
    leaves |= {name: drawn(*shape) / shape[-1] ** 0.5 for name, shape in parameters.items()}
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    where = {"offsets": offsets} if layout == "jagged" else {"lengths": lengths}
    upstream = short(drawn(*call(leaves, where, "reference").shape))

    def answer(dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
        own = {name: leaf.to(dtype).requires_grad_() for name, leaf in leaves.items()}
        output = call(own, where, backend)
        grads = torch.autograd.grad(output, list(own.values()), upstream.to(dtype))
        return {"output": output.detach(), **dict(zip(own, grads, strict=True))}

    if backend != "reference":
        exact, plain, got = (
            answer(torch.float64, "reference"), answer(torch.float32, "reference"), answer(torch.float32, backend),
        )  # fmt: skip
        for name, truth in exact.items():
            allowed = budget(name, largest_error(plain[name], truth), truth)
            assert largest_error(got[name], truth) <= allowed, name

    gradient = direction != "forward"
    own = {name: leaf.requires_grad_(gradient) for name, leaf in leaves.items()}

    def step() -> Any:
        output = call(own, where, backend)
        if gradient:
            output.backward(upstream)
        return output

    def clear() -> None:
        for leaf in own.values():
            leaf.grad = None

    name = f"{op}, {direction}, B={users} L={length} D={WIDTH}, {layout}"
    measure(name, step, clear, tokens=tokens, version=mk.__version__)
