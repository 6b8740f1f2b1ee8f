"""Shipped launch configurations: one JSON file per architecture, keyed by direction, element and D."""

from __future__ import annotations

from pathlib import Path

from mixpol_kernels.ops.triton import devices

FOLDER = Path(__file__).parent / "configs"
WIDTHS = (64,)
# Of the polarity table, and of the extra table: their gradients are products with one-hot rows.
ROWS = 16


def key(direction: str, element: str, width: int) -> str:
    """The name of an entry: "forward/half/64"."""
    return f"{direction}/{element}/{width}"


def served(architecture: str, element: str) -> tuple[int, ...]:
    """Those of WIDTHS that are shipped for both directions."""
    if architecture == devices.INTERPRETER:
        return WIDTHS
    entries = devices.shipped(FOLDER, architecture)
    return tuple(w for w in WIDTHS if all(key(direction, element, w) in entries for direction in devices.DIRECTIONS))
