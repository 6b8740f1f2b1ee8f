"""`MixedPolarityAttention`: from ids to the pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mixpol_kernels.backend import is_direct, plain_form
from mixpol_kernels.checks import looked_up
from mixpol_kernels.history import History, accepts_jagged
from mixpol_kernels.nn import fast_path, plain
from mixpol_kernels.nn.called import EMBEDDING, all_plain, first_reason
from mixpol_kernels.nn.polarity_fusion import PolarityFusion
from mixpol_kernels.nn.sizes import check_size
from mixpol_kernels.nn.starts import ScaledEmbedding, reset_children
from mixpol_kernels.nn.target_attention import TargetAttention
from mixpol_kernels.ops.mixed_polarity_attention.api import mixed_polarity_attention
from mixpol_kernels.ops.mixed_polarity_attention.autograd import FORWARD
from mixpol_kernels.ops.unit import ActivationUnit

_PARTS = (PolarityFusion, TargetAttention)


class MixedPolarityAttention(nn.Module):
    """Item look-up, polarity fusion and target attention in one pass; see `mixpol_kernels.mixed_polarity_attention`.

    Args:
        num_items: rows V of the item table; None for no table: rows then come from elsewhere, a sharded one say.
        embedding_dim: width D.
        hidden_units: one to three hidden layers of the activation unit.
        fusion: "none", "bias" or "tapf".
        activation, normalize: as in `TargetAttention`.
        n_polarity: rows of the polarity table.
        signs: one per polarity row, for "tapf".
        sparse: sparse gradient with sorted, unique ids for the item table, from history and target ids alike.
        backend: "auto" or a name in `mixpol_kernels.backend.BACKENDS`, as in the op.
        gate_inputs: what the gate of "tapf" sees: "product" or "full", as in `PolarityFusion`.
        num_extra: rows of an extra additive table for "bias" and "tapf"; 0 for none.
        **unit_options: further keyword arguments of `TargetAttention`. With "dice" or `batch_norm`, training writes the
            fused tokens once ([N, D]), since their statistics have to be known before the pooling; evaluation does
            not. Training is then for targets [B, D].

    Attributes:
        item_embedding: `nn.Embedding(V, D)`, or None; the model may read it elsewhere too.
        fusion: `PolarityFusion` (its parameters).
        attention: `TargetAttention` (its parameters).

    An item embedding with options of `nn.Embedding` that a bare table lacks (`padding_idx` and `scale_grad_by_freq`
    where it learns, `max_norm`), a subclass of it, a quantised or a hooked one is called, for the ids that are not
    pads, and the rest runs fused on its rows. Where `fusion`, `attention` or a layer in them is more than its
    parameters, both are called one after the other; see `TargetAttention`.

    Raises:
        TypeError: sizes that are no whole numbers.
        ValueError: options out of range, or that contradict each other.

    Example:
        >>> import torch
        >>> from mixpol_kernels.nn import MixedPolarityAttention
        >>> layer = MixedPolarityAttention(100, 8, [16], fusion="tapf")
        >>> ids, polarity, offsets = torch.tensor([3, 1, 2]), torch.tensor([1, 0, 0]), torch.tensor([0, 2, 3])
        >>> layer(torch.tensor([7, 9]), ids, polarity, offsets=offsets).shape
        torch.Size([2, 8])
    """

    item_embedding: Any

    def __init__(
        self,
        num_items: int | None,
        embedding_dim: int,
        hidden_units: Sequence[int] = (64,),
        fusion: str = "tapf",
        activation: str = "relu",
        normalize: str = "none",
        n_polarity: int = 2,
        signs: Sequence[float] | None = None,
        sparse: bool = False,
        backend: str = "auto",
        gate_inputs: str = "product",
        num_extra: int = 0,
        **unit_options: Any,
    ) -> None:
        super().__init__()
        self.backend = backend
        if num_items is None and sparse:
            raise ValueError("sparse was True with num_items=None; expected False: no table has a gradient then")
        self.item_embedding = None
        if num_items is not None:
            check_size("num_items", num_items)
            check_size("embedding_dim", embedding_dim)
            self.item_embedding = ScaledEmbedding(num_items, embedding_dim, sparse=sparse)
        self.fusion = PolarityFusion(embedding_dim, fusion, n_polarity, signs, backend, gate_inputs, num_extra)
        self.attention = TargetAttention(embedding_dim, hidden_units, activation, normalize, backend, **unit_options)

    @accepts_jagged("item_ids", "polarity", "extra_ids")
    def forward(
        self,
        target: Tensor,
        item_ids: Tensor,
        polarity: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
        extra_ids: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Pooled vectors [B, D] or [B, M, D].

        Args:
            target: vectors [B, D] or [B, M, D], or ids [B] or [B, M] to look up in the item table.
            item_ids: [N] or [B, L]; or rows that were looked up already, [N, D] or [B, L, D], as `item_rows` of the op.
            polarity: [N] or [B, L].
            lengths, mask, offsets: the history's layout.
            extra_ids: like `item_ids`, rows of the extra table; None without one.
            return_weights: also return the attention weights.

        Raises:
            ValueError: ids without a table, and what the op refuses.
        """
        for name, value in (("target", target), ("item_ids", item_ids)):
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{name} was a {type(value).__name__}; expected a tensor, nested or not, or a JaggedTensor; the "
                    "module takes the fields of a History apart: item_ids, offsets=, lengths=, mask="
                )
        rows = item_ids if item_ids.is_floating_point() else None
        if self.item_embedding is None and (rows is None or not target.is_floating_point()):
            name, given = ("item_ids", item_ids) if rows is None else ("target", target)
            raise ValueError(
                f"{name} was {given.dtype} {list(given.shape)}, but the layer was made with num_items=None and has no "
                "table; pass the rows that you looked up"
            )
        embedding = self.item_embedding
        if not target.is_floating_point():
            target = looked_up("target", embedding, target)
        layout = {"lengths": lengths, "mask": mask, "offsets": offsets}
        if rows is None and self._embedding_is_called(embedding):
            rows = plain.look_up(embedding, item_ids, layout)
        items = item_ids if rows is None else rows
        if reason := self.called():
            plain_form("mixed_polarity_attention", self.backend, reason)
            return self._by_parts(target, items, polarity, extra_ids, layout, return_weights)
        if not return_weights and rows is None and is_direct(self.backend, target):
            found = self._direct(target, item_ids, polarity, embedding.weight, extra_ids, (offsets, lengths, mask))
            if found is not None:
                return found
        unit = self.attention.unit()
        if unit.needs_statistics:
            if target.dim() != 2:
                raise ValueError(
                    f"target has shape {list(target.shape)}; expected [B, D] while training with batch statistics: "
                    "call the layer once per candidate, or .eval() it"
                )
            return self._by_parts(target, items, polarity, extra_ids, layout, return_weights)
        weights, biases, slopes = unit.by_running_statistics()
        return mixed_polarity_attention(
            target, History(items, offsets, lengths, mask), polarity, None if rows is not None else embedding.weight,
            ActivationUnit(weights, biases, slopes=slopes, **unit.options()), self.fusion.parameters_of_op(),
            extra_ids=extra_ids, sparse=rows is None and embedding.sparse, return_weights=return_weights,
            backend=self.backend,
        )  # fmt: skip

    def reset_parameters(self) -> None:
        """Starts again: all layers inside."""
        reset_children(self)

    def called(self) -> str:
        """Why fusion and attention have to be called, and not their parameters read; empty if they have not."""
        modules: Any = self._modules  # attributes of nn.Module are slow
        fusion, attention = modules["fusion"], modules["attention"]
        if not all_plain((fusion, attention), _PARTS):
            return first_reason([("fusion", fusion, (PolarityFusion,)), ("attention", attention, (TargetAttention,))])
        if reason := fusion.called():
            return f"fusion.{reason}"
        reason = attention.called()
        return f"attention.{reason}" if reason else ""

    def _embedding_is_called(self, embedding: Any) -> bool:
        """Whether the item embedding does more in its forward than to look rows up, or its gradient is another one."""
        if not all_plain((embedding,), EMBEDDING) or embedding.max_norm is not None:
            return True
        special = embedding.padding_idx is not None or embedding.scale_grad_by_freq
        return bool(special and torch.is_grad_enabled() and embedding.weight.requires_grad)

    def _direct(
        self,
        target: Tensor,
        item_ids: Tensor,
        polarity: Tensor | None,
        item_table: Tensor,
        extra_ids: Tensor | None,
        where: fast_path.Where,
    ) -> Tensor | None:
        """By the compiled forward at once, unless parameters have to be made for it or it refuses."""
        unit, fusion = self.attention.plain(), self.fusion
        if unit is None:
            return None
        table = fusion.polarity_table
        before = (
            target, item_ids, None if table is None else polarity, item_table, table, fusion.sign,
            fusion.gate_tensors() or None, extra_ids, fusion.extra_table,
        )  # fmt: skip
        return fast_path.forward(
            FORWARD.compiled, before, where, unit, self, target, item_ids, polarity, extra_ids=extra_ids
        )

    def _by_parts(
        self,
        target: Tensor,
        items: Tensor,
        polarity: Tensor | None,
        extra_ids: Tensor | None,
        layout: dict[str, Tensor | None],
        return_weights: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Fusion and attention as modules, one after the other; `items` are ids, or rows that were looked up."""
        rows = items if items.is_floating_point() else plain.look_up(self.item_embedding, items, layout)
        if target.dim() == 3 and self.fusion.fusion == "tapf":  # the tokens are another candidate's others
            each = [self._by_parts(one, rows, polarity, extra_ids, layout, return_weights) for one in target.unbind(1)]
            if not return_weights:
                return torch.stack(cast("list[Tensor]", each), 1)
            pooled, weights = zip(*each, strict=True)
            return torch.stack(pooled, 1), torch.stack(weights, -1)
        first = target if target.dim() == 2 else target[:, 0]
        where: dict[str, Any] = layout
        tokens = self.fusion(first, rows, polarity, extra_ids=extra_ids, **where)
        return cast(
            "Tensor | tuple[Tensor, Tensor]", self.attention(target, tokens, return_weights=return_weights, **where)
        )
