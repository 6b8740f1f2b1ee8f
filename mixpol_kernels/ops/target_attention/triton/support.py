"""What the Triton kernels can take, and which configuration they take it with; imports no triton."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from mixpol_kernels.library import INTERPRETING, constant
from mixpol_kernels.ops.target_attention.triton import configs


def refusal(target: Tensor, weights: Sequence[Tensor]) -> str:
    """Why the kernels cannot take a unit of these sizes on the target's device; empty if they can."""
    units = tuple(int(weight.shape[0]) for weight in weights[:-1])
    return str(_refusal(int(target.shape[-1]), units, target.dtype, target.device.index or 0))


@constant
def _refusal(width: int, units: tuple[int, ...], dtype: torch.dtype, index: int) -> str:
    device = architecture(index)
    if not device:
        return "it takes AMD gfx942, or NVIDIA GPUs of compute capability 8.0 and newer"
    if min(width, *units) < 1:
        return "it takes sizes from 1 on; use backend='reference'"
    entries = None if INTERPRETING else configs.shipped(device)
    if configs.covering(entries, element(dtype), width, units) is None:
        sizes = [f"D {w} : {' x '.join(map(str, u))}" for w, u in configs.SHAPES if len(u) == len(units)]
        return (
            f"it takes {len(units)} hidden layers up to {' or '.join(sizes)}, what fits on chip, and got D {width} : "
            f"{' x '.join(map(str, units))}; use backend='reference'"
        )
    return ""


def chosen(target: Tensor, units: tuple[int, ...], direction: str) -> configs.Config:
    """The configuration for sizes that were not refused."""
    if INTERPRETING:
        return configs.INTERPRETED
    device, precision = architecture(target.device.index or 0), element(target.dtype)
    entries = configs.shipped(device)
    shape = configs.covering(entries, precision, target.shape[-1], units)
    assert shape is not None  # else it was refused
    return entries[configs.key(direction, precision, *shape)]


def element(dtype: torch.dtype) -> str:
    """One of `configs.ELEMENTS`. float32 follows `torch.set_float32_matmul_precision`: "highest" is IEEE."""
    if dtype != torch.float32:
        return "half"
    exact = torch.version.hip is not None or torch.get_float32_matmul_precision() == "highest"
    return "float32" if exact else "tf32x3"


@functools.cache
def architecture(index: int) -> str:
    """The file of configurations for a GPU: its own or that of the closest older one; empty if there is none."""
    if INTERPRETING:
        return "the interpreter"
    known = configs.architectures()
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        name = properties.gcnArchName.partition(":")[0]
        return name if name in known else ""
    number = 10 * properties.major + properties.minor
    older = [n for n in sorted(int(k.removeprefix("sm_")) for k in known if k.startswith("sm_")) if n <= number]
    return f"sm_{older[-1]}" if older else ""
