"""Running statistics of a norm: the rules of `nn.BatchNorm1d`, over processes those of `nn.SyncBatchNorm`.

Unlike there, a batch may have one token or none at all (every history empty). It has no unbiased variance then, and
leaves the running statistics and `num_batches_tracked` as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

Norm = nn.BatchNorm1d | nn.SyncBatchNorm


def takes_batch(norm: Norm) -> bool:
    """Whether it normalises by the batch: in training, and always where it tracks no running statistics."""
    return norm.training or norm.running_mean is None or norm.running_var is None


@torch.no_grad()
def update(norm: Norm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Moves the running statistics: the running variance is the unbiased one, momentum None a cumulative average."""
    if not norm.training or not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    enough = count > 1
    batches = norm.num_batches_tracked
    if batches is not None:
        batches.add_(enough)
    weight: Any = norm.momentum
    if weight is None:
        weight = 0.0 if batches is None else 1 / batches.clamp(min=1).to(norm.running_mean.dtype)
    unbiased = variance * (count / (count - 1).clamp(min=1)).to(variance.dtype)
    for running, found in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        running.copy_(torch.where(enough, running.lerp(found.to(running.dtype), weight), running))


def needs_sync(norm: Norm) -> bool:
    """Whether its statistics are those of all processes' batches."""
    return (
        isinstance(norm, nn.SyncBatchNorm)
        and norm.training
        and distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size(norm.process_group) > 1
    )


def synchronised(norm: Norm, mean: Tensor, variance: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance [H] and rows of all processes of the norm's group; with their gradients.

    Two sums over the processes: the variance is about the common mean, so that nothing cancels.
    """
    group = norm.process_group if isinstance(norm, nn.SyncBatchNorm) else None
    rows = count.to(mean.dtype)
    total = _Sum.apply(group, torch.cat([mean * rows, rows[None]]))
    every = total[-1].detach().clamp(min=1)
    common = total[:-1] / every
    spread = _Sum.apply(group, (variance + (mean - common) ** 2) * rows)
    return common, spread / every, total[-1].detach().round().to(count.dtype)


class _Sum(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, group: Any, x: Tensor) -> Tensor:
        ctx.group = group
        total = x.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        total = grad.contiguous().clone()
        distributed.all_reduce(total, group=ctx.group)
        return None, total
