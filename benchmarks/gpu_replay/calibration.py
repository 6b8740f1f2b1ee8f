"""The kernels that ran on an H200, predicted: how far the replay is off.

`measured/` has their machine code (revision f80807b52c, Triton 3.6.0, as the torch there took it); times are those of
docs/results/h200.md: 4,096 users, lengths uniform in 1 ... L, D = H = 64, one hidden layer, ReLU, padded. The CUDA C++
forward is not among them: its warps go different ways, which the emulation does not follow.
"""

from __future__ import annotations

import lzma
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpu_replay.capture import Launch
from gpu_replay.gate import store
from gpu_replay.predict import Subject

FOLDER = Path(__file__).parent / "measured"
USERS, WIDTH = 4096, 64
BOUND = 0.10  # root mean square of predicted by measured, minus one
SLAB = 16656  # floats between the slabs of two of the backward's 528 programs
# Warps, stages, shared memory in bytes and microseconds by L.
MEASURED: dict[tuple[str, str], tuple[int, int, int, dict[int, float]]] = {
    ("forward", "float32"): (8, 2, 34816, {50: 334, 200: 692, 1000: 2670}),
    ("forward", "tf32x3"): (4, 3, 49152, {50: 71, 200: 124, 1000: 400}),
    ("forward", "half"): (4, 3, 25600, {50: 35}),
    ("backward", "float32"): (8, 1, 34816, {50: 604, 200: 1389, 1000: 5858}),
    ("backward", "tf32x3"): (8, 1, 98304, {50: 472, 200: 953, 1000: 3660}),
    ("backward", "half"): (4, 2, 24576, {50: 185}),
}


@dataclass(frozen=True)
class Measurement:
    """One row."""

    direction: str
    element: str
    length: int
    microseconds: float

    def launch(self) -> Launch:
        """The launch that was timed."""
        warps, stages, shared, _ = MEASURED[self.direction, self.element]
        cubin = lzma.decompress((FOLDER / f"{self.direction}_{self.element}.cubin.xz").read_bytes())
        grid = (USERS if self.direction == "forward" else 528, 1, 1)
        tile = 64 if self.direction == "forward" or self.element == "half" else 32
        return Launch(f"{self.direction}_kernel", cubin, shared, warps, stages, grid, self._arguments(), {"TILE": tile})

    def _arguments(self) -> dict[str, tuple[str, Any]]:
        users, length, width, dtype = USERS, self.length, WIDTH, torch.float32
        if self.element == "half":
            dtype = torch.bfloat16
        lengths = torch.randint(1, length + 1, (users,), generator=torch.Generator().manual_seed(0))
        vectors, tokens = (users, width), (users, length, width)
        shapes: dict[str, tuple[int, ...]]
        if self.direction == "forward":
            shapes = {"target": vectors, "history": tokens, "lengths": (), "w1": (width, 4 * width), "b1": (width,)}
            shapes |= {"w_out": (1, width), "b_out": (1,), "pooled": vectors, "attention": (users, length)}
        else:
            shapes = {"grad_pooled": vectors, "attention": (users, length), "target": vectors, "history": tokens}
            shapes |= {"lengths": (), "w1": (width, 4 * width), "b1": (width,), "w_out": (1, width)}
            shapes |= {"grad_target": vectors, "grad_history": tokens, "slabs": (528, SLAB)}
        element = "*bf16" if self.element == "half" else "*fp32"
        found: dict[str, tuple[str, Any]] = {}
        for name, shape in shapes.items():
            if name == "lengths":
                found[name] = ("*i64", lengths)
            elif name in ("attention", "slabs"):
                found[name] = ("*fp32", torch.empty(shape))
            else:
                found[name] = (element, torch.empty(shape, dtype=dtype))
        numbers = {"length": length, "user_units": length * width // 16, "row_units": width // 16}
        if self.direction == "backward":
            numbers = {"users": users, **numbers, "slab_stride": SLAB}
        return found | {name: ("i32", number) for name, number in numbers.items()}

    def ratio(self) -> float:
        """Predicted by measured."""
        predicted = Subject(self.launch()).predict().microseconds
        assert predicted is not None
        return float(predicted / self.microseconds)


def measurements() -> list[Measurement]:
    """Every row."""
    return [
        Measurement(direction, element, length, time)
        for (direction, element), (*_, rows) in MEASURED.items()
        for length, time in rows.items()
    ]


def error(ratios: list[float]) -> float:
    """Root mean square of what ratios are off 1."""
    return math.sqrt(sum((r - 1) ** 2 for r in ratios) / len(ratios))


def report(write: bool) -> int:
    """Prints the table; 1 where the error is above BOUND."""
    ratios, rows = [], {}
    for row in measurements():
        ratios.append(row.ratio())
        predicted = ratios[-1] * row.microseconds
        name = f"{row.direction} {row.element}, {row.length:4}"
        rows[name] = {"measured": row.microseconds, "predicted": round(predicted, 1)}
        print(f"{name}: {predicted:8,.1f} µs predicted, {row.microseconds:6,} measured, {ratios[-1]:.2f}", flush=True)
    found = error(ratios)
    print(f"{len(ratios)} rows, {min(ratios):.2f} to {max(ratios):.2f} of the measurement, {found:.1%} rms")
    if write:
        store("measured", rows)
    if found > BOUND:
        print(f"FAILS  the error is {found:.1%} rms; expected at most {BOUND:.0%}")
    return int(found > BOUND)
