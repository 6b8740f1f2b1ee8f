"""Roofline: minimal work of each op and peaks of this machine; benchmarks/ROOFLINE.md has the formulas."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from mixpol_models.bench.shapes import Shape

_SGEMM, _STREAM_FLOATS = 1536, 2**24
_FLOAT = 4


@dataclass(frozen=True)
class Work:
    """Operations (a multiply-add is two) and bytes from memory, of a forward or of a forward and backward."""

    operations: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def times(self, tokens: int) -> Work:
        """The work of `tokens` tokens."""
        return Work(self.operations * tokens, self.bytes * tokens)


@dataclass(frozen=True)
class Peaks:
    """Peaks of the machine with all threads: GFLOP/s of torch's SGEMM, GB/s of `a = b + c` out of cache."""

    gflops: float
    gbytes: float

    def share(self, work: Work, milliseconds: float) -> float:
        """Share of the roofline: the least time that the peaks allow over the time taken."""
        least = max(work.operations / (1e9 * self.gflops), work.bytes / (1e9 * self.gbytes))
        return least / (1e-3 * milliseconds)


def measure_peaks(seconds: float = 1.0) -> Peaks:
    """Best of repeated runs, half of `seconds` each."""
    a, b, c = (torch.rand(_SGEMM, _SGEMM) for _ in range(3))
    gemm = _best(lambda: torch.mm(a, b, out=c), seconds / 2)
    x, y, z = (torch.rand(_STREAM_FLOATS) for _ in range(3))
    stream = _best(lambda: torch.add(x, y, out=z), seconds / 2)
    return Peaks(2e-9 * _SGEMM**3 / gemm, 3e-9 * _FLOAT * _STREAM_FLOATS / stream)


def _best(call: Callable[[], object], seconds: float) -> float:
    call()
    best, until = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        best = min(best, end - start)
        if end > until:
            return best


def minimal_work(shape: Shape) -> tuple[Work, Work]:
    """Work of one kept token in float32: (forward, forward and backward).

    What a target costs, its tables and their gradients, is left out: it is that of a few tokens.
    """
    width = shape.width
    row = _FLOAT * width
    if shape.op == "interleave":
        merge = Work(0, 8 + 8 + 1)  # a time in, a source and a polarity out
        return merge, merge
    if shape.op == "polarity_embedding":
        forward, backward = Work(width, 2 * row), Work(width, 2 * row)
    elif shape.op == "polarity_fusion":
        forward, backward = _gate(shape)
        forward, backward = forward + Work(0, 2 * row), backward + Work(0, 3 * row)
    elif shape.op == "dot_target_attention":
        forward, backward = _dot(shape)
        forward, backward = forward + Work(0, row), backward + Work(0, 2 * row)
    else:
        forward, backward = _unit(shape)
        forward, backward = forward + Work(0, row), backward + Work(0, 2 * row)
        if shape.activation == "dice":
            forward, backward = forward + Work(0, row), backward + Work(0, row)
            if _stashes(shape):
                backward += Work(0, 2 * _FLOAT * shape.hidden[0])
        if shape.op == "mixed_polarity_attention":
            gate_forward, gate_backward = _gate(shape)
            # Gradients of tokens are written, read again and written into the table's.
            forward, backward = forward + gate_forward, backward + gate_backward + Work(0, 2 * row)
    return forward, forward + backward


def _unit(shape: Shape) -> tuple[Work, Work]:
    """Forward and backward of the activation unit's layers."""
    each = [2.0 * a * b for a, b in pairwise((shape.width, *shape.hidden))]
    layers = sum(each)
    if shape.activation == "dice":
        # Once for the statistics and once for the scores; backward once more for their gradient.
        return Work(2 * layers, 0), Work((3 if _stashes(shape) else 4) * layers, 0)
    bits = shape.activation == "relu" and shape.hidden[-1] <= 64  # stand in for the last layer in the backward
    return Work(layers, 0), Work(3 * layers - bits * each[-1], 0)


def _stashes(shape: Shape) -> bool:
    """Whether Dice's pre-activations fit where the tokens' gradients go, so that the backward makes them once."""
    return len(shape.hidden) == 1 and shape.hidden[0] <= shape.width


def _dot(shape: Shape) -> tuple[Work, Work]:
    """Projections absorbed, or keys and values of D columns made of each token: whichever takes less."""
    width, candidates = shape.width, shape.candidates
    rows, projected = width * candidates * shape.heads, 4 * width**2
    return (
        Work(min(4 * rows, projected + 4 * width * candidates), 0),
        Work(min(10 * rows, 3 * projected + 10 * width * candidates), 0),
    )


def _gate(shape: Shape) -> tuple[Work, Work]:
    """The gate of TAPF on x * t; the backward computes it again."""
    layer = 2.0 * shape.width**2
    return Work(layer, 0), Work(3 * layer, 0)
