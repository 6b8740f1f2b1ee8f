"""What the Triton kernels can take, and which configuration they take it with; imports no triton."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from mixpol_kernels.library import INTERPRETING, constant
from mixpol_kernels.ops.target_attention.triton import configs


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
    device = architecture(index)
    return configs.served(device, element(dtype), layers) if device else None


def chosen(target: Tensor, units: tuple[int, ...], direction: str) -> configs.Config:
    """The configuration for sizes that were not refused."""
    if INTERPRETING:
        return configs.INTERPRETED
    device, precision = architecture(target.device.index or 0), element(target.dtype)
    width = target.shape[-1]
    for wide, many in configs.served(device, precision, len(units)):
        if width <= wide and all(u <= m for u, m in zip(units, many, strict=True)):
            return configs.shipped(device)[configs.key(direction, precision, wide, many)]
    raise AssertionError("sizes that were refused")


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
        return configs.INTERPRETER
    known = configs.architectures()
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        name = properties.gcnArchName.partition(":")[0]
        return name if name in known else ""
    number = 10 * properties.major + properties.minor
    older = [n for n in sorted(int(k.removeprefix("sm_")) for k in known if k.startswith("sm_")) if n <= number]
    return f"sm_{older[-1]}" if older else ""
