"""Implementations of the DIN activation unit over the weights of one `TargetAttention`.

    concat              as most libraries do: [t, x, t-x, t*x] is written out, 4 D wide, then ordinary layers
    concat+compile      torch.compile of it
    refactored          W [t; x; t-x; t*x] + b = x · G(t) + c(t), in PyTorch
    refactored+compile  torch.compile of it: the honest baseline
    fused               mixpol_kernels.nn.TargetAttention(backend="cpu")
    mean pool           a control, not the same function: the cost of reading and pooling the history

Every unit takes (target [B, D], history [B, L, D], padding) and gives pooled [B, D].
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixpol_kernels.library import library
from mixpol_kernels.nn import TargetAttention
from mixpol_models.bench.padding import Padding, masked_mean


class Unit(nn.Module):
    """A form over the weights of `attention`."""

    # Whether torch.compile has to expect another shape in every batch.
    dynamic = False
    # Whether pads are left out: then they cannot be in the statistics of a layer that is normalised, and a softmax
    # over each user's tokens would need a form of its own.
    skips_pads = False

    def __init__(self, attention: TargetAttention) -> None:
        super().__init__()
        if attention.activation not in _FORMS or attention.normalize not in ("none", "softmax"):
            raise ValueError(
                f"attention has activation {attention.activation!r} and normalize {attention.normalize!r}; expected "
                f"one of {', '.join(_FORMS)} and 'none' or 'softmax'"
            )
        self.attention = attention

    def activate(self, layer: int, hidden: Tensor) -> Tensor:
        """The activation behind hidden layer `layer`, with the functions that models use."""
        if self.attention.activation == "prelu":
            return F.prelu(hidden.flatten(0, -2), self.attention.slopes[layer]).view(hidden.shape)
        if self.attention.activation == "dice":
            # Statistics over all rows, pads included, as FuxiCTR, DeepCTR-Torch and TorchEasyRec have them.
            normalised = self.attention.norms[layer](hidden.flatten(0, -2)).view(hidden.shape)
            p = torch.sigmoid(normalised)
            return hidden * (p + self.attention.slopes[layer] * (1 - p))
        return _ACTIVATIONS[self.attention.activation](hidden)

    def weigh(self, scores: Tensor, padding: Padding) -> Tensor:
        """Weights [B, L] of scores [B, L], 0 at pads."""
        if self.attention.normalize == "softmax":
            return scores.masked_fill(padding.mask == 0, -torch.inf).softmax(dim=-1)
        return scores * padding.mask


class Concat(Unit):
    """The activation unit as FuxiCTR and torch-rechub write it, on padded [B, L, D] with a mask."""

    def forward(self, target: Tensor, history: Tensor, padding: Padding) -> Tensor:
        t = target.unsqueeze(1).expand(-1, history.shape[1], -1)
        hidden = torch.cat([t, history, t - history, t * history], dim=-1)
        *layers, last = self.attention.layers
        for i, layer in enumerate(layers):
            hidden = self.activate(i, layer(hidden))
        weights = self.weigh(last(hidden).squeeze(-1), padding)
        return (weights.unsqueeze(-1) * history).sum(dim=1)


class Refactored(Unit):
    """Base of the refactored forms: blocks of the first layer, scores from its pre-activations."""

    def blocks(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(W_k - W_d [H, D], W_p [H, D], c(t) [B, H])."""
        first = self.attention.layers[0]
        w_q, w_k, w_d, w_p = first.weight.chunk(4, dim=1)
        return w_k - w_d, w_p, F.linear(target, w_q + w_d, first.bias)

    def scores(self, hidden: Tensor) -> Tensor:
        """From the first layer's pre-activation [..., H] to one score a position, [...]."""
        _, *between, last = self.attention.layers
        hidden = self.activate(0, hidden)
        for i, layer in enumerate(between, start=1):
            hidden = self.activate(i, layer(hidden))
        # As a linear layer this is a BLAS call for one column, which torch.compile cannot fuse with the
        # activation: the whole form would be half as fast. Eager, both take the same time.
        return (hidden * last.weight[0]).sum(dim=-1) + last.bias


class PerTarget(Refactored):
    """One matrix G(t) [D, H] and one vector c(t) [H] a user, then one batched product."""

    def forward(self, target: Tensor, history: Tensor, padding: Padding) -> Tensor:
        w_x, w_p, offset = self.blocks(target)
        matrix = w_x.t() + target.unsqueeze(2) * w_p.t()
        weights = self.weigh(self.scores(torch.bmm(history, matrix) + offset.unsqueeze(1)), padding)
        return torch.bmm(weights.unsqueeze(1), history).squeeze(1)


class SharedWeight(Refactored):
    """[x; t*x] against [(W_k - W_d); W_p], as two products for the whole batch and no concatenation."""

    def forward(self, target: Tensor, history: Tensor, padding: Padding) -> Tensor:
        w_x, w_p, offset = self.blocks(target)
        hidden = F.linear(history, w_x) + F.linear(target.unsqueeze(1) * history, w_p) + offset.unsqueeze(1)
        weights = self.weigh(self.scores(hidden), padding)
        return torch.bmm(weights.unsqueeze(1), history).squeeze(1)


class Packed(Refactored):
    """No work on pads: the shared-weight form on the kept tokens [T, D] only. T is another in every batch."""

    dynamic = True
    skips_pads = True

    def forward(self, target: Tensor, history: Tensor, padding: Padding) -> Tensor:
        w_x, w_p, offset = self.blocks(target)
        tokens = history.flatten(0, 1).index_select(0, padding.position)
        product = target.index_select(0, padding.user) * tokens
        hidden = F.linear(tokens, w_x) + F.linear(product, w_p) + offset.index_select(0, padding.user)
        weighted = self.scores(hidden).unsqueeze(-1) * tokens
        return torch.zeros_like(target).index_add(0, padding.user, weighted)


class Reference(nn.Module):
    """The package's own spec, for the gate. Not in the ladder: no model is written like that."""

    backend = "reference"

    def __init__(self, attention: TargetAttention) -> None:
        super().__init__()
        # A shallow copy: it has its own `backend` and shares the parameters.
        self.attention = copy.copy(attention)
        self.attention.backend = self.backend

    def forward(self, target: Tensor, history: Tensor, padding: Padding) -> Tensor:
        pooled: Tensor = self.attention(target, history, lengths=padding.lengths)
        return pooled


class Fused(Reference):
    """The compiled kernel.

    Raises:
        RuntimeError: there is no compiled library.
    """

    backend = "cpu"

    def __init__(self, attention: TargetAttention) -> None:
        super().__init__(attention)
        if not library.loaded:
            raise RuntimeError(f"the fused implementation needs the compiled kernels (backend='cpu'): {library.reason}")


class MeanPool(Unit):
    """The control: the masked mean of the history."""

    def forward(self, target: Tensor, history: Tensor, padding: Padding) -> Tensor:
        return masked_mean(history, padding.mask)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}
_FORMS = (*_ACTIVATIONS, "prelu", "dice")


@dataclass(frozen=True)
class Implementation:
    """One implementation of the ladder.

    Attributes:
        name: as in the tables.
        variants: ways to write it, by name; all are measured and the fastest stands for the implementation.
        compiled: through `torch.compile`, with static shapes unless the unit is `dynamic`.
        control: not the same function: checked against a float64 run of itself instead of the reference.
    """

    name: str
    variants: Mapping[str, Callable[[TargetAttention], nn.Module]]
    compiled: bool = False
    control: bool = False

    def build(self, variant: str, attention: TargetAttention) -> nn.Module:
        """The module that runs: `variant` over the weights of `attention`."""
        unit = self.variants[variant](attention)
        return torch.compile(unit, dynamic=getattr(unit, "dynamic", False)) if self.compiled else unit


_REFACTORED = {"per target": PerTarget, "shared": SharedWeight, "packed": Packed}
IMPLEMENTATIONS: dict[str, Implementation] = {
    implementation.name: implementation
    for implementation in (
        Implementation("concat", {"": Concat}),
        Implementation("concat+compile", {"": Concat}, compiled=True),
        Implementation("refactored", _REFACTORED),
        Implementation("refactored+compile", _REFACTORED, compiled=True),
        Implementation("fused", {"": Fused}),
        Implementation("mean pool", {"": MeanPool}, control=True),
    )
}
