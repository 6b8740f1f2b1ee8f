"""Shipped launch configurations: one JSON file per architecture, keyed by direction, element and width of a row."""

from __future__ import annotations

from pathlib import Path

from mixpol_kernels.ops.triton import devices

FOLDER = Path(__file__).parent / "configs"
WIDTHS = (64, 128)
# With top_k, and of rows wider than WIDTHS, whatever the architecture: programs then hold the first of WIDTHS. With
# top_k no product of float32 is split: what finds the best tokens leaves no registers for it in the backward.
SPECIAL = {
    "forward": dict.fromkeys(devices.ELEMENTS, devices.Config(tile=32, warps=4, stages=1)),
    "backward": {
        "half": devices.Config(tile=32, warps=4, stages=1),
        "float32": devices.Config(tile=32, warps=8, stages=1),
        "tf32x3": devices.Config(tile=16, warps=8, stages=1),
    },
}
ROWS = 16  # query rows that meet a tile of tokens at once: the least that matrix instructions take


key = devices.width_key


def served(architecture: str, element: str) -> tuple[int, ...]:
    """Those of WIDTHS that are configured for both directions."""
    return devices.served_widths(FOLDER, WIDTHS, architecture, element)
