"""What the examples share: training steps of a model as it is and accelerated, interleaved, losses compared."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mixpol_kernels import drop_in


def compare(model: nn.Module, loss_of: Callable[[nn.Module], Tensor], steps: int = 10) -> None:
    """Trains two copies of `model`, one accelerated, and prints what was replaced and how much faster a step is.

    Raises:
        SystemExit: the losses differ by more than rounding.
    """
    stock, fused = copy.deepcopy(model), copy.deepcopy(model)
    print(drop_in.accelerate(fused))
    optimizers = {m: torch.optim.Adam(m.parameters(), lr=1e-3) for m in (stock, fused)}
    seconds: dict[nn.Module, list[float]] = {stock: [], fused: []}
    for step in range(steps):
        losses = []
        for each, optimizer in optimizers.items():
            torch.manual_seed(step)  # the same dropout in both
            begin = time.perf_counter()
            optimizer.zero_grad()
            loss = loss_of(each)
            loss.backward()
            optimizer.step()
            seconds[each].append(time.perf_counter() - begin)
            losses.append(float(loss.detach()))
        if abs(losses[0] - losses[1]) > 1e-2 * abs(losses[0]):  # Adam makes much of rounding, in either form
            raise SystemExit(f"step {step}: the losses are {losses[0]} stock and {losses[1]} accelerated")
    before, after = (1e3 * statistics.median(seconds[m][1:]) for m in (stock, fused))
    print(f"loss after {steps} steps: {losses[0]:.5f} stock, {losses[1]:.5f} accelerated")
    print(f"training step: {before:.1f} ms stock, {after:.1f} ms accelerated, {before / after:.2f} times as fast")
