"""torch.library registration of `target_attention`: schemas, fakes and the autograd Function over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixpol_kernels.library import define

ACTIVATIONS = ("relu", "prelu", "sigmoid", "silu")
NORMALIZERS = ("none", "softmax")

_UNIT = "Tensor[] weights, Tensor[] biases, Tensor[] slopes, int activation, int normalize"
_LAYOUT = "Tensor? offsets, Tensor? lengths, Tensor? mask"
define(
    "target_attention_fwd",
    f"(Tensor target, Tensor history, {_LAYOUT}, {_UNIT}, bool save_scores, bool save_bits)"
    " -> (Tensor pooled, Tensor scores, Tensor lse, Tensor bits)",
)
define(
    "target_attention_bwd",
    "(Tensor grad_pooled, Tensor pooled, Tensor scores, Tensor lse, Tensor bits,"
    f" Tensor target, Tensor history, {_LAYOUT}, {_UNIT})"
    " -> (Tensor grad_target, Tensor grad_history, Tensor[] grad_parameters)",
)


def keeps_bits(activation: int, hidden_units: list[int]) -> bool:
    """Whether the forward keeps a bit per hidden unit, which spares the backward the first layer.

    Up to 64 units, so that scores and bits stay within 12 bytes a token.
    """
    return ACTIVATIONS[activation] == "relu" and len(hidden_units) == 1 and hidden_units[0] <= 64


def saved_shapes(
    token_shape: tuple[int, ...], target: Tensor, hidden_units: list[int], save_scores: bool, save_bits: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of scores (float32), lse (float32) and bits (uint8)."""
    candidates = target.shape[1]
    empty = (0,)
    scores = (*token_shape, candidates) if save_scores else empty
    lse = (target.shape[0], candidates) if save_scores else empty
    bits = (*token_shape, candidates, (hidden_units[0] + 7) // 8) if save_bits else empty
    return scores, lse, bits


@torch.library.register_fake("mixpol::target_attention_fwd")
def _(
    target: Tensor,
    history: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    slopes: list[Tensor],
    activation: int,
    normalize: int,
    save_scores: bool,
    save_bits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = saved_shapes(
        tuple(history.shape[:-1]), target, [w.shape[0] for w in weights[:-1]], save_scores, save_bits
    )
    return (
        target.new_empty(target.shape),
        target.new_empty(shapes[0], dtype=torch.float32),
        target.new_empty(shapes[1], dtype=torch.float32),
        target.new_empty(shapes[2], dtype=torch.uint8),
    )


@torch.library.register_fake("mixpol::target_attention_bwd")
def _(
    grad_pooled: Tensor,
    pooled: Tensor,
    scores: Tensor,
    lse: Tensor,
    bits: Tensor,
    target: Tensor,
    history: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    slopes: list[Tensor],
    activation: int,
    normalize: int,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    parameters = [p.new_empty(p.shape) for p in (*weights, *biases, *slopes)]
    return target.new_empty(target.shape), history.new_empty(history.shape), parameters


_fwd = torch.ops.mixpol.target_attention_fwd.default
_bwd = torch.ops.mixpol.target_attention_bwd.default


class TargetAttention(torch.autograd.Function):
    """The fused op. Saves its inputs, the scores, and bits where they pay; recomputes the rest."""

    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,
        history: Tensor,
        offsets: Tensor | None,
        lengths: Tensor | None,
        mask: Tensor | None,
        activation: int,
        normalize: int,
        layers: int,
        save_scores: bool,
        save_bits: bool,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`parameters`: `layers` weights, `layers` biases, then slopes."""
        weights, biases, slopes = split_parameters(parameters, layers)
        pooled, scores, lse, bits = _fwd(
            target, history, offsets, lengths, mask, weights, biases, slopes,
            activation, normalize, save_scores, save_bits,
        )  # fmt: skip
        ctx.save_for_backward(target, history, offsets, lengths, mask, pooled, scores, lse, bits, *parameters)
        ctx.config = (activation, normalize, layers)
        ctx.mark_non_differentiable(scores, lse)
        return pooled, scores, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_pooled: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        target, history, offsets, lengths, mask, pooled, scores, lse, bits, *parameters = ctx.saved_tensors
        activation, normalize, layers = ctx.config
        weights, biases, slopes = split_parameters(parameters, layers)
        grad_target, grad_history, grads = _bwd(
            grad_pooled, pooled, scores, lse, bits, target, history, offsets, lengths, mask,
            weights, biases, slopes, activation, normalize,
        )  # fmt: skip
        return grad_target, grad_history, *[None] * 8, *grads


def split_parameters(
    parameters: Sequence[Tensor], layers: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Undoes `*weights, *biases, *slopes`."""
    return list(parameters[:layers]), list(parameters[layers : 2 * layers]), list(parameters[2 * layers :])
