"""Gradients of pads are zeros whatever the gradient of the output is: a weight of 0 times infinity must not show."""

from __future__ import annotations

import pytest
import torch

import mixpol_kernels
from mixpol_kernels.testing.inputs import Config, make


@pytest.mark.parametrize("layout", ["lengths", "mask_holes"])
def test_infinite_gradient_of_the_output(layout: str, generator: torch.Generator) -> None:
    case = make(Config(op="target_attention", layout=layout, counts=(3, 0, 7)), generator)
    case.grad_out[0, 2] = torch.inf
    case.run("triton", case.place(generator))  # raises where something other than zeros is at the pads


def test_infinite_gradient_of_dot_attention(generator: torch.Generator) -> None:
    history = torch.randn(2, 5, 8, generator=generator, requires_grad=True)
    target, grad = torch.randn(2, 8, generator=generator), torch.full((2, 8), torch.inf)
    out = mixpol_kernels.dot_target_attention(target, history, lengths=torch.tensor([3, 0]), backend="triton")
    out.backward(grad)
    assert not history.grad[0, 3:].any()
    assert not history.grad[1].any()
