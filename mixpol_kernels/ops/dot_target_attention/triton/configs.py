"""Shipped launch configurations: one JSON file per architecture, keyed by direction, element and width of a row."""

from __future__ import annotations

from pathlib import Path

from mixpol_kernels.ops.triton import devices

FOLDER = Path(__file__).parent / "configs"
WIDTHS = (64, 128)
ROWS = 16  # query rows that meet a tile of tokens at once: the least that matrix instructions take


key = devices.width_key


def served(architecture: str, element: str) -> tuple[int, ...]:
    """Those of WIDTHS that are configured for both directions."""
    return devices.served_widths(FOLDER, WIDTHS, architecture, element)
