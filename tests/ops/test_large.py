"""Contract 7, second part: element offsets beyond 2^31 are right. Only touched pages of the tables are real."""

from __future__ import annotations

import pytest
import torch

import mixpol_kernels

ROWS, WIDTH = 40_000_000, 64  # 2.56e9 elements, 10 GB of address space


def allocate(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Address space: pages become real when they are written, and read as zeros before."""
    try:
        return torch.empty(*shape, dtype=dtype)
    except RuntimeError as error:
        pytest.skip(f"so much address space is not to be had: {error}")


@pytest.fixture(scope="module")
def huge() -> torch.Tensor:
    """A table of which tests write the few rows that they read."""
    assert ROWS * WIDTH > 2**31
    return allocate(ROWS, WIDTH)


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


def unit_of(width: int, hidden: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return (
        [torch.randn(hidden, 4 * width) / width**0.5, torch.randn(1, hidden)],
        [torch.randn(hidden), torch.randn(1)],
    )


@pytest.mark.parametrize("op", ["target_attention", "polarity_fusion"])
def test_tokens_far_apart_in_a_jagged_history(op: str, huge: torch.Tensor) -> None:
    """Rows at a stride of 4 MB, the last ones beyond 2^31 elements."""
    history = huge.view(-1).as_strided((2400, 16), (2**20, 1))
    assert (len(history) - 1) * history.stride(0) > 2**31
    values = torch.randn(2400, 16)
    history.copy_(values)
    offsets = torch.tensor([0, 3, 2395, 2400])
    target, polarity, table, unit = torch.randn(3, 16), torch.randint(2, (2400,)), torch.randn(2, 16), unit_of(16, 8)
    with torch.no_grad():
        far, near = (
            mixpol_kernels.target_attention(target, h, *unit, offsets=offsets, backend="cpu")
            if op == "target_attention"
            else mixpol_kernels.polarity_fusion(
                target, h, polarity, table, fusion="bias", offsets=offsets, backend="cpu"
            )
            for h in (history, values)
        )
    assert torch.equal(far, near)


def test_positions_beyond_32_bits(huge: torch.Tensor) -> None:
    """A padded history of 2^33 positions, whose rows overlap in memory; few of them are kept."""
    length, width = 2**31, 16
    history = huge.view(-1).as_strided((4, length, width), (64, 1, 1))
    assert history.shape[0] * history.shape[1] >= 2**33
    huge.view(-1)[:512] = torch.randn(512)
    lengths = torch.tensor([3, 0, 60, 1])
    target, unit = torch.randn(4, 2, width), unit_of(width, 8)
    with torch.no_grad():
        far, near = (
            mixpol_kernels.target_attention(target, h, *unit, lengths=lengths, normalize="softmax", backend="cpu")
            for h in (history, history[:, :60].clone())
        )
    assert torch.equal(far, near)


@pytest.mark.parametrize("fusion", ["none", "bias"])
def test_ids_far_into_a_padded_history(fusion: str) -> None:
    """More than 2^31 positions of ids; those of pads are not read, and take no memory."""
    users, length = 9, 2**28 + 8
    assert (users - 1) * length > 2**31
    ids = allocate(users, length, dtype=torch.int64)
    lengths = torch.tensor([2, 0, 1, 0, 0, 60, 0, 1, 7])
    near = torch.zeros(users, 60, dtype=torch.int64)
    for user, count in enumerate(lengths.tolist()):
        ids[user, :count] = near[user, :count] = torch.randint(2, (count,))
    table, polarity_table, target = torch.randn(2, 16), torch.randn(2, 16), torch.randn(users, 16)

    def run(ids: torch.Tensor) -> torch.Tensor:
        polarity = ids if fusion == "bias" else None
        return mixpol_kernels.mixed_polarity_attention(
            target, ids, polarity, table, polarity_table, *unit, fusion=fusion, lengths=lengths, backend="cpu"
        )

    unit = unit_of(16, 8)
    with torch.no_grad():
        assert torch.equal(run(ids), run(near))
