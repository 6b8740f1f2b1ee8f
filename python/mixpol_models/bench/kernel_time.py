"""Time on the GPU alone: replays of a CUDA graph, so that neither Python nor launches are in it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch


def kernel_seconds(make: Callable[[], Callable[[], Any]], budget: float = 0.2) -> float:
    """Median GPU time of one call, seconds.

    Args:
        make: gives the call. It runs on the stream of the capture: a backward belongs to the stream of its forward.
        budget: seconds of GPU time to spend; three replays at least, a thousand at most.
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
    times: list[float] = []
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for i in range(1000):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end) / 1e3)
        if len(times) >= 3 and sum(times) > budget:
            break
    return statistics.median(times)
