"""Refusals of the Triton kernels, and their launch configurations; imports no triton."""

from __future__ import annotations

import torch
from torch import Tensor

from mixpol_kernels.library import constant
from mixpol_kernels.ops.polarity_fusion.triton import configs
from mixpol_kernels.ops.triton import devices


def refusal(target: Tensor, polarity_table: Tensor | None, extra_table: Tensor | None) -> str:
    """Why the kernels cannot take these sizes on the target's device; empty if they can."""
    widths = _served(target.dtype, target.device.index or 0)
    if widths is None:
        return "it takes AMD gfx942, or NVIDIA GPUs of compute capability 8.0 and newer"
    width = target.shape[-1]
    if not any(width <= wide for wide in widths) or width < 1:
        return f"it takes D from 1 to {max(widths, default=0)}, what fits on chip; use backend='reference'"
    for name, table in (("polarity_table", polarity_table), ("extra_table", extra_table)):
        if table is not None and not 1 <= table.shape[0] <= configs.ROWS:
            return f"it takes 1 to {configs.ROWS} rows of {name}; use backend='reference'"
    return ""


@constant
def _served(dtype: torch.dtype, index: int) -> tuple[int, ...] | None:
    device = devices.architecture(index)
    return configs.served(device, devices.elements(dtype)[-1]) if device else None


def chosen(target: Tensor, direction: str) -> devices.Config:
    """The configuration for sizes that were not refused."""
    device, element = devices.architecture(target.device.index or 0), devices.elements(target.dtype)[-1]
    width = next(w for w in configs.served(device, element) if target.shape[-1] <= w)
    return devices.launched(configs.FOLDER, device, configs.key(direction, element, width))
