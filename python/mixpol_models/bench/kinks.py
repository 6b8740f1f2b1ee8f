"""Tokens whose pre-activations are near zero, where the derivative of ReLU and PReLU is discontinuous."""

from __future__ import annotations

import torch
from torch import Tensor

from mixpol_kernels.nn import TargetAttention
from mixpol_kernels.ops.target_attention.reference import activate

# Some ten times the rounding error of a float32 pre-activation, in units of its mean size.
MARGIN = 3e-5
_ROWS = 16384


@torch.no_grad()
def near_kink(attention: TargetAttention, target: Tensor, tokens: Tensor) -> Tensor:
    """Marks tokens with a hidden pre-activation so close to zero that rounding may flip its sign.

    The derivative of ReLU and PReLU jumps at zero. A form that rounds to the other side there has a large
    gradient error and is still as right as any other, so the correctness gate has to keep away from there.

    Args:
        attention: the activation unit, in float64.
        target: [n, D] float64, the target of each token.
        tokens: [n, D] float64.

    Returns:
        [n] bool; all False for smooth activations.
    """
    found = torch.zeros(tokens.shape[0], dtype=torch.bool)
    if attention.activation not in ("relu", "prelu"):
        return found
    *hidden, _ = attention.layers
    for start in range(0, tokens.shape[0], _ROWS):
        part = slice(start, start + _ROWS)
        t, x = target[part], tokens[part]
        h = torch.cat([t, x, t - x, t * x], dim=-1)
        for i, layer in enumerate(hidden):
            h = layer(h)
            found[part] |= (h.abs() < MARGIN * h.abs().mean()).any(dim=-1)
            h = activate(h, attention.activation, attention.slopes[i] if len(attention.slopes) else None)
    return found
