"""The cheap dropout does what PyTorch's does."""

from __future__ import annotations

import pytest
import torch

from mixpol_models.pnfrec.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(200_003,), (41, 70, 71)], ids=str)
def test_rate_scale_and_gradient(p: float, shape: tuple[int, ...], generator: torch.Generator) -> None:
    x = torch.rand(shape, generator=generator) + 0.5
    x.requires_grad_()
    out = dropout(x, p)
    kept = out != 0
    rate, sigma = float(kept.double().mean()), (p * (1 - p) / x.numel()) ** 0.5
    assert abs(rate - (1 - p)) < 6 * sigma
    torch.testing.assert_close(out[kept], x.detach()[kept] / (1 - p), rtol=2e-4, atol=0)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, out.detach() / x.detach(), rtol=1e-6, atol=0)


def test_elements_are_independent() -> None:
    """Four of them share a draw."""
    torch.manual_seed(1)
    kept = (dropout(torch.ones(400_000), 0.5) != 0).double().view(-1, 4) - 0.5
    correlation = kept.T @ kept / len(kept) * 4
    assert float((correlation - torch.eye(4)).abs().max()) < 0.02


def test_seed_and_modes() -> None:
    x = torch.randn(50, 7)
    torch.manual_seed(5)
    first = dropout(x, 0.3)
    torch.manual_seed(5)
    assert torch.equal(first, dropout(x, 0.3))
    assert not torch.equal(first, dropout(x, 0.3))
    layer = Dropout(0.3)
    assert torch.equal(layer.eval()(x), x)
    assert (layer.train()(x) == 0).any()
    assert torch.equal(dropout(x, 0.0), x)


def test_empty_and_half() -> None:
    assert dropout(torch.empty(0, 4), 0.5).shape == (0, 4)
    out = dropout(torch.ones(64, dtype=torch.bfloat16), 0.5)
    assert out.dtype == torch.bfloat16
    assert set(out.tolist()) == {0.0, 2.0}
