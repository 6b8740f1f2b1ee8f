"""`FusionParameters`: tables and gate of a polarity fusion, checked in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixpol_kernels.checks import check_choice, check_extra, check_float, check_ids, check_shape

FUSIONS = ("none", "bias", "tapf")
GATE_INPUTS = ("product", "full")
_GATE = "W_g [D, D] or [D, 3 D], b_g [D], W_t [D, D]"


class FusionParameters(NamedTuple):
    """How tokens are marked with their polarity; the formulas are in `mixpol_kernels.polarity_fusion`.

    Attributes:
        fusion: "none", "bias" or "tapf".
        polarity_table: [P, D]; by convention row 0 is negative and row 1 positive. Unused with "none".
        gate: for "tapf", (W_g [D, D] or [D, 3 D], b_g [D], W_t [D, D]).
        sign: for "tapf", [P], any values; default -1 for row 0 and +1 for the others. No gradient.
        extra_table: [R, D], added for each token by its extra id; None without one. Not with "none".

    Example:
        >>> import torch, mixpol_kernels as mk
        >>> mk.FusionParameters("bias", torch.randn(2, 8)).fusion
        'bias'
    """

    fusion: str = "none"
    polarity_table: Tensor | None = None
    gate: Sequence[Tensor] = ()
    sign: Tensor | None = None
    extra_table: Tensor | None = None

    @property
    def makes_signs(self) -> bool:
        """Whether `check` returns new signs, not the given ones."""
        return self.sign is None or self.fusion == "none"

    def check(
        self, target: Tensor, polarity: Tensor | None, extra_ids: Tensor | None, token_shape: Sequence[int]
    ) -> Tensor:
        """Validates what the fusion needs against a target [..., D] and ids of `token_shape`; the sign per row.

        Raises:
            ValueError: missing, superfluous or misshapen tensors, an unknown fusion.
            TypeError: wrong dtypes.
        """
        fusion, table, width = self.fusion, self.polarity_table, target.shape[-1]
        check_choice("fusion", fusion, FUSIONS)
        check_extra(target, "target", extra_ids, token_shape, self.extra_table)
        if fusion == "none" and self.extra_table is not None:
            raise ValueError(
                "extra_table was given with fusion='none', which adds nothing to the tokens; use fusion='bias' or "
                "'tapf', or pass neither extra_ids nor extra_table"
            )
        expected = 3 if fusion == "tapf" else 0
        if len(self.gate) != expected:
            words = f": {_GATE}" if expected else ""
            raise ValueError(f"gate has {len(self.gate)} entries; fusion={fusion!r} expects {expected}{words}")
        if fusion == "none":
            return target.new_ones(1)
        if polarity is None or table is None:
            missing = "polarity" if polarity is None else "polarity_table"
            raise ValueError(f"{missing} was None; fusion={fusion!r} needs it (or pass fusion='none')")
        check_float(target, "target", polarity_table=table)
        check_ids("polarity", polarity, target.device)
        check_shape("polarity", polarity, token_shape, "one per history token")
        if table.dim() != 2 or table.shape[1] != width:
            raise ValueError(f"polarity_table has shape {list(table.shape)}; expected [P, {width}]")
        self._check_gate(target)
        if self.sign is None:
            return default_sign(table.shape[0], target)
        check_float(target, "target", sign=self.sign)
        check_shape("sign", self.sign, (table.shape[0],), "one per polarity row")
        return self.sign.detach()

    def _check_gate(self, target: Tensor) -> None:
        width = target.shape[-1]
        names = ("gate[0] (W_g)", "gate[1] (b_g)", "gate[2] (W_t)")
        for name, tensor, shape in zip(names, self.gate, ((width, width), (width,), (width, width)), strict=False):
            check_float(target, "target", **{name: tensor})
            if name != names[0]:
                check_shape(name, tensor, shape, "D = the width of target")
            # Sizes one by one: torch.compile does not find a tuple of sizes that may change among others.
            elif tensor.dim() != 2 or tensor.shape[0] != width or tensor.shape[1] not in (width, 3 * width):
                raise ValueError(
                    f"{name} has shape {list(tensor.shape)}; expected [{width}, {width}] for the gate inputs x * t, or "
                    f"[{width}, {3 * width}] for [x ; t ; x * t] (D = the width of target)"
                )


def default_sign(rows: int, like: Tensor) -> Tensor:
    """-1 for row 0, +1 for the others."""
    sign = torch.ones(rows, dtype=like.dtype, device=like.device)
    sign[:1] = -1
    return sign
