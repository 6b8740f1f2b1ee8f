"""Time of one call on a device: on the wall clock, and on the GPU alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from mixpol_models.bench.timing import median_within


def seconds_of(call: Callable[[], Any], device: torch.device, budget: float = 2.0) -> float:
    """Median wall-clock time of one call that is waited for, seconds."""

    def measure() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    return median_within(budget, measure)


def kernel_seconds(make: Callable[[], Callable[[], Any]], budget: float = 0.2) -> float:
    """Median GPU time of one call, seconds: of replays of a CUDA graph, without Python and launches.

    Args:
        make: gives the call. It runs on the stream of the capture: a backward belongs to the stream of its forward.
        budget: seconds of GPU time to spend.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call = make()
        for _ in range(2):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def measure() -> float:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    return median_within(budget, measure)
