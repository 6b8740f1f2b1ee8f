"""`TargetAttention`: the DIN activation unit with its layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mixpol_kernels.checks import check_choice
from mixpol_kernels.ops.target_attention.api import BLOCKS, PUBLIC_ACTIVATIONS, target_attention
from mixpol_kernels.ops.target_attention.autograd import NORMALIZERS
from mixpol_kernels.ops.unit_statistics.api import unit_statistics


class TargetAttention(nn.Module):
    """Target attention with the DIN activation unit; see `mixpol_kernels.target_attention` for the formula.

    With activation "dice" (Deep Interest Network, arXiv 1706.06978, equation 3) or `batch_norm` the hidden layers
    are normalised: in training by the statistics of the batch, which update the running ones, in evaluation by the
    running ones. The statistics are over all tokens of the batch (of all candidates), each layer's after the
    other's, one pass each; see `mixpol_kernels.unit_statistics`.

    Args:
        embedding_dim: width D of target and history.
        hidden_units: one to three hidden layers.
        activation: "relu", "prelu" (one slope per unit, starting at 0.25), "leaky_relu", "sigmoid", "silu", "tanh",
            "gelu" or "dice" (one alpha per unit, starting at 0). RecBole's "dice" is "silu".
        normalize: "none", "softmax" or "sigmoid".
        backend: "auto", "cpu", "triton" or "reference".
        negative_slope: of "leaky_relu".
        scale: multiplies the scores before they are normalised.
        blocks: inputs of the first layer in order, some of "t", "x", "t-x", "t*x".
        batch_norm: normalise each hidden layer before its activation; not with "dice", which normalises itself.
        norm_eps, norm_momentum, norm_affine: of Dice's or the batch norm's statistics. Frameworks differ: FuxiCTR's
            Dice has 1e-9, 0.01, False; DeepCTR-Torch's 1e-8, 0.1, True; TorchEasyRec's 1e-5, 0.1, False.
        pads_in_norm: count padded positions as zero tokens in the statistics, as those frameworks do. The
            statistics, and so the outputs in training, then depend on how far the batch is padded.

    Attributes:
        layers: ordinary `nn.Linear` in order: len(blocks) D to H_1, ..., H_last to 1.
        slopes: for "prelu" and "dice", one [H_i] parameter per hidden layer; otherwise empty.
        norms: one `nn.BatchNorm1d` per hidden layer where they are normalised; otherwise empty.

    Example:
        >>> import torch
        >>> from mixpol_kernels.nn import TargetAttention
        >>> layer = TargetAttention(8, [16], activation="dice")
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
        *,
        negative_slope: float = 0.01,
        scale: float = 1.0,
        blocks: Sequence[str] = BLOCKS,
        batch_norm: bool = False,
        norm_eps: float = 1e-9,
        norm_momentum: float = 0.01,
        norm_affine: bool = False,
        pads_in_norm: bool = False,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, PUBLIC_ACTIVATIONS)
        check_choice("normalize", normalize, NORMALIZERS)
        if not 1 <= len(hidden_units) <= 3:
            raise ValueError(f"hidden_units was {list(hidden_units)}; expected one to three layer widths")
        if batch_norm and activation == "dice":
            raise ValueError("batch_norm was True with activation 'dice'; expected one of them: dice normalises itself")
        widths = [len(blocks) * embedding_dim, *hidden_units, 1]
        self.embedding_dim = embedding_dim
        self.activation = activation
        self.normalize = normalize
        self.backend = backend
        self.negative_slope = negative_slope
        self.scale = scale
        self.blocks = tuple(blocks)
        self.pads_in_norm = pads_in_norm
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        start = 0.25 if activation == "prelu" else 0.0
        slopes = hidden_units if activation in ("prelu", "dice") else ()
        self.slopes = nn.ParameterList(nn.Parameter(torch.full((units,), start)) for units in slopes)
        norms = hidden_units if batch_norm or activation == "dice" else ()
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(units, norm_eps, norm_momentum, affine=norm_affine) for units in norms
        )

    @property
    def needs_statistics(self) -> bool:
        """Whether a call reads the statistics of its own batch."""
        return self.training and len(self.norms) > 0

    def unit(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Weights, biases and slopes, as the op takes them; normalised layers by their running statistics."""
        layers = cast("list[nn.Linear]", list(self.layers))
        weights: list[Tensor] = [m.weight for m in layers]
        biases: list[Tensor] = [m.bias for m in layers]
        slopes: list[Tensor] = list(self.slopes)
        for i, norm in enumerate(cast("list[nn.BatchNorm1d]", list(self.norms))):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            self._normalise(i, norm.running_mean, norm.running_var, weights, biases, slopes)
        return weights, biases, slopes

    def options(self) -> dict[str, Any]:
        """The unit's other keyword arguments, as the op takes them."""
        return {
            "activation": self.activation,
            "negative_slope": self.negative_slope,
            "normalize": self.normalize,
            "scale": self.scale,
            "blocks": self.blocks,
        }

    def forward(
        self,
        target: Tensor,
        history: Tensor,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
        pad_to: int | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Target [B, D] or [B, M, D] and history [B, L, D] or [N, D] to pooled, shaped like the target.

        `pad_to`: with `pads_in_norm`, the padded length behind a jagged history; L by default for a padded one.
        """
        layout: dict[str, Any] = {"lengths": lengths, "mask": mask, "offsets": offsets}
        if self.needs_statistics:
            weights, biases, slopes = self._batch_unit(target, history, layout, pad_to)
        else:
            weights, biases, slopes = self.unit()
        return target_attention(
            target, history, weights, biases, slopes=slopes, return_weights=return_weights, backend=self.backend,
            **layout, **self.options(),
        )  # fmt: skip

    def _batch_unit(
        self, target: Tensor, history: Tensor, layout: dict[str, Any], pad_to: int | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """As `unit`, normalised by this batch; updates the running statistics."""
        if self.pads_in_norm and pad_to is None:
            if layout["offsets"] is not None:
                raise ValueError("pad_to was None; expected the padded length: pads_in_norm counts it, offsets hide it")
            pad_to = history.shape[1]
        layers = cast("list[nn.Linear]", list(self.layers))
        weights: list[Tensor] = [m.weight for m in layers]
        biases: list[Tensor] = [m.bias for m in layers]
        slopes: list[Tensor] = list(self.slopes)
        for i, norm in enumerate(cast("list[nn.BatchNorm1d]", list(self.norms))):
            found = unit_statistics(
                target, history, weights[: i + 1], biases[: i + 1], slopes=slopes[:i],
                activation=self.activation, negative_slope=self.negative_slope, blocks=self.blocks,
                pad_to=pad_to if self.pads_in_norm else None, backend=self.backend, **layout,
            )  # fmt: skip
            self._normalise(i, found.mean, found.variance, weights, biases, slopes)
            _update(norm, found.mean.detach(), found.variance.detach(), found.rows)
        return weights, biases, slopes

    def _normalise(
        self, i: int, mean: Tensor, variance: Tensor, weights: list[Tensor], biases: list[Tensor], slopes: list[Tensor]
    ) -> None:
        """Puts layer i's normalisation n(x) = scale * x + shift where the op has room for it."""
        norm = cast(nn.BatchNorm1d, self.norms[i])
        scale = torch.rsqrt(variance + norm.eps)
        if norm.affine:
            scale = scale * norm.weight
        shift = -mean * scale
        if norm.affine:
            shift = shift + norm.bias
        if self.activation == "dice":
            slopes[i] = torch.stack([slopes[i], scale, shift])
        else:  # an affine map behind a linear layer is another linear layer
            weights[i] = weights[i] * scale[:, None]
            biases[i] = biases[i] * scale + shift

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, normalize={self.normalize!r}, backend={self.backend!r}"


@torch.no_grad()
def _update(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Moves the running statistics, as `nn.BatchNorm1d` does: the running variance is the unbiased one."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    unbiased = variance * (count / (count - 1).clamp(min=1)).to(variance.dtype)
    norm.running_mean.lerp_(mean, norm.momentum or 0.0)
    norm.running_var.lerp_(unbiased, norm.momentum or 0.0)
