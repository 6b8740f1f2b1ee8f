"""Rectified hidden units whose side of 0 rounding could decide: their gradients cannot be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mixpol_kernels.testing.layouts import Placement

KINKED = ("relu", "prelu", "leaky_relu")


class _Kinks(TorchFunctionMode):
    """Notes how close to 0 any unit of any linear layer comes, relative to the sizes of what is added up."""

    def __init__(self) -> None:
        super().__init__()
        self.closest = torch.inf

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and out.numel() and len(args) == 3:
            inputs, weight, bias = (t.abs() for t in args)
            size = torch.nn.functional.linear(inputs, weight, bias)
            self.closest = min(self.closest, float((out.abs() / size)[size > 0].min()))
        return out


def far_from_kinks(case: Any, where: Placement, dtype: torch.dtype) -> bool:
    """Whether no rounding error can decide on which side of 0 a rectified unit lies."""
    units = case.config.has_unit or case.config.op == "unit_statistics"
    if not units or case.config.activation not in KINKED:
        return True
    with _Kinks() as kinks, torch.no_grad():
        case.call(case.arguments(where, torch.float64), "reference")
    return kinks.closest > 16 * torch.finfo(dtype).eps
