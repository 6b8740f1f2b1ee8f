"""Problems for checking and timing GPU kernels: each op on random inputs, with errors against float64.

Activations are smooth, so that a unit within rounding of a kink does not count as an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

import mixpol_kernels as mk
from mixpol_models.bench.gate import MULTIPLES, budget, largest_error, short

ITEMS = 500
Leaves = Mapping[str, Tensor]
Call = Callable[[Leaves, Leaves, str], Tensor]


@dataclass(frozen=True)
class Size:
    """Histories of `users`, of lengths uniform in 1 ... `length`, padded to it."""

    users: int = 4096
    length: int = 200


@dataclass(frozen=True)
class Problem:
    """Inputs and the op on them: `call(leaves, others, backend)`.

    Attributes:
        leaves: float64 on the CPU, everything that gets a gradient.
        others: ids, polarity and lengths.
        call: the op.
        truth: what `shares` compares with, made once.
    """

    leaves: Leaves
    others: Leaves
    call: Call
    truth: dict[str, Tensor] = field(default_factory=dict)

    def on(self, device: torch.device, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Fresh leaves there, of values that every dtype has, and the others."""
        leaves = {n: v.bfloat16().to(dtype).to(device).requires_grad_() for n, v in self.leaves.items()}
        return leaves, {n: v.to(device) for n, v in self.others.items()}

    def run(self, backend: str, device: torch.device, dtype: torch.dtype, multiple: float = 1.0) -> dict[str, Tensor]:
        """Output and gradients, in float64 on the CPU; `multiple` of the upstream gradient, which it is divided by."""
        leaves, others = self.on(device, dtype)
        output = self.call(leaves, others, backend)
        upstream = short(torch.sin(torch.arange(output.numel(), dtype=torch.float64))) * multiple
        grads = torch.autograd.grad(output, list(leaves.values()), upstream.to(dtype).to(device).view(output.shape))
        exact = {name: grad.double().cpu() / multiple for name, grad in zip(leaves, grads, strict=True)}
        return {"output": output.detach().double().cpu(), **exact}

    def shares(self, backend: str, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
        """Errors in shares of what contract 1 allows, by the error of the reference in the same dtype."""
        if not self.truth:
            self.truth.update(self.run("reference", torch.device("cpu"), torch.float64))
        got = self.run(backend, device, dtype)
        # Several draws of rounding errors: that of a long sum, the gradient of a bias, may be small by luck. The
        # multiples are not exact in 16 bits.
        multiples = MULTIPLES if dtype == torch.float32 else MULTIPLES[:1]
        draws = [self.run("reference", device, dtype, multiple) for multiple in multiples]
        shares = {}
        for name, truth in self.truth.items():
            plain = max(largest_error(draw[name], truth) for draw in draws)
            shares[name] = largest_error(got[name], truth) / budget(name, plain, truth, dtype)
        return shares


class _Drawn:
    """Random inputs of a size, the same every time."""

    def __init__(self, size: Size, width: int) -> None:
        self.size, self.width = size, width
        self.generator = torch.Generator().manual_seed(0)
        self.lengths = self.integers(1, size.length + 1, size.users)

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def matrix(self, rows: int, columns: int) -> Tensor:
        return self.floats(rows, columns) / columns**0.5

    def tokens(self) -> dict[str, Tensor]:
        users, length = self.size.users, self.size.length
        return {"target": self.floats(users, self.width), "history": self.floats(users, length, self.width)}

    def unit(self, units: tuple[int, ...]) -> dict[str, Tensor]:
        leaves, columns = {}, 4 * self.width
        for i, rows in enumerate((*units, 1)):
            leaves |= {f"weight {i}": self.matrix(rows, columns), f"bias {i}": self.floats(rows)}
            columns = rows
        return leaves

    def gate(self) -> dict[str, Tensor]:
        width = self.width
        leaves = {"polarity table": self.floats(2, width), "gate": self.matrix(width, width)}
        return leaves | {"gate bias": self.floats(width), "pull": self.matrix(width, width)}

    def polarity(self) -> Tensor:
        return self.integers(0, 2, self.size.users, self.size.length)


def unit_problem(size: Size, width: int, units: tuple[int, ...], normalize: str = "none") -> Problem:
    """`target_attention` with silu."""
    drawn = _Drawn(size, width)
    leaves = drawn.tokens() | drawn.unit(units)

    def call(leaves: Leaves, others: Leaves, backend: str) -> Tensor:
        weights, biases = _layers(leaves)
        return _pooled(
            mk.target_attention(
                leaves["target"], leaves["history"], weights, biases, activation="silu", normalize=normalize,
                lengths=others["lengths"], backend=backend,
            )
        )  # fmt: skip

    return Problem(leaves, {"lengths": drawn.lengths}, call)


def dot_problem(size: Size, width: int) -> Problem:
    """`dot_target_attention` without projections."""
    drawn = _Drawn(size, width)

    def call(leaves: Leaves, others: Leaves, backend: str) -> Tensor:
        found = mk.dot_target_attention(leaves["target"], leaves["history"], lengths=others["lengths"], backend=backend)
        return _pooled(found)

    return Problem(drawn.tokens(), {"lengths": drawn.lengths}, call)


def fusion_problem(size: Size, width: int) -> Problem:
    """`polarity_fusion` with TAPF."""
    drawn = _Drawn(size, width)

    def call(leaves: Leaves, others: Leaves, backend: str) -> Tensor:
        return mk.polarity_fusion(
            leaves["target"], leaves["history"], others["polarity"], leaves["polarity table"], gate=_gate(leaves),
            lengths=others["lengths"], backend=backend,
        )  # fmt: skip

    leaves = drawn.tokens() | drawn.gate()
    return Problem(leaves, {"lengths": drawn.lengths, "polarity": drawn.polarity()}, call)


def mixed_problem(size: Size, width: int, units: tuple[int, ...]) -> Problem:
    """`mixed_polarity_attention` with TAPF and silu, from ids."""
    drawn = _Drawn(size, width)
    leaves = {"target": drawn.floats(size.users, width), "item table": drawn.floats(ITEMS, width)}
    leaves |= drawn.gate() | drawn.unit(units)
    ids = drawn.integers(0, ITEMS, size.users, size.length)

    def call(leaves: Leaves, others: Leaves, backend: str) -> Tensor:
        history, unit = (
            mk.History(others["ids"], lengths=others["lengths"]),
            mk.ActivationUnit(*_layers(leaves), "silu"),
        )
        fusion = mk.FusionParameters("tapf", leaves["polarity table"], _gate(leaves))
        table, polarity = leaves["item table"], others["polarity"]
        return _pooled(
            mk.mixed_polarity_attention(leaves["target"], history, polarity, table, unit, fusion, backend=backend)
        )

    return Problem(leaves, {"lengths": drawn.lengths, "polarity": drawn.polarity(), "ids": ids}, call)


def embedding_problem(size: Size, width: int) -> Problem:
    """`polarity_embedding` on padded ids; pads are zeros."""
    drawn = _Drawn(size, width)
    leaves = {"item table": drawn.floats(ITEMS, width), "polarity table": drawn.floats(2, width)}
    ids = drawn.integers(0, ITEMS, size.users, size.length)

    def call(leaves: Leaves, others: Leaves, backend: str) -> Tensor:
        return mk.polarity_embedding(
            others["ids"], others["polarity"], leaves["item table"], leaves["polarity table"],
            lengths=others["lengths"], backend=backend,
        )  # fmt: skip

    return Problem(leaves, {"lengths": drawn.lengths, "polarity": drawn.polarity(), "ids": ids}, call)


def _layers(leaves: Leaves) -> tuple[list[Tensor], list[Tensor]]:
    layers = range(sum(name.startswith("weight") for name in leaves))
    return [leaves[f"weight {i}"] for i in layers], [leaves[f"bias {i}"] for i in layers]


def _gate(leaves: Leaves) -> tuple[Tensor, Tensor, Tensor]:
    return leaves["gate"], leaves["gate bias"], leaves["pull"]


def _pooled(found: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    assert isinstance(found, Tensor)
    return found
