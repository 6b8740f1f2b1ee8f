"""RecBole: `SequenceAttLayer` (DIN, DIEN, WideDeep's sequence form)."""

from __future__ import annotations

from typing import Any, cast

import torch
from recbole.model.layers import Dice, SequenceAttLayer
from torch import Tensor, nn

from mixpol_kernels.drop_in.chain import Unsupported, asks_of, current, of_unit, read_chain, refusal
from mixpol_kernels.drop_in.registry import Adapter, Layer
from mixpol_kernels.nn.unit import Unit


def _dice(module: nn.Module) -> tuple[str, Tensor | None, nn.BatchNorm1d | None] | None:
    # Its alpha is a constant 0 and nothing is normalised: x σ(x).
    if type(module) is not Dice:
        return None
    if bool(cast(Tensor, module.alpha).any()):
        raise Unsupported("the alpha of its Dice, a constant 0 in RecBole, was changed")
    return "silu", None, None


def _unit(layer: Any) -> Unit:
    return read_chain([*layer.att_mlp_layers.mlp_layers, layer.dense], _dice, pads="given")


class FusedSequenceAtt(SequenceAttLayer):
    """`SequenceAttLayer` by `mixpol_kernels`' fused op."""

    def forward(self, queries: Tensor, keys: Tensor, keys_length: Tensor) -> Tensor:
        """Queries [B, D], keys [B, L, D] and lengths [B] to weights [B, 1, L], or to [B, 1, D].

        Under a softmax a user without history gets NaN in the original and 0 here.
        """
        unit = current(self, "target_attention", _unit, of_unit, keys)
        if unit is None:
            return cast(Tensor, super().forward(queries, keys, keys_length))
        unit = unit.with_scale(queries.shape[-1] ** -0.5)
        if self.softmax_stag:
            unit = unit.with_normalize("softmax")
        layout = {"lengths": keys_length.to(torch.int64).clamp(0, keys.shape[1])}
        if not self.return_seq_weight:
            return cast(Tensor, unit.attend(queries, keys, layout)).unsqueeze(1)
        _, weights = cast("tuple[Tensor, Tensor]", unit.attend(queries, keys, layout, return_weights=True))
        return weights.unsqueeze(1)


ADAPTER = Adapter(
    "recbole",
    ("1.2.1",),
    (Layer(SequenceAttLayer, FusedSequenceAtt, refusal(_unit), "self, queries, keys, keys_length", asks_of(_unit)),),
)
