"""The public function `polarity_embedding`: validation and choice of implementation."""

from __future__ import annotations

from torch import Tensor

from mixpol_kernels import backend as backends
from mixpol_kernels.autocast import under_autocast
from mixpol_kernels.checks import check_extra, check_float, check_ids, check_shape, checked
from mixpol_kernels.history import Layout, accepts_jagged, layout
from mixpol_kernels.ops.polarity_embedding import reference
from mixpol_kernels.ops.polarity_embedding.autograd import PolarityEmbedding
from mixpol_kernels.ops.polarity_embedding.triton import support


@accepts_jagged("item_ids", "polarity", "extra_ids", returns_tokens=True)
@checked
@under_autocast(products=False)
def polarity_embedding(
    item_ids: Tensor,
    polarity: Tensor,
    item_table: Tensor,
    polarity_table: Tensor,
    *,
    extra_ids: Tensor | None = None,
    extra_table: Tensor | None = None,
    offsets: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    sparse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Looks up tokens of a mixed-polarity history: item_table[item_id] + polarity_table[polarity].

    With an extra table, of recency buckets or positions say, extra_table[extra_id] is added too. The polarity
    bias is that of "Beyond Positive Signals" (arXiv 2606.15252). The gradients of the tables are summed
    over sorted segments in order of position: the same bits for any number of threads.

    Under `torch.autocast`, which leaves look-ups alone, the op runs in float32: tables of a lower precision are cast.

    Args:
        item_ids: [N] jagged or [B, L] padded, any integer dtype. Ids at pads are not read. Or a nested tensor [B, *] of
            layout torch.jagged or a TorchRec JaggedTensor, as `polarity` and `extra_ids` may be then.
        polarity: like `item_ids`, rows of `polarity_table`.
        item_table: [V, D].
        polarity_table: [P, D].
        extra_ids: like `item_ids`, rows of `extra_table`; None without one.
        extra_table: [R, D]; None without one.
        offsets: [B + 1] int32 or int64; validated, otherwise not needed for jagged ids.
        lengths: [B] int32 or int64, for padded ids; the first lengths[b] positions are kept.
        mask: [B, L], for padded ids; nonzero positions are kept, on any side.
        sparse: give `item_table` a sparse gradient with sorted, unique ids instead of a dense one.
        backend: "auto", "cpu" (compiled, float32), "triton" (on a GPU; float32, bfloat16 and float16, summed in
            float32; bad ids are clamped there, and the error comes later: `check_device_errors`), "cuda" (compiled,
            float32) or "reference" (plain PyTorch, sparse gradient not coalesced).

    Returns:
        tokens [N, D] or [B, L, D], dtype of `item_table`; pads are zeros. Nested for nested ids.

    Raises:
        ValueError: contradicting or misshapen arguments, or a backend that cannot take them.
        TypeError: wrong dtypes.
        RuntimeError: an id, polarity or extra id outside its table, offsets or lengths out of range.

    Example:
        >>> import torch, mixpol_kernels as mk
        >>> ids, polarity = torch.tensor([3, 1, 2]), torch.tensor([1, 0, 0])
        >>> mk.polarity_embedding(ids, polarity, torch.randn(5, 8), torch.randn(2, 8)).shape
        torch.Size([3, 8])
    """
    check_float(item_table, "item_table", polarity_table=polarity_table)
    check_tables(item_ids, polarity, item_table, polarity_table)
    check_extra(item_table, "item_table", extra_ids, tuple(item_ids.shape), extra_table)
    if item_ids.dim() == 1 and offsets is None and lengths is None and mask is None:
        where = Layout(1, (item_ids.shape[0],), None, None, None)
    else:
        if offsets is not None and (offsets.dim() != 1 or offsets.shape[0] == 0):
            raise ValueError(f"offsets has shape {list(offsets.shape)}; expected [B + 1]")
        if item_ids.dim() == 0:
            raise ValueError("item_ids has shape []; expected [N] or [B, L]")
        batch = item_ids.shape[0] if offsets is None else offsets.shape[0] - 1
        where = layout(item_ids, batch, name="item_ids", trailing=0, offsets=offsets, lengths=lengths, mask=mask)
    chosen = backends.choose(
        "polarity_embedding",
        backend,
        item_table,
        inputs=(item_table, polarity_table, extra_table),
        triton=lambda: support.refusal(item_table, polarity_table, extra_table),
    )
    if chosen == "reference":
        where.check(
            item_ids=(item_ids, item_table), polarity=(polarity, polarity_table), extra_ids=(extra_ids, extra_table)
        )
        tokens = reference.polarity_embedding(
            item_ids.reshape(-1), polarity.reshape(-1), where.keep(), item_table, polarity_table,
            None if extra_ids is None else extra_ids.reshape(-1), extra_table, sparse,
        )  # fmt: skip
        return tokens.reshape(*item_ids.shape, item_table.shape[1])
    out: Tensor = PolarityEmbedding.apply(
        chosen, item_ids, polarity, item_table, polarity_table, extra_ids, extra_table,
        where.offsets, where.lengths, where.mask, sparse,
    )  # fmt: skip
    return out


def check_tables(item_ids: Tensor, polarity: Tensor, item_table: Tensor, polarity_table: Tensor) -> None:
    """Validates ids against each other and the tables against each other."""
    check_ids("item_ids", item_ids, item_table.device)
    check_ids("polarity", polarity, item_table.device)
    check_shape("polarity", polarity, tuple(item_ids.shape), "the shape of item_ids")
    if item_table.dim() != 2:
        raise ValueError(f"item_table has shape {list(item_table.shape)}; expected [V, D]")
    if polarity_table.dim() != 2 or polarity_table.shape[1] != item_table.shape[1]:
        raise ValueError(f"polarity_table has shape {list(polarity_table.shape)}; expected [P, {item_table.shape[1]}]")
