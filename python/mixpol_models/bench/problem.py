"""One shape of the ladder: the inputs, the weights that every rung shares, and the exact answer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mixpol_kernels.nn import TargetAttention
from mixpol_models.bench.gate import plain_errors, short
from mixpol_models.bench.kinks import near_kink
from mixpol_models.bench.padding import Padding, pad_right
from mixpol_models.bench.rungs import Concat, Reference

# Bytes of [tokens, 4 D] float64 that the exact answer works on at a time.
_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Problem:
    """Inputs of one ladder shape, padded on the right.

    Attributes:
        attention: the weights of every rung, float32.
        target: [B, D] leaf with gradient.
        history: [B, L, D] leaf with gradient; pads are zeros, as `padding_idx` leaves them.
        padding: lengths uniform in 1 ... L.
        upstream: [B, D], the gradient that comes back from the model behind.
    """

    attention: TargetAttention
    target: Tensor
    history: Tensor
    padding: Padding
    upstream: Tensor

    def leaves(self) -> dict[str, Tensor]:
        """Everything that gets a gradient, by name."""
        return {"target": self.target, "history": self.history, **dict(self.attention.named_parameters())}

    def inputs(self) -> list[Tensor]:
        """Every tensor that exists before a rung runs."""
        return [*self.leaves().values(), *self.padding, self.upstream]

    def clear(self) -> None:
        """Drops the gradients."""
        for leaf in self.leaves().values():
            leaf.grad = None

    def forward(self, unit: nn.Module) -> Tensor:
        """Pooled [B, D] of one rung."""
        pooled: Tensor = unit(self.target, self.history, self.padding)
        return pooled

    def step(self, unit: nn.Module) -> Tensor:
        """Forward and backward of one rung; the gradients are in the leaves. Call `clear` first."""
        pooled = self.forward(unit)
        pooled.backward(self.upstream)
        return pooled

    def answer(self, unit: nn.Module) -> dict[str, Tensor]:
        """`step`, as {"output": ..., leaf: gradient} for the gate, without leaves that have no gradient."""
        self.clear()
        answer = {"output": self.step(unit).detach()}
        answer |= {name: leaf.grad for name, leaf in self.leaves().items() if leaf.grad is not None}
        self.clear()
        for name, kept in self.kept().items():
            if name in answer:
                answer[name] = answer[name] * kept
        return answer

    def kept(self) -> dict[str, Tensor]:
        """Where gradients count: with pads in the statistics of a normalised layer, padded forms give pads some."""
        return {"history": self.padding.mask[..., None]} if len(self.attention.norms) else {}

    def exact(self) -> dict[str, Tensor]:
        """The float64 reference's answer, a few users at a time so that memory stays small."""
        attention = copy.deepcopy(self.attention).double()
        attention.backend = "reference"
        attention.zero_grad()
        target = self.target.detach().double().requires_grad_()
        batch, length, width = self.history.shape
        outputs, grad_history = [], []
        users = max(1, _CHUNK_BYTES // (length * width * 4 * 8))
        if len(attention.norms):
            users = batch  # the statistics are of the whole batch
        for start in range(0, batch, users):
            part = slice(start, start + users)
            history = self.history.detach()[part].double().requires_grad_()
            pooled = attention(target[part], history, lengths=self.padding.lengths[part])
            pooled.backward(self.upstream[part].double())
            outputs.append(pooled.detach())
            grad_history.append(history.grad)
        return {
            "output": torch.cat(outputs),
            "target": target.grad,
            "history": torch.cat(grad_history),
            **{name: parameter.grad for name, parameter in attention.named_parameters()},
        }

    def plain_errors(self, exact: Mapping[str, Tensor]) -> dict[str, float]:
        """Errors of plain float32 PyTorch, for the gate."""
        units = (Concat(self.attention), Reference(self.attention))
        forms = [partial(self.forward, unit) for unit in units]
        return plain_errors(forms, self.leaves(), self.upstream, exact, self.kept())


def make_problem(
    length: int,
    batch: int = 256,
    width: int = 64,
    hidden: int | Sequence[int] = 64,
    activation: str = "relu",
    seed: int = 0,
) -> Problem:
    """A seeded problem: normal vectors, the usual initialization of `nn.Linear`, lengths uniform in 1 ... L.

    Args:
        length: padded length L.
        batch: users B.
        width: embedding width D.
        hidden: units of the hidden layer, or of each of several.
        activation: "relu", "prelu", "sigmoid", "silu" or "dice" (in training, pads in the statistics).
        seed: of everything random. The global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden_units = [hidden] if isinstance(hidden, int) else list(hidden)
        attention = TargetAttention(width, hidden_units, activation, pads_in_norm=activation == "dice")
        if activation == "dice":
            for slope in attention.slopes:
                nn.init.uniform_(slope, -0.5, 0.5)  # at its start, 0, errors of its gradient's path would not show
        target, upstream = torch.randn(batch, width), short(torch.randn(batch, width))
        padding = pad_right(torch.randint(1, length + 1, (batch,)), length)
        user, position = padding.user, padding.position
        history = torch.zeros(batch * length, width)
        exact = copy.deepcopy(attention).double()
        while user.numel():
            tokens = torch.randn(user.numel(), width)
            history[position] = tokens
            again = near_kink(exact, target[user].double(), tokens.double())
            user, position = user[again], position[again]
    history = history.view(batch, length, width)
    return Problem(attention, target.requires_grad_(), history.requires_grad_(), padding, upstream)
