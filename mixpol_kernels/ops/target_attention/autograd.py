"""torch.library registration of `target_attention`: schemas, fakes and the autograd Function over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.derivatives import first_order
from mixpol_kernels.history import canonical
from mixpol_kernels.library import INTERPRETING, NAMESPACE, TRITON, define, may_be_empty

ACTIVATIONS = ("relu", "prelu", "sigmoid", "silu", "tanh", "gelu", "dice", "dice_row")
NORMALIZERS = ("none", "softmax", "sigmoid")

_UNIT = "Tensor[] weights, Tensor[] biases, Tensor[] slopes, int activation, int normalize, float dropout, Tensor? seed"
_LAYOUT = "Tensor? offsets, Tensor? lengths, Tensor? mask"
_SCHEMAS = {
    "target_attention_fwd": f"(Tensor target, Tensor history, {_LAYOUT}, {may_be_empty(_UNIT, 'slopes')},"
    " bool save_attention, bool save_bits)"
    " -> (Tensor pooled, Tensor attention, Tensor bits)",
    "target_attention_bwd": "(Tensor grad_pooled, Tensor? grad_attention, Tensor attention, Tensor bits,"
    f" Tensor target, Tensor history, {_LAYOUT}, {_UNIT})"
    " -> (Tensor grad_target, Tensor grad_history, Tensor[] grad_parameters)",
}
for _name, _schema in _SCHEMAS.items():
    define(_name, _schema)


def keeps_bits(activation: int, weights: Sequence[Tensor], dropout: float = 0.0) -> bool:
    """Whether the forward keeps a bit per unit of the last hidden layer, which spares the backward that layer.

    Up to 64 units, so that attention weights and bits stay within 12 bytes a token.
    """
    return activation == ACTIVATIONS.index("relu") and weights[-2].shape[0] <= 64 and not dropout


def fake_outputs(
    target: Tensor, token_shape: Sequence[int], hidden_units: int, save_attention: bool, save_bits: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What the forwards return: pooled, attention weights [tokens, M], bits [tokens, M, ceil(H / 8)] uint8.

    Attention weights are float32 whatever the inputs are.
    """
    candidates = target.shape[1] if target.dim() == 3 else 1
    attention = (*token_shape, candidates) if save_attention else (0,)
    bits = (*token_shape, candidates, (hidden_units + 7) // 8) if save_bits else (0,)
    return (
        target.new_empty(target.shape),
        target.new_empty(attention, dtype=torch.float32),
        target.new_empty(bits, dtype=torch.uint8),
    )


def _fake_forward(
    target: Tensor,
    history: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    slopes: list[Tensor] | None,
    activation: int,
    normalize: int,
    dropout: float,
    seed: Tensor | None,
    save_attention: bool,
    save_bits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_outputs(target, history.shape[:-1], weights[-2].shape[0], save_attention, save_bits)


def _fake_backward(
    grad_pooled: Tensor,
    grad_attention: Tensor | None,
    attention: Tensor,
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
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    parameters = [p.new_empty(p.shape) for p in (*weights, *biases, *slopes)]
    return target.new_empty(target.shape), history.new_empty(history.shape), parameters


def _triton_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from mixpol_kernels.ops.target_attention.triton import launch

    return launch.forward(*args)


def _triton_backward(*args: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    from mixpol_kernels.ops.target_attention.triton import launch

    return launch.backward(*args)


_IMPLEMENTATIONS = {
    "target_attention_fwd": (_fake_forward, _triton_forward),
    "target_attention_bwd": (_fake_backward, _triton_backward),
}
for _name, (_fake, _triton) in _IMPLEMENTATIONS.items():
    torch.library.register_fake(f"{NAMESPACE}::{_name}")(_fake)
    torch.library.define(f"{TRITON}::{_name}", _SCHEMAS[_name])
    torch.library.register_fake(f"{TRITON}::{_name}")(_fake)
    torch.library.impl(f"{TRITON}::{_name}", ("cuda", "cpu") if INTERPRETING else "cuda")(_triton)

forward = torch.ops.mixpol.target_attention_fwd.default
_bwd = torch.ops.mixpol.target_attention_bwd.default


def ops(triton: bool) -> tuple[Any, Any]:
    """The ops of both directions: the compiled ones, or those of the Triton kernels."""
    if not triton:
        return forward, _bwd
    others = torch.ops.mixpol_triton
    return others.target_attention_fwd.default, others.target_attention_bwd.default


class TargetAttention(torch.autograd.Function):
    """The fused op. Saves its inputs, the attention weights, and bits where they pay; recomputes the rest."""

    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,
        history: Tensor,
        offsets: Tensor | None,
        lengths: Tensor | None,
        mask: Tensor | None,
        seed: Tensor | None,
        config: tuple[int, int, float, int, bool, bool, bool],
        *parameters: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Pooled, and with `with_attention` the attention weights, which then have a gradient too.

        `config`: activation, normalize, dropout, layers, save_bits, with_attention and triton (see `ops`).
        `parameters`: `layers` weights, `layers` biases, then slopes.
        """
        activation, normalize, dropout, layers, save_bits, with_attention, triton = config
        weights, biases, slopes = split_parameters(parameters, layers)
        pooled, attention, bits = ops(triton)[0](
            target, history, *canonical(offsets, lengths, mask), weights, biases, slopes,
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
        activation, normalize, dropout, layers, _, _, triton = ctx.config
        weights, biases, slopes = split_parameters(parameters, layers)
        grad_target, grad_history, grads = ops(triton)[1](
            grad_pooled, grad_attention, attention, bits,
            target, history, *canonical(offsets, lengths, mask),
            weights, biases, slopes, activation, normalize, dropout, seed,
        )  # fmt: skip
        return grad_target, grad_history, None, None, None, None, None, *grads


def with_candidates(target: Tensor) -> Tensor:
    """[B, D] as [B, 1, D], for the references; the compiled ops take both."""
    return target if target.dim() == 3 else target.unsqueeze(1)


def split_parameters(parameters: Sequence[Tensor], layers: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Undoes `*weights, *biases, *slopes`."""
    return list(parameters[:layers]), list(parameters[layers : 2 * layers]), list(parameters[2 * layers :])
