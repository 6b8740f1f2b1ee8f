"""FuxiCTR: `DIN_Attention` and `MultiHeadTargetAttention` (SIM, ETA, SDIM, TWIN, MIRRN and others use it)."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from fuxictr.pytorch.layers.activations import Dice
from fuxictr.pytorch.layers.attentions.target_attention import (
    DIN_Attention,
    MultiHeadTargetAttention,
    ScaledDotProductAttention,
)
from torch import Tensor, nn

from mixpol_kernels.backend import Explanation, explain
from mixpol_kernels.drop_in.chain import (
    Unsupported,
    all_kept,
    asks_of,
    current,
    mean_where_empty,
    of_unit,
    read_chain,
    refusal,
)
from mixpol_kernels.drop_in.polarity import PolarLayer
from mixpol_kernels.drop_in.registry import Adapter, Layer
from mixpol_kernels.nn.called import LINEAR, why
from mixpol_kernels.nn.unit import Unit
from mixpol_kernels.ops.dot_target_attention.api import dot_target_attention


def _dice(module: nn.Module) -> tuple[str, Tensor | None, nn.BatchNorm1d | None] | None:
    return ("dice", cast(Tensor, module.alpha), cast(nn.BatchNorm1d, module.bn)) if type(module) is Dice else None


def _unit(layer: Any) -> Unit:
    # Padded rows are zero (FuxiCTR's tables have a padding row), and batch statistics count them.
    unit = read_chain(layer.attention_layer.mlp, _dice, pads="zeros")
    if layer.use_softmax and unit.normalize != "none":
        raise Unsupported("it has an output activation and a softmax behind it")
    return unit


class FusedDINAttention(DIN_Attention):
    """`DIN_Attention` by `mixpol_kernels`' fused op."""

    def forward(self, target_item: Tensor, history_sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        """Target [B, D], history [B, L, D] and mask [B, L], nonzero where a position counts, to [B, D].

        A user without history gets the mean of the padded rows under a softmax, as in the original, and else 0.
        """
        unit = current(self, "target_attention", _unit, of_unit, history_sequence)
        if unit is None:
            return cast(Tensor, super().forward(target_item, history_sequence, mask))
        if self.use_softmax:
            unit = unit.with_normalize("softmax")
        pooled = cast(Tensor, unit.attend(target_item, history_sequence, {"mask": mask}))
        if mask is None:
            return pooled
        pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32))  # the original promotes by its mask
        return (
            mean_where_empty(pooled, history_sequence, (mask != 0).any(1, keepdim=True)) if self.use_softmax else pooled
        )


class PolarDINAttention(PolarLayer, FusedDINAttention):
    """`FusedDINAttention` behind a polarity fusion; see `with_polarity`."""

    def forward(self, target_item: Tensor, history_sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `FusedDINAttention`, of the history fused with its polarity."""
        fused = self.fuse(target_item, history_sequence, mask)
        return FusedDINAttention.forward(self, target_item, fused, mask)


def _projections(layer: Any) -> tuple[Tensor, ...] | tuple[None, ...]:
    if layer.dot_attention.dropout is not None:
        raise Unsupported("it drops out attention weights, which the op does not")
    if type(layer.dot_attention) is not ScaledDotProductAttention:
        raise Unsupported(f"dot_attention is {type(layer.dot_attention).__name__}, not ScaledDotProductAttention")
    if not layer.use_qkvo:
        return (None,) * 4
    for name in ("W_q", "W_k", "W_v", "W_o"):
        linear = getattr(layer, name)
        if reason := why(name, linear, LINEAR):
            raise Unsupported(reason)
        if linear.bias is not None:
            raise Unsupported(f"{name} has a bias, which the op does not")
    return tuple(cast(Tensor, linear.weight) for linear in (layer.W_q, layer.W_k, layer.W_v, layer.W_o))


def _heads_by(layer: Any, projections: tuple[Tensor | None, ...], like: Tensor) -> Explanation:
    """Which kernels take the layer's projections on inputs like this one."""
    w_q, w_k, w_v, w_o = projections
    width = layer.num_heads if w_q is None else w_q.shape[1]
    inputs = like.new_empty(1, width), like.new_empty(1, 1, width)
    return explain(dot_target_attention, *inputs, num_heads=layer.num_heads, w_q=w_q, w_k=w_k, w_v=w_v, w_o=w_o)


def _heads(layer: nn.Module, like: Tensor) -> Explanation:
    return _heads_by(layer, _projections(layer), like)


class FusedMultiHeadTargetAttention(MultiHeadTargetAttention):
    """`MultiHeadTargetAttention` by `mixpol_kernels`' fused op: no token is projected."""

    def forward(self, target_item: Tensor, history_sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        """Target [B, D], history [B, L, D] and mask [B, L], nonzero where a position counts, to [B, D].

        A user without history gets the mean of the projected padded rows, as in the original.
        """
        projections = current(self, "dot_target_attention", _projections, partial(_heads_by, self), history_sequence)
        if projections is None:
            return cast(Tensor, super().forward(target_item, history_sequence, mask))
        w_q, w_k, w_v, w_o = projections
        pooled = cast(
            Tensor,
            dot_target_attention(
                target_item, history_sequence, num_heads=self.num_heads, w_q=w_q, w_k=w_k, w_v=w_v, w_o=w_o,
                scale=1.0 / self.scale if self.scale else 1.0, mask=mask,
            ),
        )  # fmt: skip
        if mask is None:
            return pooled
        kept = (mask != 0).any(1, keepdim=True)
        if all_kept(kept):
            return pooled
        mean = history_sequence.mean(1)
        mean = mean if w_v is None or w_o is None else mean @ w_v.T @ w_o.T
        return torch.where(kept, pooled, mean.to(pooled.dtype))


ADAPTER = Adapter(
    "fuxictr",
    ("2.3.10",),
    (
        Layer(
            DIN_Attention, FusedDINAttention, refusal(_unit), "self, target_item, history_sequence, mask=None",
            asks_of(_unit), PolarDINAttention,
        ),
        Layer(
            MultiHeadTargetAttention, FusedMultiHeadTargetAttention, refusal(_projections),
            "self, target_item, history_sequence, mask=None", (_heads,),
        ),
    ),
)  # fmt: skip
