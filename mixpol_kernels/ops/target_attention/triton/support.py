"""Refusals of the Triton kernels, and their launch configurations; imports no triton."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixpol_kernels.library import constant
from mixpol_kernels.ops.target_attention.triton import configs
from mixpol_kernels.ops.triton import devices


def refusal(target: Tensor, weights: Sequence[Tensor], activation: str, dropout: float) -> str:
    """Why the kernels cannot take a unit of these sizes on the target's device; empty if they can."""
    if activation == "dice_row":
        return "it has no activation 'dice_row'; use backend='reference'"
    if dropout:
        return f"it has no dropout and got {dropout}; use backend='reference'"
    served = _served(len(weights) - 1, target.dtype, target.device.index or 0)
    if served is None:
        return "it takes AMD gfx942, or NVIDIA GPUs of compute capability 8.0 and newer"
    width, units = target.shape[-1], [weight.shape[0] for weight in weights[:-1]]
    if any(size < 1 for size in (width, *units)):
        return "it takes sizes from 1 on; use backend='reference'"
    for wide, many in served:
        if width <= wide and all(u <= m for u, m in zip(units, many, strict=True)):
            return ""
    sizes = " or ".join(f"D {wide} : {' x '.join(map(str, many))}" for wide, many in served) or "none"
    # Sizes are symbols while compiling.
    got = "" if torch.compiler.is_compiling() else f", and got D {width} : {' x '.join(map(str, units))}"
    return f"it takes this many hidden layers up to {sizes}, what fits on chip{got}; use backend='reference'"


@constant
def _served(layers: int, dtype: torch.dtype, index: int) -> tuple[tuple[int, tuple[int, ...]], ...] | None:
    """The largest sizes of units with this number of hidden layers; None for a device without configurations."""
    device = devices.architecture(index)
    if not device:
        return None
    found = [shape for element in devices.elements(dtype) for shape in configs.served(device, element, layers)]
    return tuple(dict.fromkeys(found))


def chosen(target: Tensor, units: tuple[int, ...], direction: str) -> tuple[str, devices.Config]:
    """The element of `devices.ELEMENTS` to compute with and the configuration, for sizes that were not refused."""
    device, width = devices.architecture(target.device.index or 0), target.shape[-1]
    for element in devices.elements(target.dtype):
        for wide, many in configs.served(device, element, len(units)):
            if width <= wide and all(u <= m for u, m in zip(units, many, strict=True)):
                name = configs.key(direction, element, wide, many)
                return element, devices.launched(configs.FOLDER, device, name)
    raise AssertionError("sizes that were refused")
