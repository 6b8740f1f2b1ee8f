"""Refusals of the Triton kernels, and their launch configurations; imports no triton."""

from __future__ import annotations

import torch
from torch import Tensor

from mixpol_kernels.library import constant
from mixpol_kernels.ops.dot_target_attention.triton import configs
from mixpol_kernels.ops.triton import devices


def refusal(target: Tensor, width: int) -> str:
    """Why the kernels cannot take query rows of this width on the target's device; empty if they can."""
    widths = _served(target.dtype, target.device.index or 0)
    if not widths:
        return str(devices.UNKNOWN)
    return "" if width else "it takes rows of at least one column; use backend='reference'"


@constant
def _served(dtype: torch.dtype, index: int) -> tuple[int, ...] | None:
    device = devices.architecture(index)
    if not device:
        return None
    found = [width for element in devices.elements(dtype) for width in configs.served(device, element)]
    return tuple(sorted(set(found)))


def chosen(queries: Tensor, direction: str, top_k: int) -> tuple[str, int, devices.Config]:
    """The element of `devices.ELEMENTS` to compute with, the columns of a program and its configuration."""
    device, width = devices.architecture(queries.device.index or 0), queries.shape[-1]
    elements = devices.elements(queries.dtype)
    for element in elements[-1:] if top_k else elements:
        served = configs.served(device, element)
        for wide in served:
            if width <= wide and not top_k:
                return element, wide, devices.launched(configs.FOLDER, device, configs.key(direction, element, wide))
        if served:
            special = configs.SPECIAL[direction][element]
            return element, served[0], devices.INTERPRETED if device == devices.INTERPRETER else special
    raise AssertionError("a device that was refused")
