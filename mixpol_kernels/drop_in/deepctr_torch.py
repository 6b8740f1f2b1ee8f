"""DeepCTR-Torch: `AttentionSequencePoolingLayer` (DIN, DIEN)."""

from __future__ import annotations

from typing import Any, cast

import torch
from deepctr_torch.layers.activation import Dice, Identity
from deepctr_torch.layers.sequence import AttentionSequencePoolingLayer
from torch import Tensor, nn

from mixpol_kernels.drop_in.chain import Unsupported, all_kept, asks_of, current, of_unit, read_chain, refusal
from mixpol_kernels.drop_in.registry import Adapter, Layer
from mixpol_kernels.nn.unit import Unit


def _dice(module: nn.Module) -> tuple[str, Tensor | None, nn.BatchNorm1d | None] | None:
    if type(module) is not Dice:
        return None
    return "dice", cast(Tensor, module.alpha).reshape(-1), cast(nn.BatchNorm1d, module.bn)


def _unit(layer: Any) -> Unit:
    dnn = layer.local_att.dnn
    if dnn.use_bn:
        raise Unsupported("it has batch norm behind its linear layers, which no released model sets")
    if any(type(activation) is Identity for activation in dnn.activation_layers):
        raise Unsupported("its hidden layers have no activation")
    chain: list[nn.Module] = []
    for linear, activation in zip(dnn.linears, dnn.activation_layers, strict=True):
        chain += [linear, activation, dnn.dropout]
    # The padding row of a table is trained here: batch statistics take padded rows as they are.
    return read_chain([*chain, layer.local_att.dense], _dice, pads="given")


class FusedAttentionSequencePooling(AttentionSequencePoolingLayer):
    """`AttentionSequencePoolingLayer` by `mixpol_kernels`' fused op."""

    def forward(self, query: Tensor, keys: Tensor, keys_length: Tensor, mask: Tensor | None = None) -> Tensor:
        """Query [B, 1, D], keys [B, L, D] and lengths [B, 1] to [B, 1, D], or [B, 1, L] with `return_score`.

        A user without history gets the mean of the padded rows under weight normalisation, as in the original, and
        else 0.
        """
        unit = current(self, "target_attention", _unit, of_unit, keys)
        if unit is None:
            return cast(Tensor, super().forward(query, keys, keys_length, mask))
        layout: dict[str, Tensor | None]
        if self.supports_masking and mask is None:
            raise ValueError("mask was None; expected one, since the layer was built with supports_masking=True")
        if self.supports_masking and mask is not None:
            layout, kept = {"mask": mask}, mask.bool().any(1)
        else:
            lengths = keys_length.reshape(-1).to(torch.int64).clamp(0, keys.shape[1])
            layout, kept = {"lengths": lengths}, lengths > 0
        if self.weight_normalization:
            unit = unit.with_normalize("softmax")
        pooled, weights = cast(
            "tuple[Tensor, Tensor]", unit.attend(query.squeeze(1), keys, layout, return_weights=True)
        )
        if self.weight_normalization and not all_kept(kept):
            weights = torch.where(kept[:, None], weights, 1.0 / max(keys.shape[1], 1))
            pooled = torch.where(kept[:, None], pooled, keys.mean(1).to(pooled.dtype))
        return weights.unsqueeze(1) if self.return_score else pooled.unsqueeze(1)


ADAPTER = Adapter(
    "deepctr_torch",
    ("0.3.0",),
    (
        Layer(
            AttentionSequencePoolingLayer, FusedAttentionSequencePooling, refusal(_unit),
            "self, query, keys, keys_length, mask=None", asks_of(_unit),
        ),
    ),
)  # fmt: skip
