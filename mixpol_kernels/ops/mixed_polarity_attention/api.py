"""The public function `mixed_polarity_attention`: validation and choice of implementation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixpol_kernels import backend as backends
from mixpol_kernels.autocast import in_float32
from mixpol_kernels.checks import check_float, check_ids, check_range
from mixpol_kernels.history import layout
from mixpol_kernels.ops.mixed_polarity_attention import reference
from mixpol_kernels.ops.mixed_polarity_attention.autograd import MixedPolarityAttention, forward
from mixpol_kernels.ops.polarity_fusion.api import check_fusion
from mixpol_kernels.ops.target_attention.api import BLOCKS, canonical_unit, check_activation_unit, saved_bytes
from mixpol_kernels.ops.target_attention.autograd import ACTIVATIONS, NORMALIZERS, keeps_bits, with_candidates
from mixpol_kernels.ops.target_attention.dropout import check_dropout, draw_seed


@in_float32
def mixed_polarity_attention(
    target: Tensor,
    item_ids: Tensor,
    polarity: Tensor | None,
    item_table: Tensor,
    polarity_table: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    fusion: str = "tapf",
    gate: Sequence[Tensor] = (),
    sign: Tensor | None = None,
    extra_ids: Tensor | None = None,
    extra_table: Tensor | None = None,
    activation: str = "relu",
    slopes: Sequence[Tensor] = (),
    negative_slope: float = 0.01,
    normalize: str = "none",
    scale: float = 1.0,
    blocks: Sequence[str] = BLOCKS,
    dropout: float = 0.0,
    seed: Tensor | int | None = None,
    offsets: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    sparse: bool = False,
    return_weights: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """From the ids of a mixed-polarity history to the pooled vector, in one pass.

    The composition of an item look-up, `polarity_fusion` and `target_attention`; their docstrings have the
    formulas and the sources. No token-sized tensor is written by the fused forward.

    Under `torch.autocast` the op runs in float32: inputs of a lower precision are cast.

    Args:
        target: [B, D], or [B, M, D] when M candidates share each user's history.
        item_ids: [N] with `offsets`, or [B, L]; any integer dtype. Ids at pads are not read.
        polarity: like `item_ids`, rows of `polarity_table`; None with fusion "none".
        item_table: [V, D].
        polarity_table: [P, D]; None with fusion "none".
        weights, biases, activation, slopes, negative_slope, normalize, scale, blocks, dropout, seed: the activation
            unit, as in `target_attention`; x is the token after the fusion.
        fusion, gate, sign, extra_ids, extra_table: as in `polarity_fusion`.
        offsets: [B + 1] int32 or int64; user b owns tokens offsets[b] ... offsets[b + 1] - 1.
        lengths: [B] int32 or int64; the first lengths[b] positions are kept.
        mask: [B, L]; nonzero positions are kept, on any side.
        sparse: give `item_table` a sparse gradient with sorted, unique ids instead of a dense one.
        return_weights: also return the attention weights; they have a gradient too.
        backend: "auto", "cpu" (compiled; float32, or bfloat16 and float16 computed in float32) or "reference" (plain
            PyTorch).

    Returns:
        pooled with the shape and dtype of `target`; an empty history gives zeros. With `return_weights`
        also the weights, [N] or [B, L], with a last dimension M if the target has one; pads are 0.

    Raises:
        ValueError: contradicting or misshapen arguments, or a backend that cannot take them.
        TypeError: wrong dtypes.
        RuntimeError: an id, polarity or extra id outside its table, offsets or lengths out of range. Nothing is
            computed.

    Example:
        >>> import torch, mixpol_kernels as mk
        >>> ids, polarity, offsets = torch.tensor([3, 1, 2]), torch.tensor([1, 0, 0]), torch.tensor([0, 2, 3])
        >>> weights, biases = [torch.randn(16, 32), torch.randn(1, 16)], [torch.zeros(16), torch.zeros(1)]
        >>> mk.mixed_polarity_attention(
        ...     torch.randn(2, 8), ids, polarity, torch.randn(5, 8), torch.randn(2, 8), weights, biases,
        ...     fusion="bias", offsets=offsets,
        ... ).shape
        torch.Size([2, 8])
    """
    if target.dim() not in (2, 3):
        raise ValueError(f"target has shape {list(target.shape)}; expected [B, D] or [B, M, D]")
    check_float(target, "target", item_table=item_table)
    check_ids("item_ids", item_ids, target.device)
    weights, biases, slopes, activation = canonical_unit(
        target.shape[-1], weights, biases, slopes, activation, negative_slope, scale, blocks
    )
    check_activation_unit(target, weights, biases, slopes, activation, normalize)
    seed = check_dropout(dropout, seed)
    where = layout(item_ids, target.shape[0], name="item_ids", trailing=0, offsets=offsets, lengths=lengths, mask=mask)
    if item_table.dim() != 2 or item_table.shape[1] != target.shape[-1]:
        raise ValueError(f"item_table has shape {list(item_table.shape)}; expected [V, {target.shape[-1]}]")
    sign = check_fusion(target, fusion, polarity, where.token_shape, polarity_table, gate, sign, extra_ids, extra_table)
    if fusion == "none":
        polarity = polarity_table = None
    candidates = target.shape[1] if target.dim() == 3 else 1
    act, norm = ACTIVATIONS.index(activation), NORMALIZERS.index(normalize)
    chosen = backends.choose(
        "mixed_polarity_attention",
        backend,
        target,
        lambda: saved_bytes(candidates, where.token_shape, weights, act, dropout, seed),
        backends.STORED,
    )
    if dropout and seed is None:
        seed = draw_seed()
    if chosen == "reference":
        if not torch.compiler.is_compiling():
            where.check_values()  # before the assignment, which trusts the offsets
        user, keep = where.assignment()
        if not torch.compiler.is_compiling():
            check_range("item_ids", item_ids, item_table.shape[0], keep)
            if polarity is not None and polarity_table is not None:
                check_range("polarity", polarity, polarity_table.shape[0], keep)
            if extra_ids is not None and extra_table is not None:
                check_range("extra_ids", extra_ids, extra_table.shape[0], keep)
        pooled, attention = reference.mixed_polarity_attention(
            with_candidates(target), item_ids.reshape(-1), None if polarity is None else polarity.reshape(-1),
            user.to(target.device), keep, item_table, polarity_table, sign,
            (gate[0], gate[1], gate[2]) if gate else None,
            None if extra_ids is None else extra_ids.reshape(-1), extra_table,
            weights, biases, slopes, activation, normalize, sparse, dropout, seed,
        )  # fmt: skip
        pooled = pooled.view(target.shape)
        attention = attention.reshape(*where.token_shape, candidates)
    elif backends.needs_grad(target, item_table, polarity_table, extra_table, *gate, *weights, *biases, *slopes):
        pooled, attention = MixedPolarityAttention.apply(
            target, item_ids, polarity, item_table, polarity_table, sign, extra_ids, extra_table,
            where.offsets, where.lengths, where.mask, seed,
            (act, norm, dropout, len(weights), len(gate), sparse, keeps_bits(act, weights, dropout), return_weights),
            *gate, *weights, *biases, *slopes,
        )  # fmt: skip
    else:
        pooled, attention, _ = forward(
            target, item_ids, polarity, item_table, polarity_table, sign, gate or None,
            extra_ids, extra_table, *where.canonical(), weights, biases, slopes or None, act, norm, dropout, seed,
            return_weights, False,
        )  # fmt: skip
    if not return_weights:
        return pooled
    attention = attention.to(target.dtype)  # kept in float32 for the backward
    return pooled, attention[..., 0] if target.dim() == 2 else attention
