"""Refusals of the Triton kernels, and their launch configurations; imports no triton."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixpol_kernels.library import constant
from mixpol_kernels.ops.target_attention.triton import configs
from mixpol_kernels.ops.triton import devices
from mixpol_kernels.ops.unit import ACTIVATIONS


def refusal(target: Tensor) -> str:
    """Why the kernels cannot run on the target's device; empty if they can. They take every unit."""
    if not _known(target.device.index or 0):
        return "it takes AMD gfx942, or NVIDIA GPUs of compute capability 8.0 and newer; use backend='reference'"
    return ""


@constant
def _known(index: int) -> bool:
    return bool(devices.architecture(index))


def fused(target: Tensor, units: Sequence[int], activation: int, dropout: float) -> bool:
    """Whether one kernel a direction takes the whole unit, since it fits on chip; else the staged ones do."""
    if dropout or ACTIVATIONS[activation] == "dice_row":
        return False
    served = _served(len(units), target.dtype, target.device.index or 0)
    return any(
        target.shape[-1] <= wide and all(u <= m for u, m in zip(units, many, strict=True)) for wide, many in served
    )


@constant
def _served(layers: int, dtype: torch.dtype, index: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The largest sizes of units with this number of hidden layers that one kernel takes."""
    device = devices.architecture(index)
    found = [shape for element in devices.elements(dtype) for shape in configs.served(device, element, layers)]
    return tuple(dict.fromkeys(found))


def chosen(target: Tensor, units: tuple[int, ...], direction: str) -> tuple[str, devices.Config]:
    """The element of `devices.ELEMENTS` to compute with and the configuration, for sizes that `fused` takes."""
    device, width = devices.architecture(target.device.index or 0), target.shape[-1]
    for element in devices.elements(target.dtype):
        for wide, many in configs.served(device, element, len(units)):
            if width <= wide and all(u <= m for u, m in zip(units, many, strict=True)):
                name = configs.key(direction, element, wide, many)
                return element, devices.launched(configs.FOLDER, device, name)
    raise AssertionError("sizes that are not fused")
