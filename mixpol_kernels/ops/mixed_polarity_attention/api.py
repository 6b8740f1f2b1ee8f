"""The public function `mixed_polarity_attention`: validation and choice of implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mixpol_kernels import backend as backends
from mixpol_kernels.autocast import in_float32
from mixpol_kernels.checks import check_float, check_ids, check_range, checked
from mixpol_kernels.history import accepts_jagged, layout
from mixpol_kernels.ops.mixed_polarity_attention import reference
from mixpol_kernels.ops.mixed_polarity_attention.autograd import MixedPolarityAttention, by_place, ops
from mixpol_kernels.ops.mixed_polarity_attention.triton import support
from mixpol_kernels.ops.polarity_fusion.api import check_fusion
from mixpol_kernels.ops.target_attention.api import (
    BLOCKS,
    canonical_unit,
    check_activation_unit,
    cuda_refusal,
    saved_bytes,
)
from mixpol_kernels.ops.target_attention.autograd import ACTIVATIONS, NORMALIZERS, keeps_bits, with_candidates
from mixpol_kernels.ops.target_attention.dropout import check_dropout, draw_seed


@accepts_jagged("item_ids", "polarity", "item_rows", "extra_ids")
@checked
@in_float32
def mixed_polarity_attention(
    target: Tensor,
    item_ids: Tensor | None,
    polarity: Tensor | None,
    item_table: Tensor | None,
    polarity_table: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    item_rows: Tensor | None = None,
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
    formulas and the sources. No token-sized tensor is written by the compiled forward; on a GPU the Triton kernels
    write the fused tokens once a direction, and keep none between them.

    Under `torch.autocast` the op runs in float32: inputs of a lower precision are cast.

    Args:
        target: [B, D], or [B, M, D] when M candidates share each user's history.
        item_ids: [N] with `offsets`, or [B, L]; any integer dtype. Ids at pads are not read. None with `item_rows`.
            Or jagged, as whatever has a row a token may be: a nested tensor [B, *] of layout torch.jagged, or a
            TorchRec JaggedTensor.
        polarity: like `item_ids`, rows of `polarity_table`; None with fusion "none".
        item_table: [V, D]. None with `item_rows`.
        polarity_table: [P, D]; None with fusion "none".
        weights, biases, activation, slopes, negative_slope, normalize, scale, blocks, dropout, seed: the activation
            unit, as in `target_attention`; x is the token after the fusion.
        item_rows: in place of ids and table, rows that were looked up already (by TorchRec, say, or with sums over
            several features): [N, D] with `offsets`, or [B, L, D]; any strides. Their gradient has this shape, with
            zeros at pads.
        fusion, gate, sign, extra_ids, extra_table: as in `polarity_fusion`.
        offsets: [B + 1] int32 or int64; user b owns tokens offsets[b] ... offsets[b + 1] - 1.
        lengths: [B] int32 or int64; the first lengths[b] positions are kept.
        mask: [B, L]; nonzero positions are kept, on any side.
        sparse: give `item_table` a sparse gradient with sorted, unique ids instead of a dense one.
        return_weights: also return the attention weights; they have a gradient too.
        backend: "auto", "cpu" (compiled; float32, or bfloat16 and float16 computed in float32; with AVX512-BF16 the
            operands of bfloat16's products are rounded to it, sums are float32), "triton" (on a GPU; the sizes that
            both `polarity_fusion` and `target_attention` take there, ids outside their tables are clamped; with a gate
            every candidate takes a pass of its own), "cuda" (compiled, forward only, float32) or "reference" (plain
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
    item_table = _check_look_up(target, item_ids, item_table, item_rows, sparse)
    given_parameters = (*weights, *biases, *slopes)
    weights, biases, slopes, activation = canonical_unit(
        target.shape[-1], weights, biases, slopes, activation, negative_slope, scale, blocks
    )
    check_activation_unit(target, weights, biases, slopes, activation, normalize)
    given_seed, seed = seed, check_dropout(dropout, seed)
    given, name, trailing = (item_table, "item_rows", 1) if item_ids is None else (item_ids, "item_ids", 0)
    where = layout(given, target.shape[0], name=name, trailing=trailing, offsets=offsets, lengths=lengths, mask=mask)
    signs_made = sign is None or fusion == "none"
    signs = check_fusion(
        target, fusion, polarity, where.token_shape, polarity_table, gate, sign, extra_ids, extra_table
    )
    if fusion == "none":
        polarity = polarity_table = None
    candidates = target.shape[1] if target.dim() == 3 else 1
    act, norm = ACTIVATIONS.index(activation), NORMALIZERS.index(normalize)
    parameters = (*weights, *biases, *slopes)
    inputs = (target, item_table, polarity_table, extra_table, *gate, *parameters)
    gradient = backends.needs_grad(*inputs)

    def made() -> int:
        return backends.new_bytes(parameters, given_parameters) + (signs.nbytes if signs_made else 0)

    chosen = backends.choose(
        "mixed_polarity_attention",
        backend,
        target,
        lambda: saved_bytes(candidates, where.token_shape, weights, act, dropout, seed, given_seed) + made(),
        backends.STORED,
        lambda: support.refusal(target, polarity_table, extra_table, weights, activation, dropout),
        lambda: 4 * math.prod(where.token_shape) * candidates + made(),
        lambda: cuda_refusal(target, weights, activation, dropout, gradient),
        inputs,
    )
    if dropout and seed is None:
        seed = draw_seed()
    triton = chosen == "triton"
    bits = chosen == "cpu" and keeps_bits(act, weights, dropout)
    if chosen == "reference":
        ids, table = by_place(item_ids, item_table)
        if not torch.compiler.is_compiling():
            where.check_values()  # before the assignment, which trusts the offsets
        user, keep = where.assignment()
        if not torch.compiler.is_compiling():
            check_range("item_ids", ids, table.shape[0], keep)
            if polarity is not None and polarity_table is not None:
                check_range("polarity", polarity, polarity_table.shape[0], keep)
            if extra_ids is not None and extra_table is not None:
                check_range("extra_ids", extra_ids, extra_table.shape[0], keep)
        pooled, attention = reference.mixed_polarity_attention(
            with_candidates(target), ids.reshape(-1), None if polarity is None else polarity.reshape(-1),
            user.to(target.device), keep, table, polarity_table, signs,
            (gate[0], gate[1], gate[2]) if gate else None,
            None if extra_ids is None else extra_ids.reshape(-1), extra_table,
            weights, biases, slopes, activation, normalize, sparse, dropout, seed,
        )  # fmt: skip
        pooled = pooled.view(target.shape)
        attention = attention.reshape(*where.token_shape, candidates)
    elif gradient:
        pooled, attention = MixedPolarityAttention.apply(
            target, item_ids, polarity, item_table, polarity_table, signs, extra_ids, extra_table,
            where.offsets, where.lengths, where.mask, seed,
            (act, norm, dropout, len(weights), len(gate), sparse, bits, return_weights, triton),
            *gate, *weights, *biases, *slopes,
        )  # fmt: skip
    else:
        ids, table = by_place(item_ids, item_table)
        pooled, attention, _ = ops(triton)[0](
            target, ids, polarity, table, polarity_table, signs, gate or None,
            extra_ids, extra_table, *where.canonical(), weights, biases, slopes or None, act, norm, dropout, seed,
            return_weights, False,
        )  # fmt: skip
    if not return_weights:
        return pooled
    attention = attention.to(target.dtype)  # kept in float32 for the backward
    return pooled, attention[..., 0] if target.dim() == 2 else attention


def _check_look_up(
    target: Tensor, item_ids: Tensor | None, item_table: Tensor | None, item_rows: Tensor | None, sparse: bool
) -> Tensor:
    """Validates ids and table, or the looked-up rows in place of both; returns the table or the rows."""
    width = target.shape[-1]
    if item_rows is None:
        if item_ids is None or item_table is None:
            missing = "item_ids" if item_ids is None else "item_table"
            raise ValueError(f"{missing} was None; expected ids and a table, or item_rows in place of both")
        check_float(target, "target", item_table=item_table)
        check_ids("item_ids", item_ids, target.device)
        if item_table.dim() != 2 or item_table.shape[1] != width:
            raise ValueError(f"item_table has shape {list(item_table.shape)}; expected [V, {width}]")
        return item_table
    if item_ids is not None or item_table is not None:
        name = "item_table" if item_ids is None else "item_ids"
        raise ValueError(f"{name} and item_rows were given together; pass item_ids=None and item_table=None with rows")
    if sparse:
        raise ValueError("sparse was True with item_rows; expected False: each row has a gradient of its own")
    check_float(target, "target", item_rows=item_rows)
    if item_rows.dim() not in (2, 3) or item_rows.shape[-1] != width:
        raise ValueError(f"item_rows has shape {list(item_rows.shape)}; expected [N, {width}] or [B, L, {width}]")
    return item_rows
