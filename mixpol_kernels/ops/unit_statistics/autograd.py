"""torch.library registration of `unit_statistics`: schemas, fakes and the autograd Function over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixpol_kernels.history import canonical
from mixpol_kernels.library import define
from mixpol_kernels.ops.target_attention.autograd import split_parameters

_INPUTS = (
    "Tensor target, Tensor history, Tensor? offsets, Tensor? lengths, Tensor? mask,"
    " Tensor[] weights, Tensor[] biases, Tensor[] slopes, int activation, float dropout, Tensor? seed,"
    " SymInt pad_to"
)
define("unit_statistics_fwd", f"({_INPUTS}) -> (Tensor mean, Tensor variance, Tensor mean_rest)")
define(
    "unit_statistics_bwd",
    f"(Tensor grad_mean, Tensor grad_variance, Tensor mean, Tensor mean_rest, {_INPUTS})"
    " -> (Tensor grad_target, Tensor grad_history, Tensor[] grad_parameters)",
)


@torch.library.register_fake("mixpol::unit_statistics_fwd")
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
    dropout: float,
    seed: Tensor | None,
    pad_to: int,
) -> tuple[Tensor, Tensor, Tensor]:
    units = weights[-1].shape[0]
    return target.new_empty(units), target.new_empty(units), target.new_empty(units)


@torch.library.register_fake("mixpol::unit_statistics_bwd")
def _(
    grad_mean: Tensor,
    grad_variance: Tensor,
    mean: Tensor,
    mean_rest: Tensor,
    target: Tensor,
    history: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    slopes: list[Tensor],
    activation: int,
    dropout: float,
    seed: Tensor | None,
    pad_to: int,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    parameters = [p.new_empty(p.shape) for p in (*weights, *biases, *slopes)]
    return target.new_empty(target.shape), history.new_empty(history.shape), parameters


forward = torch.ops.mixpol.unit_statistics_fwd.default
_bwd = torch.ops.mixpol.unit_statistics_bwd.default


class UnitStatistics(torch.autograd.Function):
    """The fused op. Saves its inputs and the mean, with what float32 rounds of it; recomputes the pre-activations."""

    @staticmethod
    def forward(
        ctx: Any,
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
        mean, variance, rest = forward(
            target, history, *canonical(offsets, lengths, mask), *split_parameters(parameters, layers),
            activation, dropout, seed, pad_to,
        )  # fmt: skip
        ctx.save_for_backward(target, history, offsets, lengths, mask, seed, mean, rest, *parameters)
        ctx.config = (activation, dropout, pad_to, layers)
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor | None, ...]:
        target, history, offsets, lengths, mask, seed, mean, rest, *parameters = ctx.saved_tensors
        activation, dropout, pad_to, layers = ctx.config
        grad_target, grad_history, grads = _bwd(
            grad_mean, grad_variance, mean, rest, target, history, *canonical(offsets, lengths, mask),
            *split_parameters(parameters, layers), activation, dropout, seed, pad_to,
        )  # fmt: skip
        return grad_target, grad_history, *[None] * 8, *grads
