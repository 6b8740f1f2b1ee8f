"""The public function `dice_attention`: validation and choice of implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixpol_kernels import backend as backends
from mixpol_kernels.autocast import under_autocast
from mixpol_kernels.checks import check_choice, check_float, check_shape, checked
from mixpol_kernels.history import accepts_jagged, layout
from mixpol_kernels.ops.target_attention._dice import reference
from mixpol_kernels.ops.target_attention._dice.autograd import FORWARD, DiceAttention
from mixpol_kernels.ops.target_attention._statistics.api import check_pads, counted_rows, is_free, kept_tokens
from mixpol_kernels.ops.target_attention.triton import support
from mixpol_kernels.ops.unit import BLOCKS, NORMALIZERS, ActivationUnit, check_target, with_candidates


class Attended(NamedTuple):
    """Result of `dice_attention`.

    Attributes:
        pooled: shaped like the target.
        attention: the attention weights, [N] or [B, L], with a last dimension M if the target has one; pads are 0.
            None unless `return_weights`.
        mean, variance: [H], of the batch; the variance is biased. They have no gradient of their own.
        rows: int64 scalar tensor, the rows behind them.
    """

    pooled: Tensor
    attention: Tensor | None
    mean: Tensor
    variance: Tensor
    rows: Tensor


@accepts_jagged("history")
@checked
@under_autocast()
def dice_attention(
    target: Tensor,
    history: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    alpha: Tensor,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-9,
    normalize: str = "none",
    scale: float = 1.0,
    blocks: Sequence[str] = BLOCKS,
    pad_to: int | None = None,
    offsets: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    return_weights: bool = False,
    backend: str = "auto",
) -> Attended:
    """Target attention by one hidden layer with Dice in training: normalised by the statistics of this very batch.

    `target_attention` with activation "dice", whose n(x) = norm_weight (x - mean) / √(variance + eps) + norm_bias comes
    from `unit_statistics` of the same inputs (Deep Interest Network, arXiv 1706.06978, equation 3). The gradient goes
    through the statistics. One op, so that the backward of both is one sweep over the tokens.

    Args:
        target: [B, D], or [B, M, D] when M candidates share each user's history.
        history: [N, D] with `offsets`, or [B, L, D], or jagged, as in `target_attention`. Any strides.
        weights: the hidden layer [H, 4 D] and the output layer [1, H].
        biases: [H] and [1].
        alpha: [H].
        norm_weight, norm_bias: [H], of an affine normalisation; None for 1 and 0.
        eps: added to the variance.
        normalize, scale, blocks: as in `target_attention`.
        pad_to: in the statistics, count every history as padded with zero tokens to this length; see
            `unit_statistics`. None: kept tokens only.
        offsets, lengths, mask: the layout, as in `target_attention`.
        return_weights: also return the attention weights; they have a gradient too.
        backend: "auto", "cpu" (compiled, float32), "triton" (on a GPU; float32, bfloat16 and float16) or "reference"
            (plain PyTorch).

    Returns:
        `Attended`; an empty history gives zeros.

    Raises:
        ValueError: contradicting or misshapen arguments, or a backend that cannot take them.
        TypeError: wrong dtypes.
        RuntimeError: offsets or lengths out of range, or a history longer than `pad_to`. Nothing is computed.

    Example:
        >>> import torch
        >>> from mixpol_kernels.ops.target_attention._dice.api import dice_attention
        >>> target, history = torch.randn(2, 8), torch.randn(2, 5, 8)
        >>> weights, biases = [torch.randn(16, 32), torch.randn(1, 16)], [torch.zeros(16), torch.zeros(1)]
        >>> found = dice_attention(target, history, weights, biases, torch.zeros(16), lengths=torch.tensor([5, 2]))
        >>> found.pooled.shape, int(found.rows)
        (torch.Size([2, 8]), 7)
    """
    check_target(target)
    check_float(target, "target", history=history)
    layers = ActivationUnit(weights, biases, normalize=normalize, scale=scale, blocks=blocks)
    unit = layers.canonical(target.shape[-1])
    weights, biases = unit.weights, unit.biases
    check_choice("normalize", normalize, NORMALIZERS)
    if len(weights) != 2:
        raise ValueError(f"weights has {len(weights)} entries; expected one hidden layer and then the output layer")
    unit.check_layers(target, 1, 1)
    given = {"alpha": alpha, "norm_weight": norm_weight, "norm_bias": norm_bias}
    for name, parameter in given.items():
        if parameter is not None:
            check_float(target, "target", **{name: parameter})
            check_shape(name, parameter, weights[0].shape[:1], "one per unit")
    if not eps >= 0:
        raise ValueError(f"eps was {eps}; expected at least 0")
    where = layout(history, target.shape[0], name="history", trailing=1, offsets=offsets, lengths=lengths, mask=mask)
    if history.shape[-1] != target.shape[-1]:
        raise ValueError(f"history is {history.shape[-1]} wide and target {target.shape[-1]}; expected the same D")
    candidates = target.shape[1] if target.dim() == 3 else 1
    norm = NORMALIZERS.index(normalize)
    inputs = (target, history, *weights, *biases, *given.values())
    chosen = backends.choose(
        "dice_attention",
        backend,
        target,
        lambda backend: (
            4 * (math.prod(where.token_shape) * candidates + (6 if backend == "triton" else 3) * alpha.shape[0])
            + 2 * alpha.nbytes  # weights and slopes; mean and variance
            + backends.new_bytes(unit.parameters, layers.parameters)
        ),
        inputs,
        triton=lambda: support.refusal(target),
    )
    kept = kept_tokens(where, history.device)
    if chosen == "reference":
        if not torch.compiler.is_compiling():
            where.check_values()
            check_pads(kept, pad_to)
        user, keep = where.assignment(target.device)
        pooled, attention, mean, variance = reference.dice_attention(
            with_candidates(target), history.flatten(0, -2), user, keep,
            None if pad_to is None else pad_to - kept, weights, biases, alpha, norm_weight, norm_bias, eps, normalize,
        )  # fmt: skip
        pooled = pooled.view(target.shape)
        attention = attention.reshape(*where.token_shape, candidates)
        mean, variance = mean.detach(), variance.detach()
    else:
        check_pads(kept if is_free(chosen, kept) else None, pad_to)
        length = -1 if pad_to is None else pad_to
        if backends.needs_grad(*inputs):
            pooled, attention, mean, variance = DiceAttention.apply(
                chosen, target, history, where.offsets, where.lengths, where.mask, eps, norm, length,
                return_weights, *weights, *biases, alpha, norm_weight, norm_bias,
            )  # fmt: skip
        else:
            pooled, attention, mean, variance, _ = FORWARD.of(chosen)(
                target, history, *where.canonical(), weights, biases, alpha, norm_weight, norm_bias, eps, norm,
                length, return_weights,
            )  # fmt: skip
    rows = counted_rows(kept, where.batch, candidates, pad_to)
    if not return_weights:
        return Attended(pooled, None, mean, variance, rows)
    attention = attention.to(target.dtype)  # float32 for the backward
    return Attended(pooled, attention[..., 0] if target.dim() == 2 else attention, mean, variance, rows)
