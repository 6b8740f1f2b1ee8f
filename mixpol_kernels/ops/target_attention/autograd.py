"""The registered ops of `target_attention` and the autograd Function over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.derivatives import first_order
from mixpol_kernels.history import canonical
from mixpol_kernels.ops.registry import LAYOUT, Arguments, declare, empty_as
from mixpol_kernels.ops.unit import split_parameters

UNIT = "Tensor[] weights, Tensor[] biases, Tensor[] slopes, int activation, int normalize, float dropout, Tensor? seed"
# None stands for an empty list: AOTInductor's executor of custom ops loses empty lists (torch 2.13).
UNIT_FORWARD = UNIT.replace("Tensor[] slopes", "Tensor[]? slopes")


def attention_shapes(a: Arguments, token_shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled, attention weights [tokens, M] in float32, bits [tokens, M, ceil(H / 8)] uint8."""
    tokens = (*token_shape, a.target.shape[1] if a.target.dim() == 3 else 1)
    bits = (*tokens, (a.weights[-2].shape[0] + 7) // 8) if a.save_bits else (0,)
    return (
        a.target.new_empty(a.target.shape),
        a.target.new_empty(tokens if a.save_attention else (0,), dtype=torch.float32),
        a.target.new_empty(bits, dtype=torch.uint8),
    )


def parameter_shapes(a: Arguments) -> list[Tensor]:
    """Gradients of weights, biases and slopes."""
    return [p.new_empty(p.shape) for p in (*a.weights, *a.biases, *a.slopes)]


FORWARD = declare(
    f"target_attention_fwd(Tensor target, Tensor history, {LAYOUT}, {UNIT_FORWARD},"
    " bool save_attention, bool save_bits) -> (Tensor pooled, Tensor attention, Tensor bits)",
    lambda a: attention_shapes(a, a.history.shape[:-1]),
    triton="target_attention.triton.launch:forward",
)
BACKWARD = declare(
    "target_attention_bwd(Tensor grad_pooled, Tensor? grad_attention, Tensor attention, Tensor bits,"
    f" Tensor target, Tensor history, {LAYOUT}, {UNIT})"
    " -> (Tensor grad_target, Tensor grad_history, Tensor[] grad_parameters)",
    lambda a: (empty_as(a.target, a.target), empty_as(a.history, a.history), parameter_shapes(a)),
    triton="target_attention.triton.launch:backward",
)


class TargetAttention(torch.autograd.Function):
    """The fused op. Saves its inputs, the attention weights, and bits where they pay; recomputes the rest."""

    @staticmethod
    def forward(
        ctx: Any,
        config: tuple[str, int, int, float, int, bool, bool],
        target: Tensor,
        history: Tensor,
        offsets: Tensor | None,
        lengths: Tensor | None,
        mask: Tensor | None,
        seed: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Pooled, and with `with_attention` the attention weights, which then have a gradient too.

        `config`: backend, activation, normalize, dropout, layers, save_bits, with_attention.
        `parameters`: `layers` weights, `layers` biases, then slopes.
        """
        backend, activation, normalize, dropout, layers, save_bits, with_attention = config
        pooled, attention, bits = FORWARD.of(backend)(
            target, history, *canonical(offsets, lengths, mask), *split_parameters(parameters, layers),
            activation, normalize, dropout, seed, True, save_bits,
        )  # fmt: skip
        ctx.save_for_backward(target, history, offsets, lengths, mask, seed, attention, bits, *parameters)
        ctx.config = config
        return (pooled, attention) if with_attention else pooled

    @staticmethod
    @first_order("target_attention")
    def backward(
        ctx: Any, saved: Sequence[Any], grad_pooled: Tensor, grad_attention: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        target, history, offsets, lengths, mask, seed, attention, bits, *parameters = saved
        backend, activation, normalize, dropout, layers, _, _ = ctx.config
        grad_target, grad_history, grads = BACKWARD.of(backend)(
            grad_pooled, grad_attention, attention, bits, target, history, *canonical(offsets, lengths, mask),
            *split_parameters(parameters, layers), activation, normalize, dropout, seed,
        )  # fmt: skip
        return None, grad_target, grad_history, *[None] * 4, *grads
