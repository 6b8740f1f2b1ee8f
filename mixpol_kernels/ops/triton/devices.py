"""GPUs, the element types that their matrix units take, and shipped launch configurations; imports no triton."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.library import INTERPRETING, constant

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
# "half": bfloat16 and float16; "float32" with IEEE products; "tf32x3": float32 in three TensorFloat32 products.
ELEMENTS = ("half", "float32", "tf32x3")
DIRECTIONS = ("forward", "backward")
UNKNOWN = "it takes AMD gfx942, or NVIDIA GPUs of compute capability 8.0 and newer"
_only_ieee = False
TUNED = "MIXPOL_TRITON_CONFIGS"  # names the folder of configurations that go before the shipped ones


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

    def __post_init__(self) -> None:
        fits = {
            "tile": (16, 32, 64, 128, 256),
            "warps": (1, 2, 4, 8, 16),
            "stages": range(1, 9),
            "flush": range(3),
        }
        for name, allowed in fits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value not in allowed:
                raise ValueError(f"{name} was {value!r}; expected one of {', '.join(map(str, allowed))}")


# The interpreter runs a program one operation at a time: small tiles, so that small inputs have several.
INTERPRETER = "interpreter"
INTERPRETED = Config(tile=16, warps=1, stages=1)


def block(size: int) -> int:
    """The block that holds `size` columns: a power of two of at least 16, as matrix instructions want."""
    return max(16, 1 << (size - 1).bit_length())


def alignment(rows: Tensor) -> int:
    """The largest power of two, up to 16, that divides the strides of rows: untold, the compiler cannot load widely."""
    return next(a for a in (16, 8, 4, 2, 1) if all(stride % a == 0 for stride in rows.stride()[:-1]))


def _entries(folder: Path, architecture: str) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads((folder / f"{architecture}.json").read_text())
    return entries


def names(folder: Path, architecture: str) -> tuple[str, ...]:
    """Of all configurations that an op can have, those for which none was found too."""
    return tuple(_entries(folder, architecture))


@functools.cache
def shipped(folder: Path, architecture: str) -> dict[str, Config]:
    """The configurations of an op for one of ARCHITECTURES. In the file null says that none was found."""
    entries = _entries(folder, architecture)
    return {name: Config(**entry) for name, entry in entries.items() if entry is not None}


def tuned_file(folder: Path, architecture: str, tuned: Path) -> Path:
    """Where `mixpol tune` writes an op's configurations: `tuned`/OP/ARCHITECTURE.json."""
    return tuned / folder.parents[1].name / f"{architecture}.json"


@functools.cache
def configured(folder: Path, architecture: str) -> dict[str, Config]:
    """Launch configurations: those shipped, with what the folder MIXPOL_TRITON_CONFIGS has in its place.

    Raises:
        ValueError: the folder is not there, or a file in it has a name or value that no kernel has.
    """
    found = dict(shipped(folder, architecture))
    named = os.environ.get("MIXPOL_TRITON_CONFIGS", "")
    if not named:
        return found
    if not Path(named).is_dir():
        raise ValueError(f"{TUNED} was {named!r}; expected a folder that `mixpol tune` wrote, or unset")
    path = tuned_file(folder, architecture, Path(named))
    if not path.exists():
        return found
    try:
        better = {name: Config(**entry) for name, entry in json.loads(path.read_text()).items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}, of {TUNED}, is not a file of configurations ({error}): tune again") from error
    unknown = better.keys() - set(names(folder, architecture))
    if unknown:
        raise ValueError(
            f"{path}, of {TUNED}, has {sorted(unknown)}, which no kernel of this release has: tune again, or unset it"
        )
    return found | better


def launched(folder: Path, architecture: str, name: str) -> Config:
    """The configuration of an entry that `configured` has, or the interpreter's."""
    return INTERPRETED if architecture == INTERPRETER else configured(folder, architecture)[name]


def width_key(direction: str, element: str, width: int) -> str:
    """The name of an entry of an op whose kernels have one size: "forward/half/64"."""
    return f"{direction}/{element}/{width}"


def served_widths(folder: Path, widths: tuple[int, ...], architecture: str, element: str) -> tuple[int, ...]:
    """Those of `widths` that are configured for both directions, by the names of `width_key`."""
    if architecture == INTERPRETER:
        return widths
    entries = configured(folder, architecture)
    return tuple(w for w in widths if all(width_key(direction, element, w) in entries for direction in DIRECTIONS))


def elements(dtype: torch.dtype) -> tuple[str, ...]:
    """Which of ELEMENTS may stand for a dtype, the preferred one first.

    float32 takes three TensorFloat32 products at any `torch.set_float32_matmul_precision`: they keep float32's error
    budget (tests/triton_kernels/test_tensorfloat32.py). AMD's matrix units multiply float32 itself.
    """
    if dtype != torch.float32:
        return ("half",)
    return ("float32",) if torch.version.hip is not None or _only_ieee else ("tf32x3", "float32")


@contextmanager
def ieee() -> Iterator[None]:
    """Within, float32 takes IEEE products, to tune and to test them."""
    global _only_ieee
    before, _only_ieee = _only_ieee, True
    try:
        yield
    finally:
        _only_ieee = before


def float32_products() -> str:
    """Which products stand for float32's, in words; empty for IEEE."""
    split = "tf32x3" in elements(torch.float32)
    return "by three TensorFloat32 products each where the sizes are configured for it, else IEEE" if split else ""


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


@constant
def refusal(index: int) -> str:
    """Why no Triton kernel runs on a GPU; empty if they do."""
    return "" if architecture(index) else UNKNOWN
