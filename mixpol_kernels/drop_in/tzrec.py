"""TorchEasyRec: `DINEncoder`."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F
from tzrec.modules.activation import Dice
from tzrec.modules.sequence import DINEncoder
from tzrec.modules.utils import Transpose

from mixpol_kernels.drop_in.chain import Unsupported, asks_of, current, mean_where_empty, of_unit, read_chain, refusal
from mixpol_kernels.drop_in.registry import Adapter, Layer
from mixpol_kernels.nn.unit import Unit


def _dice(module: nn.Module) -> tuple[str, Tensor | None, nn.BatchNorm1d | None] | None:
    return ("dice", cast(Tensor, module.alpha), cast(nn.BatchNorm1d, module.bn)) if type(module) is Dice else None


def _unit(layer: Any) -> Unit:
    if layer.mlp.return_hidden_layer_feature:
        raise Unsupported("its MLP returns hidden layers")
    # A batch norm sits between two transpositions.
    chain = [m for perceptron in layer.mlp.mlp for m in perceptron.perceptron if type(m) is not Transpose]
    return read_chain([*chain, layer.linear], _dice, pads="zeros").with_normalize("softmax")


class FusedDINEncoder(DINEncoder):
    """`DINEncoder` by `mixpol_kernels`' fused op."""

    def forward(self, sequence_embedded: dict[str, Tensor]) -> Tensor:
        """`{input}.query` [B, Dq], `.sequence` [B, L, D] and `.sequence_length` [B] to [B, D].

        A user without history gets the mean of the padded rows, as in the original.
        """
        unit = current(self, "target_attention", _unit, of_unit, sequence_embedded[self._sequence_name])
        if unit is None:
            return cast(Tensor, super().forward(sequence_embedded))
        query = sequence_embedded[self._query_name]
        sequence = sequence_embedded[self._sequence_name]
        lengths = sequence_embedded[self._sequence_length_name]
        if self._max_seq_length > 0:
            sequence = sequence[:, : self._max_seq_length, :]
        lengths = lengths.clamp(0, sequence.shape[1])
        if self._query_dim < self._sequence_dim:
            query = F.pad(query, (0, self._sequence_dim - self._query_dim))
        pooled = cast(Tensor, unit.attend(query, sequence, {"lengths": lengths}))
        return mean_where_empty(pooled, sequence, lengths[:, None] > 0)


ADAPTER = Adapter(
    "tzrec",
    (),  # not on PyPI: tested against its formula only
    (Layer(DINEncoder, FusedDINEncoder, refusal(_unit), "self, sequence_embedded", asks_of(_unit)),),
)
