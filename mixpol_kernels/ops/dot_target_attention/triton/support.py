"""Refusals of the Triton kernels, and their launch configurations; imports no triton."""

from __future__ import annotations

import torch
from torch import Tensor

from mixpol_kernels.library import constant
from mixpol_kernels.ops.dot_target_attention.triton import configs
from mixpol_kernels.ops.triton import devices


def refusal(target: Tensor, width: int, top_k: int | None) -> str:
    """Why the kernels cannot take query rows of this width on the target's device; empty if they can."""
    if top_k:
        return f"it has no top_k and got {top_k}; use backend='reference'"
    widths = _served(target.dtype, target.device.index or 0)
    if widths is None:
        return "it takes AMD gfx942, or NVIDIA GPUs of compute capability 8.0 and newer"
    if width < 1 or not any(width <= wide for wide in widths):
        most = max(widths, default=0)
        got = "" if torch.compiler.is_compiling() else f", and got {width}"  # a symbol while compiling
        return (
            f"it takes rows 1 to {most} wide (D, or D / num_heads without projections), what fits on chip{got}; "
            "use backend='reference'"
        )
    return ""


@constant
def _served(dtype: torch.dtype, index: int) -> tuple[int, ...] | None:
    device = devices.architecture(index)
    if not device:
        return None
    found = [width for element in devices.elements(dtype) for width in configs.served(device, element)]
    return tuple(sorted(set(found)))


def chosen(queries: Tensor, direction: str) -> tuple[str, devices.Config]:
    """The element of `devices.ELEMENTS` to compute with and the configuration, for rows that were not refused."""
    device, width = devices.architecture(queries.device.index or 0), queries.shape[-1]
    for element in devices.elements(queries.dtype):
        for wide in configs.served(device, element):
            if width <= wide:
                name = configs.key(direction, element, wide)
                return element, devices.launched(configs.FOLDER, device, name)
    raise AssertionError("sizes that were refused")
