"""Gradients of looked-up tables by the Triton kernels, interpreted: hot items in parts, tables of few rows, pads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixpol_kernels.ops import table_grad
from mixpol_kernels.ops.triton import table_grad as kernels
from mixpol_kernels.testing.recorder import Recorder

# Of 8 places a run: in one run; as long as a run, at its edges and across; over several runs; nearly all one id.
SEGMENTS = {
    "all different": [1] * 11,
    "runs": [8, 8, 1, 7, 8],
    "across": [3, 7, 15, 2, 1, 9],
    "through": [3, 30, 2],
    "one id": [19],
    "third level": [2, 70, 5],
    "one token": [1],
}


def expected(ids: Tensor, grads: Tensor, rows: int) -> Tensor:
    return torch.zeros(rows, grads.shape[-1], dtype=torch.float64).index_add(0, ids, grads.double())


def both(ids: Tensor, grads: Tensor, rows: int, **layout: Tensor | None) -> tuple[Tensor, Tensor]:
    """The dense gradient and the sparse one."""
    lengths, mask = layout.get("lengths"), layout.get("mask")
    dense, sparse = (
        table_grad.table_grad(ids, grads, None, lengths, mask, rows, s, backend="triton") for s in (False, True)
    )
    assert sparse.is_coalesced()
    return dense, sparse


@pytest.mark.parametrize(("name", "width"), [*((name, 3) for name in SEGMENTS), ("through", 1), ("across", 20)])
def test_segments(name: str, width: int, generator: torch.Generator) -> None:
    """The same sums dense and sparse, bit for bit, and again."""
    counts = torch.tensor(SEGMENTS[name])
    rows = 3 * len(counts) + kernels.FEW
    ids = (torch.arange(len(counts)) * 3 + 1).repeat_interleave(counts)
    ids = ids[torch.randperm(len(ids), generator=generator)]
    grads = torch.randn(len(ids), width, generator=generator)
    dense, sparse = both(ids, grads, rows)
    truth = expected(ids, grads, rows)
    assert (dense.double() - truth).abs().max() <= 1e-5 * len(ids) ** 0.5
    assert sparse.indices()[0].tolist() == ids.unique().tolist()
    assert torch.equal(sparse.to_dense(), dense)
    assert torch.equal(both(ids, grads, rows)[0], dense)


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_few_rows(rows: int, generator: torch.Generator) -> None:
    """Nothing is sorted; more tiles than programs."""
    ids = torch.randint(rows, (40,), generator=generator, dtype=torch.uint8)
    grads = torch.randn(40, 3, generator=generator)
    dense, sparse = both(ids, grads, rows)
    truth = expected(ids.long(), grads, rows)
    for found in (dense, sparse.to_dense()):
        torch.testing.assert_close(found.double(), truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [9, 40])
@pytest.mark.parametrize("layout", ["lengths", "mask"])
def test_pads(layout: str, rows: int, generator: torch.Generator) -> None:
    """Neither their ids nor their gradients are read."""
    ids = torch.randint(5, (3, 14), generator=generator)
    ids[ids == 2] = 3
    lengths = torch.tensor([14, 0, 9])
    grads = torch.randn(3, 14, 7, generator=generator)
    keep = torch.arange(14) < lengths[:, None]
    ids[~keep], grads[~keep] = 77, torch.nan
    dense, sparse = both(ids, grads, rows, **{layout: lengths if layout == "lengths" else keep})
    torch.testing.assert_close(dense.double(), expected(ids[keep], grads[keep], rows), rtol=0, atol=1e-5)
    assert sparse.indices()[0].tolist() == [0, 1, 3, 4]
    torch.testing.assert_close(sparse.to_dense(), dense, rtol=0, atol=1e-5)


def test_nothing_reaches_other_ids(generator: torch.Generator) -> None:
    """Infinite and undefined gradients stay with their id, whether it is in one run or in several."""
    ids = torch.tensor([4, 20, 21, 22]).repeat_interleave(torch.tensor([3, 20, 2, 9]))
    grads = torch.randn(34, 2, generator=generator)
    grads[5, 0], grads[24, 1] = torch.inf, torch.nan
    dense, _ = both(ids, grads, 30)
    assert (~dense.isfinite()).nonzero().tolist() == [[20, 0], [21, 1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [3, 30])
def test_low_precision(rows: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Summed in float32 and rounded once."""
    ids = torch.randint(3, (20,), generator=generator)
    grads = torch.randn(20, 4, generator=generator).to(dtype)
    found = table_grad.table_grad(ids, grads, None, None, None, rows, False, dtype, "triton")
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected(ids, grads, rows).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_strided_and_expanded(generator: torch.Generator) -> None:
    ids = torch.randint(40, (2, 12), generator=generator)
    grads = torch.randn(12, 2, 6, generator=generator).transpose(0, 1)
    assert torch.equal(both(ids, grads, 40)[0], both(ids, grads.contiguous(), 40)[0])
    ones = torch.ones(()).expand(2, 12, 6)
    assert torch.equal(both(ids, ones, 40)[0][:, 0], torch.bincount(ids.flatten(), minlength=40).float())


def test_without_tokens() -> None:
    for rows in (3, 14):
        dense, sparse = both(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), rows)
        assert (dense.shape, sparse._nnz()) == ((rows, 4), 0)
        assert not dense.any()


def test_64_bit_ids(generator: torch.Generator) -> None:
    """Rows beyond 32 bits: sorted as they are. A dense gradient of them would not fit."""
    ids = torch.tensor([2**33 + 5, 5, 2**33 + 5])
    grads = torch.randn(3, 2, generator=generator)
    sparse = table_grad.table_grad(ids, grads, None, None, None, 2**40, True, backend="triton")
    assert sparse.indices()[0].tolist() == [5, 2**33 + 5]
    torch.testing.assert_close(sparse.values(), torch.stack([grads[1], grads[0] + grads[2]]))


def test_opcheck(generator: torch.Generator) -> None:
    ids = torch.randint(30, (4, 5), generator=generator)
    with Recorder() as recorder:
        both(ids, torch.randn(4, 5, 3, generator=generator).bfloat16(), 30, lengths=torch.tensor([5, 0, 2, 1]))
    assert [call[0] for call in recorder.calls] == [table_grad.DENSE.triton, table_grad.SPARSE.triton]
    for op, args in recorder.calls:
        torch.library.opcheck(op, args)
