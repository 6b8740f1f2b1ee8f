"""The public function `mixed_polarity_attention`: validation and choice of implementation."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mixpol_kernels import backend as backends
from mixpol_kernels.autocast import Master, under_autocast
from mixpol_kernels.checks import check_float, check_ids, checked
from mixpol_kernels.history import History, accepts_jagged, layout
from mixpol_kernels.ops.fusion import FusionParameters
from mixpol_kernels.ops.mixed_polarity_attention import reference
from mixpol_kernels.ops.mixed_polarity_attention.autograd import FORWARD, MixedPolarityAttention, as_read, by_place
from mixpol_kernels.ops.mixed_polarity_attention.flat import accepts_flat
from mixpol_kernels.ops.polarity_fusion.triton import support as fusion_support
from mixpol_kernels.ops.target_attention.triton import support as unit_support
from mixpol_kernels.ops.triton import devices
from mixpol_kernels.ops.unit import (
    ActivationUnit,
    attention_result,
    check_dropout,
    check_target,
    draw_seed,
    with_candidates,
)


@accepts_flat
@accepts_jagged("history", "polarity", "extra_ids")
@checked
@under_autocast(masters="item_table")
def mixed_polarity_attention(
    target: Tensor,
    history: History | Tensor,
    polarity: Tensor | None,
    item_table: Tensor | None,
    unit: ActivationUnit,
    fusion: FusionParameters = FusionParameters(),  # noqa: B008, immutable
    *,
    extra_ids: Tensor | None = None,
    seed: Tensor | int | None = None,
    sparse: bool = False,
    return_weights: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """From the ids of a mixed-polarity history to the pooled vector, in one pass.

    The composition of an item look-up, `polarity_fusion` and `target_attention`; their docstrings have the
    formulas and the sources. No token-sized tensor is written by the compiled forward; on a GPU the Triton kernels
    write the fused tokens once a direction, and keep none between them.

    Under `torch.autocast` the op takes its dtype where a kernel multiplies in it (on a GPU; bfloat16 on a CPU with
    AVX512-BF16), else float32: inputs are cast, and the result has the autocast dtype, as `nn.Linear`'s. An item table
    is never copied whole: on a GPU its rows are rounded as they are looked up; on a CPU a call with a float32 table
    stays in float32.

    Args:
        target: [B, D], or [B, M, D] when M candidates share each user's history.
        history: `History` of item ids, [N] or [B, L], any integer dtype; ids at pads are not read. Or, without an item
            table, of rows that were looked up already (by TorchRec, say, or with sums over several features), [N, D] or
            [B, L, D], any strides; their gradient has this shape, with zeros at pads. A tensor stands for
            `History(tensor)`. What has a row a token may be jagged: a nested tensor [B, *] of layout torch.jagged, or a
            TorchRec JaggedTensor.
        polarity: like the ids, rows of the polarity table; None with fusion "none".
        item_table: [V, D]; None with rows.
        unit: `ActivationUnit`; x is the token after the fusion.
        fusion: `FusionParameters`; default: none.
        extra_ids: like the ids, rows of the fusion's extra table; None without one.
        seed: int64 (one value on the CPU, or a number), for the unit's dropout. None draws one from torch's default
            generator.
        sparse: give `item_table` a sparse gradient with sorted, unique ids instead of a dense one.
        return_weights: also return the attention weights; they have a gradient too.
        backend: "auto", "cpu" (compiled; float32, or bfloat16 and float16 computed in float32; with AVX512-BF16 the
            operands of bfloat16's products are rounded to it, sums are float32), "triton" (on a GPU; the sizes that
            both `polarity_fusion` and `target_attention` take there, ids outside their tables are clamped; with a gate
            every candidate takes a pass of its own), "cuda" (compiled, forward only, float32) or "reference" (plain
            PyTorch).

    Ids, layout, unit and fusion as separate keywords (`item_ids`, `offsets`, `weights`, `polarity_table`, ...) work in
    this release and give a DeprecationWarning.

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
        >>> history = mk.History(torch.tensor([3, 1, 2]), offsets=torch.tensor([0, 2, 3]))
        >>> unit = mk.ActivationUnit([torch.randn(16, 32), torch.randn(1, 16)], [torch.zeros(16), torch.zeros(1)])
        >>> mk.mixed_polarity_attention(
        ...     torch.randn(2, 8), history, torch.tensor([1, 0, 0]), torch.randn(5, 8), unit,
        ...     mk.FusionParameters("bias", torch.randn(2, 8)),
        ... ).shape
        torch.Size([2, 8])
    """
    check_target(target)
    rows, offsets, lengths, mask = history if isinstance(history, History) else History(history)
    master = isinstance(item_table, Master)  # under autocast: its rows are rounded to the target's dtype
    item_table = item_table.table if isinstance(item_table, Master) else item_table
    item_ids, item_table = _check_look_up(target, rows, item_table, sparse, master)
    given, unit = unit, unit.canonical(target.shape[-1])
    unit.check(target)
    dropout, given_seed, seed = unit.dropout, seed, check_dropout(unit.dropout, seed)
    name, trailing = ("item_rows", 1) if item_ids is None else ("item_ids", 0)
    where = layout(rows, target.shape[0], name=name, trailing=trailing, offsets=offsets, lengths=lengths, mask=mask)
    signs = fusion.check(target, polarity, extra_ids, where.token_shape)
    if fusion.fusion == "none":
        polarity, fusion = None, FusionParameters()
    table, gate, extra_table = fusion.polarity_table, fusion.gate, fusion.extra_table
    candidates = target.shape[1] if target.dim() == 3 else 1
    inputs = (target, item_table, table, extra_table, *gate, *unit.parameters)
    gradient = backends.needs_grad(*inputs)

    def saved(backend: str) -> int:
        tokens = math.prod(where.token_shape) * candidates
        kept = unit.saved_bytes(tokens, seed is None or seed is not given_seed) if backend == "cpu" else 4 * tokens
        made = backends.new_bytes(unit.parameters, given.parameters)
        return kept + made + (signs.nbytes if fusion.makes_signs else 0)

    chosen = backends.choose(
        "mixed_polarity_attention",
        backend,
        target,
        saved,
        inputs,
        devices.float32_products,
        triton=lambda: fusion_support.refusal(target, table, extra_table, bool(gate)) or unit_support.refusal(target),
        cuda=lambda: unit.cuda_refusal(target),
    )
    if dropout and seed is None:
        seed = draw_seed()
    act, norm, _ = unit.codes
    if master and (chosen == "reference" or target.is_cpu):  # rounded rows are read by their places, which are right
        where.check(item_ids=(item_ids, item_table))
    if chosen == "reference":
        if master:
            item_ids, item_table = None, _looked_up(item_ids, item_table, where.keep(), sparse).to(target.dtype)
        ids, items = by_place(item_ids, item_table)
        user, keep = where.assignment(
            target.device, item_ids=(ids, items), polarity=(polarity, table), extra_ids=(extra_ids, extra_table)
        )
        pooled, attention = reference.mixed_polarity_attention(
            with_candidates(target), ids.reshape(-1), None if polarity is None else polarity.reshape(-1),
            user, keep, items, table, signs, (gate[0], gate[1], gate[2]) if gate else None,
            None if extra_ids is None else extra_ids.reshape(-1), extra_table,
            unit.weights, unit.biases, unit.slopes, unit.activation, unit.normalize, sparse and not master, dropout,
            seed,
        )  # fmt: skip
        pooled, attention = pooled.view(target.shape), attention.reshape(*where.token_shape, candidates)
    elif gradient:
        bits = chosen == "cpu" and unit.keeps_bits
        config = (chosen, act, norm, dropout, len(unit.weights), len(gate), sparse, bits, return_weights)
        pooled, attention = MixedPolarityAttention.apply(
            config, target, item_ids, polarity, item_table, table, signs, extra_ids, extra_table,
            where.offsets, where.lengths, where.mask, seed, *gate, *unit.parameters,
        )  # fmt: skip
    else:
        ids, items = as_read(item_ids, item_table, target.dtype)
        pooled, attention, _ = FORWARD.of(chosen)(
            target, ids, polarity, items, table, signs, gate or None, extra_ids, extra_table, *where.canonical(),
            unit.weights, unit.biases, unit.slopes or None, act, norm, dropout, seed, return_weights, False,
        )  # fmt: skip
    return attention_result(pooled, attention, target, return_weights)


def _looked_up(ids: Tensor | None, table: Tensor, keep: Tensor | None, sparse: bool) -> Tensor:
    """Rows [..., D] of a table by PyTorch; any row at pads."""
    assert ids is not None
    ids = ids.long()
    ids = ids if keep is None else torch.where(keep.view(ids.shape), ids, 0)
    return F.embedding(ids, table, sparse=sparse)


def _check_look_up(
    target: Tensor, rows: Tensor, item_table: Tensor | None, sparse: bool, master: bool
) -> tuple[Tensor | None, Tensor]:
    """Validates ids and table, or rows without one; ids and table, or None and the rows."""
    width = target.shape[-1]
    if not rows.is_floating_point():
        if item_table is None:
            raise ValueError("item_table was None; expected the table of the ids, or a history of looked-up rows")
        if master:  # of any dtype
            check_float(item_table, "item_table")
        else:
            check_float(target, "target", item_table=item_table)
        check_ids("item_ids", rows, target.device)
        if item_table.dim() != 2 or item_table.shape[1] != width:
            raise ValueError(f"item_table has shape {list(item_table.shape)}; expected [V, {width}]")
        return rows, item_table
    if item_table is not None:
        raise TypeError(
            f"item_ids has dtype {rows.dtype}; expected an integer dtype, uint8 ... int64, or item_table=None with a "
            "history of looked-up rows"
        )
    if sparse:
        raise ValueError("sparse was True with item_rows; expected False: each row has a gradient of its own")
    check_float(target, "target", item_rows=rows)
    if rows.dim() not in (2, 3) or rows.shape[-1] != width:
        raise ValueError(f"item_rows has shape {list(rows.shape)}; expected [N, {width}] or [B, L, {width}]")
    return None, rows
