"""Shipped launch configurations: one JSON file per architecture, keyed by direction, element, layers and size."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "configs"
# D and the units of each hidden layer. A shipped configuration serves every unit that it covers.
SHAPES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (64, (64,)),
    (128, (128,)),
    (64, (64, 32)),
    (64, (128, 64)),
    (64, (64, 32, 16)),
)
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


def key(direction: str, element: str, width: int, units: tuple[int, ...]) -> str:
    """The name of an entry: "forward/half/64:128x64"."""
    return f"{direction}/{element}/{width}:{'x'.join(map(str, units))}"


def served(architecture: str, element: str, layers: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Those of SHAPES with this number of hidden layers that are shipped for both directions."""
    shapes = [(width, units) for width, units in SHAPES if len(units) == layers]
    if architecture == INTERPRETER:
        return tuple(shapes)
    entries = shipped(architecture)
    return tuple(s for s in shapes if all(key(direction, element, *s) in entries for direction in DIRECTIONS))


@functools.cache
def shipped(architecture: str) -> dict[str, Config]:
    """The configurations of "sm_80", "sm_90", "sm_100" or "gfx942". In the file null says that none was found."""
    entries: dict[str, Any] = json.loads((FOLDER / f"{architecture}.json").read_text())
    return {name: Config(**entry) for name, entry in entries.items() if entry is not None}


def architectures() -> list[str]:
    """Those with a file."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))
