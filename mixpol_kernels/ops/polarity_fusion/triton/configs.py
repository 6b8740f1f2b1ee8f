"""Shipped launch configurations: one JSON file per architecture, keyed by direction, element and D."""

from __future__ import annotations

from pathlib import Path

from mixpol_kernels.ops.triton import devices

FOLDER = Path(__file__).parent / "configs"
WIDTHS = (64,)
# Without a gate nothing of D² is held: one configuration for what is wider than WIDTHS.
WIDEST_WITHOUT_GATE = 1024
WITHOUT_GATE = devices.Config(tile=16, warps=8, stages=1)
# Of the polarity table, and of the extra table: their gradients are products with one-hot rows.
ROWS = 16


key = devices.width_key


def served(architecture: str, element: str) -> tuple[int, ...]:
    """Those of WIDTHS that are configured for both directions."""
    return devices.served_widths(FOLDER, WIDTHS, architecture, element)
