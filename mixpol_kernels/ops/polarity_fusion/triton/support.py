"""Refusals of the Triton kernels, and their launch configurations; imports no triton."""

from __future__ import annotations

import torch
from torch import Tensor

from mixpol_kernels.library import constant
from mixpol_kernels.ops.polarity_fusion.triton import configs
from mixpol_kernels.ops.triton import devices


def refusal(target: Tensor, polarity_table: Tensor | None, extra_table: Tensor | None, gate: bool) -> str:
    """Why the kernels cannot take these sizes on the target's device; empty if they can."""
    widths = _served(target.dtype, target.device.index or 0)
    if widths is None:
        return str(devices.UNKNOWN)
    most = max(widths, default=0) if gate else configs.WIDEST_WITHOUT_GATE
    if not 1 <= target.shape[-1] <= most:
        gated = " with a gate" if gate else ""
        return f"it takes D from 1 to {most}{gated}, what fits on chip; use backend='reference'"
    for name, table in (("polarity_table", polarity_table), ("extra_table", extra_table)):
        if table is not None and not table.shape[0]:
            return f"it takes tables of at least one row, and {name} has none; use backend='reference'"
    return ""


@constant
def _served(dtype: torch.dtype, index: int) -> tuple[int, ...] | None:
    device = devices.architecture(index)
    if not device:
        return None
    found = [width for element in devices.elements(dtype) for width in configs.served(device, element)]
    return tuple(sorted(set(found)))


def chosen(target: Tensor, direction: str, gate: bool) -> tuple[str, devices.Config]:
    """The element of `devices.ELEMENTS` to compute with and the configuration, for sizes that were not refused."""
    device = devices.architecture(target.device.index or 0)
    for element in devices.elements(target.dtype):
        for wide in configs.WIDTHS:
            name = configs.key(direction, element, wide)
            known = device == devices.INTERPRETER or name in devices.configured(configs.FOLDER, device)
            if target.shape[-1] <= wide and known:  # of split products the forward alone, where the backward has none
                return element, devices.launched(configs.FOLDER, device, name)
    if not gate:
        return devices.elements(target.dtype)[-1], configs.WITHOUT_GATE
    raise AssertionError("sizes that were refused")
