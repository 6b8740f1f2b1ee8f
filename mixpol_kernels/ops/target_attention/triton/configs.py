"""Shipped launch configurations: one JSON file per architecture, keyed by direction, element and size."""

from __future__ import annotations

from pathlib import Path

from mixpol_kernels.ops.triton import devices

FOLDER = Path(__file__).parent / "configs"
# D and the units of each hidden layer. A shipped configuration serves every unit that it covers.
SHAPES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (64, (64,)),
    (128, (128,)),
    (64, (64, 32)),
    (64, (128, 64)),
    (64, (64, 32, 16)),
)


def key(direction: str, element: str, width: int, units: tuple[int, ...]) -> str:
    """The name of an entry: "forward/half/64:128x64"."""
    return f"{direction}/{element}/{width}:{'x'.join(map(str, units))}"


def served(architecture: str, element: str, layers: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Those of SHAPES with this number of hidden layers that are configured for both directions."""
    shapes = [(width, units) for width, units in SHAPES if len(units) == layers]
    if architecture == devices.INTERPRETER:
        return tuple(shapes)
    entries = devices.configured(FOLDER, architecture)
    return tuple(s for s in shapes if all(key(direction, element, *s) in entries for direction in devices.DIRECTIONS))
