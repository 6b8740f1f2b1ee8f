"""Returned attention weights have a gradient: alone, and beside the pooled vector's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixpol_kernels.testing.inputs import Case, Config, make
from mixpol_kernels.testing.layouts import Placement

UNITS = ("target_attention", "mixed_polarity_attention")


def gradients(
    case: Case, where: Placement, backend: str, dtype: torch.dtype, share: float, grad_weights: Tensor
) -> dict[str, Tensor]:
    """Of share * (pooled · grad_out) + weights · grad_weights, by leaf."""
    arguments = case.arguments(where, dtype, requires_grad=True)
    pooled, weights = case.call(arguments, backend, return_weights=True)
    loss = (weights * grad_weights.to(dtype)).sum()
    if share:
        loss = loss + share * (pooled * case.grad_out.to(dtype)).sum()
    loss.backward()
    found = {}
    for name, value in arguments.items():
        for i, tensor in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.requires_grad:
                found[f"{name}[{i}]"] = tensor.grad
    return {name: grad for name, grad in found.items() if grad is not None}


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("candidates", [None, 3])
@pytest.mark.parametrize("layout", ["jagged", "mask_holes"])
@pytest.mark.parametrize(("normalize", "activation"), [("none", "relu"), ("softmax", "silu"), ("sigmoid", "dice")])
@pytest.mark.parametrize("op", UNITS)
def test_gradient_through_the_weights(
    op: str, normalize: str, activation: str, layout: str, candidates: int | None, share: float,
    generator: torch.Generator,
) -> None:  # fmt: skip
    config = Config(
        op=op, layout=layout, normalize=normalize, activation=activation, candidates=candidates,
        counts=(3, 0, 100, 7), width=10, hidden=(20,),
    )  # fmt: skip
    case = make(config, generator)
    where = case.place(generator)
    shape = case.call(case.arguments(where), "reference", return_weights=True)[1].shape
    grad_weights = torch.randn(shape, generator=generator)
    exact, plain, cpu = (
        gradients(case, where, backend, dtype, share, grad_weights)
        for backend, dtype in (("reference", torch.float64), ("reference", torch.float32), ("cpu", torch.float32))
    )
    assert exact.keys() == cpu.keys()
    # What a quarter of an ulp of each token's term can add up to: terms of both signs may cancel, as those of the
    # output bias do wholly under softmax, so that a gradient's own size says nothing about its rounding.
    rounding = 3e-8 * grad_weights.numel() * (1 + share * config.width**0.5)
    for name, truth in exact.items():
        size = float(truth.abs().max())
        limit = 5 * float((plain[name] - truth).abs().max()) + max(2e-6, 2e-6 * size, rounding)
        error = float((cpu[name] - truth).abs().max())
        assert error <= limit, f"{name}: {error:.3g}, allowed {limit:.3g}"
