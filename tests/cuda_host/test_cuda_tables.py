"""The gradient of a looked-up table on CUDA: sorted segments, the same bits in any order of threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from emulation import Emulation
from torch import Tensor

from mixpol_kernels.testing.layouts import LAYOUTS, place

ROWS = 40
# How often ids occur: segments within a run of sorted places, at its ends, over several runs, none at all.
DRAWS = {
    "spread out": lambda n, g: torch.randint(ROWS, (n,), generator=g),
    "one id": lambda n, g: torch.full((n,), 7),
    "two hot ids": lambda n, g: torch.randint(2, (n,), generator=g) * (ROWS - 1),
    "once each": lambda n, g: torch.arange(n) % ROWS,
}


def expected(ids: Tensor, grads: Tensor) -> Tensor:
    return torch.zeros(ROWS, grads.shape[1], dtype=torch.float64).index_add(0, ids, grads.double())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("width", [1, 7, 24, 130])
def test_sums(draw: str, layout: str, width: int, cuda: Emulation, generator: torch.Generator) -> None:
    """Small whole numbers have exact sums; pads hold NaN and wild ids."""
    counts = (43, 43, 43) if layout == "full" else (31, 0, 97, 2)
    where = place(counts, layout, generator)
    ids = DRAWS[draw](sum(counts), generator)
    grads = torch.randint(-9, 10, (sum(counts), width), generator=generator).float()
    arguments = {"ids": where.spread(ids), "grads": where.spread(grads)}
    truth = expected(ids, grads).float()
    _, dense = cuda.table_grad(arguments["ids"], arguments["grads"], ROWS, False, where.arguments)
    assert torch.equal(dense, truth)
    unique, rows = cuda.table_grad(arguments["ids"], arguments["grads"], ROWS, True, where.arguments)
    assert torch.equal(unique, ids.unique())
    assert torch.equal(rows, truth[unique])


@pytest.mark.parametrize("sparse", [False, True])
def test_rounding_and_order_of_threads(sparse: bool, cuda: Emulation, generator: torch.Generator) -> None:
    """As precise as one sum in order, and the same bits whichever thread runs first."""
    ids, grads = DRAWS["two hot ids"](3000, generator), torch.randn(3000, 16, generator=generator)
    unique, rows = cuda.table_grad(ids, grads, ROWS, sparse, {})
    truth = expected(ids, grads)
    plain = torch.zeros(ROWS, 16).index_add(0, ids, grads)
    limit = 2 * float((plain - truth).abs().max()) + torch.finfo(torch.float32).eps * float(truth.abs().max())
    assert float((rows - (truth[unique] if sparse else truth)).abs().max()) <= limit
    for got, wanted in zip(
        replace(cuda, backwards=True).table_grad(ids, grads, ROWS, sparse, {}), (unique, rows), strict=True
    ):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("layout", ["jagged", "lengths"])
def test_nothing_kept(layout: str, cuda: Emulation, generator: torch.Generator) -> None:
    where = place((0, 0), layout, generator, **({} if layout == "jagged" else {"length": 40}))
    ids, grads = where.spread(torch.zeros(0, dtype=torch.int64)), where.spread(torch.zeros(0, 8))
    assert not cuda.table_grad(ids, grads, ROWS, False, where.arguments)[1].any()
    unique, rows = cuda.table_grad(ids, grads, ROWS, True, where.arguments)
    assert unique.shape == (0,)
    assert rows.numel() == 0


def test_strided_gradients(cuda: Emulation, generator: torch.Generator) -> None:
    ids = DRAWS["spread out"](90, generator).view(3, 30)
    grads = torch.randn(30, 3, 12, generator=generator)
    _, straight = cuda.table_grad(ids, grads.transpose(0, 1).contiguous(), ROWS, False, {})
    _, strided = cuda.table_grad(ids, grads.transpose(0, 1), ROWS, False, {})
    assert torch.equal(strided, straight)
