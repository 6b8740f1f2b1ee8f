"""The public function `target_attention`: validation and choice of implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mixpol_kernels import backend as backends
from mixpol_kernels.autocast import in_float32
from mixpol_kernels.checks import check_choice, check_float, check_shape
from mixpol_kernels.history import layout
from mixpol_kernels.ops.target_attention import reference
from mixpol_kernels.ops.target_attention.autograd import (
    ACTIVATIONS,
    NORMALIZERS,
    TargetAttention,
    forward,
    keeps_bits,
    with_candidates,
)


@in_float32
def target_attention(
    target: Tensor,
    history: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    activation: str = "relu",
    slopes: Sequence[Tensor] = (),
    normalize: str = "none",
    offsets: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    return_weights: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """DIN target attention: scores every history token against its user's target and pools the tokens.

    For token x and target t, with hidden layers (W_i, b_i), output layer (w_o, b_o) and activation a:

        h_1 = a(W_1 [t ; x ; t - x ; t * x] + b_1),  h_i = a(W_i h_(i-1) + b_i),  s = w_o · h_last + b_o

    and pooled = Σ w_l x_l with w = s, or softmax(s) over the user's tokens (Deep Interest Network,
    arXiv 1706.06978, section 4.3; block order as in its released code). The fused form never builds the
    4D-wide input: W_1 [t ; x ; t - x ; t * x] + b_1 = x · G(t) + c(t). It adds the blocks of W_1 that meet the same
    input, so an infinite entry of W_1 can give NaN where the concatenated form stays infinite.

    Under `torch.autocast` the op runs in float32: inputs of a lower precision are cast.

    Args:
        target: [B, D], or [B, M, D] when M candidates share each user's history.
        history: [N, D] with `offsets`, or [B, L, D] with `lengths`, `mask` or neither (every position kept).
            Any strides.
        weights: one to three hidden layers [H_1, 4 D], [H_2, H_1], ..., then the output layer [1, H_last].
        biases: [H_1], ..., [1], one per weight.
        activation: "relu", "prelu", "sigmoid" or "silu".
        slopes: for "prelu", one [H_i] tensor per hidden layer.
        normalize: "none" or "softmax".
        offsets: [B + 1] int32 or int64; user b owns tokens offsets[b] ... offsets[b + 1] - 1.
        lengths: [B] int32 or int64; the first lengths[b] positions are kept.
        mask: [B, L]; nonzero positions are kept, on any side.
        return_weights: also return the attention weights, without gradient.
        backend: "auto", "cpu" (compiled, float32) or "reference" (plain PyTorch).

    Returns:
        pooled with the shape and dtype of `target`; an empty history gives zeros. With `return_weights`
        also the weights w, [N] or [B, L], with a last dimension M if the target has one; pads are 0.

    Raises:
        ValueError: contradicting or misshapen arguments, or a backend that cannot take them.
        TypeError: wrong dtypes.
        RuntimeError: offsets or lengths out of range. Nothing is computed.

    Example:
        >>> import torch, mixpol_kernels as mk
        >>> target, history = torch.randn(2, 8), torch.randn(2, 5, 8)
        >>> weights, biases = [torch.randn(16, 32), torch.randn(1, 16)], [torch.zeros(16), torch.zeros(1)]
        >>> mk.target_attention(target, history, weights, biases, lengths=torch.tensor([5, 2])).shape
        torch.Size([2, 8])
    """
    if target.dim() not in (2, 3):
        raise ValueError(f"target has shape {list(target.shape)}; expected [B, D] or [B, M, D]")
    check_float(target, "target", history=history)
    check_activation_unit(target, weights, biases, slopes, activation, normalize)
    where = layout(history, target.shape[0], name="history", trailing=1, offsets=offsets, lengths=lengths, mask=mask)
    if history.shape[-1] != target.shape[-1]:
        raise ValueError(f"history is {history.shape[-1]} wide and target {target.shape[-1]}; expected the same D")
    candidates = target.shape[1] if target.dim() == 3 else 1
    act, norm = ACTIVATIONS.index(activation), NORMALIZERS.index(normalize)
    chosen = backends.choose(
        "target_attention", backend, target, lambda: saved_bytes(candidates, where.token_shape, weights, act)
    )
    if chosen == "reference":
        if not torch.compiler.is_compiling():
            where.check_values()
        user, keep = where.assignment()
        pooled, attention = reference.target_attention(
            with_candidates(target), history.reshape(-1, history.shape[-1]), user.to(target.device), keep,
            weights, biases, slopes, activation, normalize,
        )  # fmt: skip
        attention = attention.detach().reshape(*where.token_shape, candidates)
    elif backends.needs_grad(target, history, *weights, *biases, *slopes):
        pooled, attention = TargetAttention.apply(
            target, history, where.offsets, where.lengths, where.mask, act, norm, len(weights),
            keeps_bits(act, weights), *weights, *biases, *slopes,
        )  # fmt: skip
    else:
        pooled, attention, _ = forward(
            with_candidates(target), history, *where.canonical(), weights, biases, slopes or None, act, norm,
            return_weights, False,
        )  # fmt: skip
    if pooled.dim() != target.dim():
        pooled = pooled.squeeze(1)
    if not return_weights:
        return pooled
    return pooled, attention[..., 0] if target.dim() == 2 else attention


def saved_bytes(candidates: int, token_shape: tuple[int, ...], weights: Sequence[Tensor], activation: int) -> int:
    """Bytes that the fused form keeps for backward beyond its inputs and its output."""
    bits = (weights[0].shape[0] + 7) // 8 if keeps_bits(activation, weights) else 0
    return math.prod(token_shape) * candidates * (4 + bits)


def check_activation_unit(
    target: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slopes: Sequence[Tensor],
    activation: str,
    normalize: str,
) -> None:
    """Validates the layers of an activation unit against a target [..., D]."""
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("normalize", normalize, NORMALIZERS)
    layers = len(weights)
    if not 2 <= layers <= 4:
        raise ValueError(f"weights has {layers} entries; expected one to three hidden layers and then the output layer")
    if len(biases) != layers:
        raise ValueError(f"biases has {len(biases)} entries and weights {layers}; expected one bias per weight")
    expected = layers - 1 if activation == "prelu" else 0
    if len(slopes) != expected:
        raise ValueError(f"slopes has {len(slopes)} entries; activation={activation!r} expects {expected}")
    width, dtype, device = 4 * target.shape[-1], target.dtype, target.device
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        out = 1 if i == layers - 1 else weight.shape[0] if weight.dim() == 2 else -1
        group = (weight, bias, slopes[i]) if i < len(slopes) else (weight, bias)
        for tensor in group:  # messages are made only when something is wrong: this runs in every call
            if tensor.dtype != dtype or tensor.device != device:
                names = (f"weights[{i}]", f"biases[{i}]", f"slopes[{i}]")
                check_float(target, "target", **dict(zip(names, group, strict=False)))
            if tensor.shape != ((out, width) if tensor is weight else (out,)):
                check_shape(f"weights[{i}]", weight, (out, width), "units, inputs; the first layer has 4 D")
                check_shape(f"biases[{i}]", bias, (out,), "one per unit")
                check_shape(f"slopes[{i}]", tensor, (out,), "one per unit")
        width = out
