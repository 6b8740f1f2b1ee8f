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
    for name, truth in exact.items():
        # Not relative for small gradients: under softmax that of the output bias is a sum of large terms that is 0.
        limit = 5 * float((plain[name] - truth).abs().max()) + 2e-6 * max(1.0, float(truth.abs().max()))
        error = float((cpu[name] - truth).abs().max())
        assert error <= limit, f"{name}: {error:.3g}, allowed {limit:.3g}"
