"""The registered ops of batch statistics and the autograd Function over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.derivatives import first_order
from mixpol_kernels.history import canonical
from mixpol_kernels.ops.registry import LAYOUT, declare, empty_as
from mixpol_kernels.ops.target_attention.autograd import parameter_shapes
from mixpol_kernels.ops.unit import split_parameters

_INPUTS = (
    f"Tensor target, Tensor history, {LAYOUT}, Tensor[] weights, Tensor[] biases, Tensor[] slopes, int activation,"
    " float dropout, Tensor? seed, SymInt pad_to"
)
FORWARD = declare(
    f"unit_statistics_fwd({_INPUTS}) -> (Tensor mean, Tensor variance, Tensor mean_rest)",
    lambda a: tuple(a.target.new_empty(a.weights[-1].shape[0]) for _ in range(3)),
    triton="target_attention.triton.moments:statistics_forward",
    triton_shapes=lambda a: (
        *(a.target.new_empty(a.weights[-1].shape[0]) for _ in range(2)),
        a.target.new_empty(a.weights[-1].shape[0], dtype=torch.float32),
    ),
)
BACKWARD = declare(
    f"unit_statistics_bwd(Tensor grad_mean, Tensor grad_variance, Tensor mean, Tensor mean_rest, {_INPUTS})"
    " -> (Tensor grad_target, Tensor grad_history, Tensor[] grad_parameters)",
    lambda a: (empty_as(a.target, a.target), empty_as(a.history, a.history), parameter_shapes(a)),
    triton="target_attention.triton.moments:statistics_backward",
)


class UnitStatistics(torch.autograd.Function):
    """The fused op. Saves its inputs, the mean and what float32 rounds away of it; recomputes the pre-activations."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        target: Tensor,
        history: Tensor,
        offsets: Tensor | None,
        lengths: Tensor | None,
        mask: Tensor | None,
        seed: Tensor | None,
        activation: int,
        dropout: float,
        pad_to: int,
        layers: int,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`parameters`: `layers` weights, `layers` biases, then slopes."""
        mean, variance, rest = FORWARD.of(backend)(
            target, history, *canonical(offsets, lengths, mask), *split_parameters(parameters, layers),
            activation, dropout, seed, pad_to,
        )  # fmt: skip
        ctx.save_for_backward(target, history, offsets, lengths, mask, seed, mean, rest, *parameters)
        ctx.config = (backend, activation, dropout, pad_to, layers)
        return mean, variance

    @staticmethod
    @first_order("unit_statistics")
    def backward(ctx: Any, saved: Sequence[Any], grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor | None, ...]:
        target, history, offsets, lengths, mask, seed, mean, rest, *parameters = saved
        backend, activation, dropout, pad_to, layers = ctx.config
        grad_target, grad_history, grads = BACKWARD.of(backend)(
            grad_mean, grad_variance, mean, rest, target, history, *canonical(offsets, lengths, mask),
            *split_parameters(parameters, layers), activation, dropout, seed, pad_to,
        )  # fmt: skip
        return None, grad_target, grad_history, *[None] * 8, *grads
