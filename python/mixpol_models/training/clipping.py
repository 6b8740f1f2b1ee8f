"""Gradient clipping that takes sparse gradients, which `torch.nn.utils.clip_grad_norm_` does not."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales all gradients together so that their total norm is at most `max_norm`. Sparse ones become coalesced.

    Args:
        parameters: those without a gradient are passed over.
        max_norm: largest 2-norm of all gradients taken as one vector.

    Returns:
        The norm before clipping, [].
    """
    values = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            # Two entries of one row add up before their norm is taken.
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad._values())
        else:
            values.append(parameter.grad)
    norm = torch.nn.utils.get_total_norm(values)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(scale.to(value.device))
    return norm
