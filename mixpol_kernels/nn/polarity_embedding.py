"""`PolarityEmbedding`: item table and polarity table, looked up together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixpol_kernels.history import accepts_jagged
from mixpol_kernels.nn.sizes import check_size
from mixpol_kernels.ops.polarity_embedding.api import polarity_embedding


class PolarityEmbedding(nn.Module):
    """Tokens of a mixed-polarity history: item row + polarity row; see `mixpol_kernels.polarity_embedding`.

    Args:
        num_items: rows V of the item table.
        embedding_dim: width D.
        n_polarity: rows of the polarity table.
        sparse: sparse gradient with sorted, unique ids for the item table.
        backend: "auto" or a name in `mixpol_kernels.backend.BACKENDS`, as in the op.
        num_extra: rows R of an extra additive table, of recency buckets or positions say; 0 for none.

    Attributes:
        item_table: [V, D] parameter, N(0, 1 / D) at the start.
        polarity_table: [P, D] parameter, N(0, 1 / D) at the start.
        extra_table: [R, D] parameter, N(0, 1 / D) at the start; None without one.

    Raises:
        TypeError: sizes that are no whole numbers.
        ValueError: sizes below 1, `num_extra` below 0.

    Example:
        >>> import torch
        >>> from mixpol_kernels.nn import PolarityEmbedding
        >>> PolarityEmbedding(100, 8)(torch.tensor([7, 3]), torch.tensor([1, 0])).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        num_items: int,
        embedding_dim: int,
        n_polarity: int = 2,
        sparse: bool = False,
        backend: str = "auto",
        num_extra: int = 0,
    ) -> None:
        super().__init__()
        self.sparse = sparse
        self.backend = backend
        for name, size in (("num_items", num_items), ("embedding_dim", embedding_dim), ("n_polarity", n_polarity)):
            check_size(name, size)
        check_size("num_extra", num_extra, 0)
        self.item_table = nn.Parameter(torch.empty(num_items, embedding_dim))
        self.polarity_table = nn.Parameter(torch.empty(n_polarity, embedding_dim))
        self.extra_table: nn.Parameter | None = None
        if num_extra:
            self.extra_table = nn.Parameter(torch.empty(num_extra, embedding_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Tables as at the start."""
        for table in (self.item_table, self.polarity_table, self.extra_table):
            if table is not None:
                nn.init.normal_(table, std=table.shape[1] ** -0.5)

    @accepts_jagged("item_ids", "polarity", "extra_ids", returns_tokens=True)
    def forward(
        self,
        item_ids: Tensor,
        polarity: Tensor,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
        extra_ids: Tensor | None = None,
    ) -> Tensor:
        """Item_ids, polarity and extra_ids [N] or [B, L] to tokens [N, D] or [B, L, D]."""
        return polarity_embedding(
            item_ids, polarity, self.item_table, self.polarity_table,
            extra_ids=extra_ids, extra_table=self.extra_table,
            offsets=offsets, lengths=lengths, mask=mask, sparse=self.sparse, backend=self.backend,
        )  # fmt: skip

    def extra_repr(self) -> str:
        rows, width = self.item_table.shape
        text = f"{rows}, {width}, n_polarity={self.polarity_table.shape[0]}, sparse={self.sparse}"
        return text if self.extra_table is None else f"{text}, num_extra={self.extra_table.shape[0]}"
