"""GPUs, the element types that their matrix units take, and shipped launch configurations; imports no triton."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.library import INTERPRETING

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
# "half": bfloat16 and float16; "float32" with IEEE products; "tf32x3": float32 in three TensorFloat32 products.
ELEMENTS = ("half", "float32", "tf32x3")
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Config:
    """How one kernel is launched.

    Attributes:
        tile: tokens per tile.
        warps, stages: `num_warps` and `num_stages` of Triton.
        flush: of the backward: which sums leave the registers after every tile (see `backward_kernel`).
    """

    tile: int
    warps: int
    stages: int
    flush: int = 0


# The interpreter runs a program one operation at a time: small tiles, so that small inputs have several.
INTERPRETER = "interpreter"
INTERPRETED = Config(tile=16, warps=1, stages=1)


def block(size: int) -> int:
    """The block that holds `size` columns: a power of two of at least 16, as matrix instructions want."""
    return max(16, 1 << (size - 1).bit_length())


def alignment(rows: Tensor) -> int:
    """The largest power of two, up to 16, that divides the strides of rows: untold, the compiler cannot load widely."""
    return next(a for a in (16, 8, 4, 2, 1) if all(stride % a == 0 for stride in rows.stride()[:-1]))


@functools.cache
def shipped(folder: Path, architecture: str) -> dict[str, Config]:
    """The configurations of an op for one of ARCHITECTURES. In the file null says that none was found."""
    entries: dict[str, Any] = json.loads((folder / f"{architecture}.json").read_text())
    return {name: Config(**entry) for name, entry in entries.items() if entry is not None}


def elements(dtype: torch.dtype) -> tuple[str, ...]:
    """Which of ELEMENTS may stand for a dtype, the preferred one first.

    float32 follows `torch.set_float32_matmul_precision`: "highest" asks for IEEE products, the others allow to split.
    """
    if dtype != torch.float32:
        return ("half",)
    exact = torch.version.hip is not None or torch.get_float32_matmul_precision() == "highest"
    return ("float32",) if exact else ("tf32x3", "float32")


@functools.cache
def architecture(index: int) -> str:
    """The files of configurations for a GPU: its own or those of the closest older one; empty if there is none."""
    if INTERPRETING:
        return INTERPRETER
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        name = properties.gcnArchName.partition(":")[0]
        return name if name in ARCHITECTURES else ""
    number = 10 * properties.major + properties.minor
    known = [int(name.removeprefix("sm_")) for name in ARCHITECTURES if name.startswith("sm_")]
    return max((f"sm_{n}" for n in known if n <= number), key=lambda name: int(name[3:]), default="")
