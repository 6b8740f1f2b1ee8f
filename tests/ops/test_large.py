"""Contract 7, second part: element offsets beyond 2^31 are right. Only touched pages of the tables are real."""

from __future__ import annotations

import pytest
import torch

import mixpol_kernels

ROWS, WIDTH = 40_000_000, 64  # 2.56e9 elements, 10 GB of address space


@pytest.fixture(scope="module")
def huge() -> torch.Tensor:
    """An uninitialised table; tests write the few rows that they read."""
    assert ROWS * WIDTH > 2**31
    try:
        return torch.empty(ROWS, WIDTH)
    except RuntimeError as error:
        pytest.skip(f"10 GB of address space are not to be had: {error}")


IDS = [0, 3, ROWS // 2 + 1, 33_554_432, 33_554_433, ROWS - 1]


@pytest.mark.parametrize("op", ["polarity_embedding", "mixed_polarity_attention"])
def test_rows_far_into_a_table(op: str, huge: torch.Tensor) -> None:
    ids, polarity, offsets = torch.tensor(IDS), torch.tensor([0, 1] * 3), torch.tensor([0, 4, 6])
    huge[ids] = torch.randn(len(IDS), WIDTH)
    small = huge[ids]
    polarity_table, target = torch.randn(2, WIDTH), torch.randn(2, WIDTH)
    unit = [torch.randn(8, 4 * WIDTH) / 16, torch.randn(1, 8)], [torch.zeros(8), torch.zeros(1)]

    def run(rows: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        table = table.detach().requires_grad_()
        options = {"offsets": offsets, "sparse": True, "backend": "cpu"}
        if op == "polarity_embedding":
            out = mixpol_kernels.polarity_embedding(rows, polarity, table, polarity_table, **options)
        else:
            out = mixpol_kernels.mixed_polarity_attention(
                target, rows, polarity, table, polarity_table, *unit, fusion="bias", **options
            )
        (grad,) = torch.autograd.grad(out.square().sum(), table)
        return out.detach(), grad

    out, grad = run(ids, huge)
    expected, small_grad = run(torch.arange(len(IDS)), small)
    assert torch.equal(out, expected)
    assert grad.indices()[0].tolist() == IDS
    assert torch.equal(grad.values(), small_grad.to_dense())


def test_users_far_apart(huge: torch.Tensor) -> None:
    """A history whose second user starts beyond 2^31 elements."""
    history = huge.as_strided((2, 5, 16), (2**31 + 64, 64, 1))
    values = torch.randn(2, 5, 16)
    history.copy_(values)
    target, polarity = torch.randn(2, 16), torch.randint(2, (2, 5))
    unit = [torch.randn(8, 64) / 8, torch.randn(1, 8)], [torch.zeros(8), torch.zeros(1)]
    far, near = (mixpol_kernels.target_attention(target, h, *unit, backend="cpu") for h in (history, values))
    assert torch.equal(far, near)
    table = torch.randn(2, 16)
    far, near = (
        mixpol_kernels.polarity_fusion(target, h, polarity, table, fusion="bias", backend="cpu")
        for h in (history, values)
    )
    assert torch.equal(far, near)
