"""The registered ops of Dice in one sweep and the autograd Function over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.derivatives import first_order
from mixpol_kernels.history import canonical
from mixpol_kernels.ops.registry import LAYOUT, Arguments, declare, empty_as
from mixpol_kernels.ops.target_attention.autograd import attention_shapes

_TOKENS = f"Tensor target, Tensor history, {LAYOUT}"


def _shapes(a: Arguments) -> tuple[Tensor, ...]:
    pooled, attention, _ = attention_shapes(a.but(save_bits=False), a.history.shape[:-1])
    units = a.alpha.shape[0]
    return pooled, attention, *(a.target.new_empty(shape) for shape in ((units,), (units,), (3, units)))


FORWARD = declare(
    f"dice_attention_fwd({_TOKENS}, Tensor[] weights, Tensor[] biases, Tensor alpha, Tensor? norm_weight,"
    " Tensor? norm_bias, float eps, int normalize, SymInt pad_to, bool save_attention)"
    " -> (Tensor pooled, Tensor attention, Tensor mean, Tensor variance, Tensor slopes)",
    _shapes,
    triton="target_attention.triton.moments:dice_forward",
    triton_shapes=lambda a: (*_shapes(a)[:4], a.target.new_empty((6, a.alpha.shape[0]), dtype=torch.float32)),
)
BACKWARD = declare(
    "dice_attention_bwd(Tensor grad_pooled, Tensor? grad_attention, Tensor attention, Tensor mean, Tensor variance,"
    f" Tensor slopes, {_TOKENS}, Tensor[] weights, Tensor[] biases, float eps, int normalize, SymInt pad_to)"
    " -> (Tensor grad_target, Tensor grad_history, Tensor[] grad_parameters)",
    lambda a: (
        empty_as(a.target, a.target),
        empty_as(a.history, a.history),
        [p.new_empty(p.shape) for p in (*a.weights, *a.biases, a.slopes)],
    ),
    triton="target_attention.triton.moments:dice_backward",
    triton_shapes=lambda a: (
        empty_as(a.target, a.target),
        empty_as(a.history, a.history),
        [p.new_empty(p.shape) for p in (*a.weights, *a.biases)] + [a.target.new_empty((3, a.slopes.shape[1]))],
    ),
)


class DiceAttention(torch.autograd.Function):
    """The fused op. Saves its inputs, the attention weights and the statistics; recomputes the rest."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        target: Tensor,
        history: Tensor,
        offsets: Tensor | None,
        lengths: Tensor | None,
        mask: Tensor | None,
        eps: float,
        normalize: int,
        pad_to: int,
        with_attention: bool,
        hidden: Tensor,
        output: Tensor,
        hidden_bias: Tensor,
        output_bias: Tensor,
        alpha: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`with_attention`: the attention weights have a gradient too."""
        pooled, attention, mean, variance, slopes = FORWARD.of(backend)(
            target, history, *canonical(offsets, lengths, mask), [hidden, output], [hidden_bias, output_bias],
            alpha, norm_weight, norm_bias, eps, normalize, pad_to, True,
        )  # fmt: skip
        ctx.save_for_backward(
            target, history, offsets, lengths, mask, attention, mean, variance, slopes,
            hidden, output, hidden_bias, output_bias, alpha, norm_weight, norm_bias,
        )  # fmt: skip
        ctx.config = (backend, eps, normalize, pad_to, with_attention, norm_weight is not None, norm_bias is not None)
        ctx.mark_non_differentiable(*([mean, variance] if with_attention else [attention, mean, variance]))
        return pooled, attention, mean, variance

    @staticmethod
    @first_order("dice_attention")
    def backward(
        ctx: Any,
        saved: Sequence[Any],
        grad_pooled: Tensor,
        grad_attention: Tensor,
        grad_mean: Tensor,
        grad_variance: Tensor,
    ) -> tuple[Tensor | None, ...]:
        (
            target, history, offsets, lengths, mask, attention, mean, variance, slopes, *layers, _, _, _,
        ) = saved  # fmt: skip
        backend, eps, normalize, pad_to, with_attention, has_weight, has_bias = ctx.config
        grad_target, grad_history, grads = BACKWARD.of(backend)(
            grad_pooled, grad_attention if with_attention else None, attention, mean, variance, slopes,
            target, history, *canonical(offsets, lengths, mask), layers[:2], layers[2:], eps, normalize, pad_to,
        )  # fmt: skip
        alpha, norm_weight, norm_bias = grads[4].unbind()
        return (
            None, grad_target, grad_history, *[None] * 7, *grads[:4],
            alpha, norm_weight if has_weight else None, norm_bias if has_bias else None,
        )  # fmt: skip
