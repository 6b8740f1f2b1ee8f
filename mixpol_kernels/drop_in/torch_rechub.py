"""torch-rechub: `ActivationUnit` (DIN)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn
from torch_rechub.basic.activation import Dice
from torch_rechub.models.ranking.din import ActivationUnit

from mixpol_kernels.drop_in.chain import Unsupported, asks_of, current, of_unit, read_chain, refusal
from mixpol_kernels.drop_in.registry import Adapter, Layer
from mixpol_kernels.nn.unit import Unit


def _dice(module: nn.Module) -> tuple[str, Tensor | None, nn.BatchNorm1d | None] | None:
    return ("dice_row", cast(Tensor, module.alpha), None) if type(module) is Dice else None


def _unit(layer: Any) -> Unit:
    modules = list(layer.attention.mlp)
    # There is no mask: every position counts, in the sum and in the batch norm.
    unit = read_chain(modules, _dice, pads="none")
    eps = {float(module.epsilon) for module in modules if type(module) is Dice}
    if len(eps) > 1:
        raise Unsupported(f"its Dice layers have different epsilons ({', '.join(map(str, sorted(eps)))})")
    return replace(unit, row_eps=eps.pop()) if eps else unit


class FusedActivationUnit(ActivationUnit):
    """`ActivationUnit` by `mixpol_kernels`' fused op."""

    def forward(self, history: Tensor, target: Tensor) -> Tensor:
        """History [B, L, D] and target [B, D] to [B, D]; every position counts."""
        unit = current(self, "target_attention", _unit, of_unit, history)
        if unit is None:
            return cast(Tensor, super().forward(history, target))
        if self.use_softmax:
            unit = unit.with_normalize("softmax")
        return cast(Tensor, unit.attend(target, history, {}))


ADAPTER = Adapter(
    "torch_rechub",
    ("0.9.0",),
    (Layer(ActivationUnit, FusedActivationUnit, refusal(_unit), "self, history, target", asks_of(_unit)),),
)
