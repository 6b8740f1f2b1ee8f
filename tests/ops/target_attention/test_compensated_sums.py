"""A sum over a long history is as precise as if it were rounded once: nothing of it gets lost on the way."""

from __future__ import annotations

import torch

import mixpol_kernels

TOKENS = 40_001
EACH = 1 + 2.0**-16  # a chunk of them has an exact sum, so many have more bits than a float


def test_gradient_of_the_bias() -> None:
    """One unit that is on for every token, each of which gives EACH to the gradient of its bias."""
    bias = torch.ones(1, requires_grad=True)
    weights = [torch.zeros(1, 4), torch.ones(1, 1)]
    target, history = torch.zeros(1, 1), torch.ones(1, TOKENS, 1)
    out = mixpol_kernels.target_attention(
        target, history, weights, [bias, torch.zeros(1)], activation="relu", backend="cpu"
    )
    out.backward(torch.full((1, 1), EACH))
    assert torch.allclose(bias.grad.double(), torch.tensor([TOKENS * EACH], dtype=torch.float64), rtol=2.0**-22, atol=0)
