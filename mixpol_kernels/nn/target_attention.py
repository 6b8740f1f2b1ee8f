"""`TargetAttention`: the DIN activation unit with its layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mixpol_kernels.checks import check_choice
from mixpol_kernels.ops.target_attention.api import target_attention
from mixpol_kernels.ops.target_attention.autograd import ACTIVATIONS, NORMALIZERS


class TargetAttention(nn.Module):
    """Target attention with the DIN activation unit; see `mixpol_kernels.target_attention` for the formula.

    Args:
        embedding_dim: width D of target and history.
        hidden_units: one to three hidden layers.
        activation: "relu", "prelu" (one slope per unit, starting at 0.25), "sigmoid" or "silu".
        normalize: "none" or "softmax".
        backend: "auto", "cpu" or "reference".

    Attributes:
        layers: ordinary `nn.Linear` in order: 4 D to H_1 (inputs [t, x, t - x, t * x]), ..., H_last to 1.
        slopes: for "prelu", one [H_i] parameter per hidden layer; otherwise empty.

    Example:
        >>> import torch
        >>> from mixpol_kernels.nn import TargetAttention
        >>> layer = TargetAttention(8, [16], activation="relu")
        >>> layer(torch.randn(2, 8), torch.randn(2, 5, 8), lengths=torch.tensor([5, 2])).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        embedding_dim: int,
        hidden_units: Sequence[int] = (64,),
        activation: str = "relu",
        normalize: str = "none",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("normalize", normalize, NORMALIZERS)
        if not 1 <= len(hidden_units) <= 3:
            raise ValueError(f"hidden_units was {list(hidden_units)}; expected one to three layer widths")
        widths = [4 * embedding_dim, *hidden_units, 1]
        self.embedding_dim = embedding_dim
        self.activation = activation
        self.normalize = normalize
        self.backend = backend
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        slopes = hidden_units if activation == "prelu" else ()
        self.slopes = nn.ParameterList(nn.Parameter(torch.full((units,), 0.25)) for units in slopes)

    def unit(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Weights, biases and slopes, as the op takes them."""
        layers = cast("list[nn.Linear]", list(self.layers))
        return (
            [m.weight for m in layers],
            [m.bias for m in layers],
            list(self.slopes) if self.activation == "prelu" else [],
        )

    def forward(
        self,
        target: Tensor,
        history: Tensor,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Target [B, D] or [B, M, D] and history [B, L, D] or [N, D] to pooled, shaped like the target."""
        weights, biases, slopes = self.unit()
        return target_attention(
            target, history, weights, biases, activation=self.activation, slopes=slopes,
            normalize=self.normalize, offsets=offsets, lengths=lengths, mask=mask,
            return_weights=return_weights, backend=self.backend,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, normalize={self.normalize!r}, backend={self.backend!r}"
