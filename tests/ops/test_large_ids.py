"""Ids of a table much larger than the batch are sorted by all of their bits."""

from __future__ import annotations

import torch

import mixpol_kernels  # noqa: F401  (loads the ops)

ROWS = 2**24


def test_ids_that_differ_in_one_bit() -> None:
    grads = torch.tensor([1.0, 10.0, 2.0, 20.0, 4.0])[:, None]
    for bit in range(24):
        high = 1 << bit
        ids = torch.tensor([0, high, 0, high, 0])
        layout = torch.tensor([0, 5]), None, None
        unique, rows = torch.ops.mixpol.table_grad_sparse(ids, grads, *layout, ROWS)
        assert unique.tolist() == [0, high]
        assert rows[:, 0].tolist() == [7.0, 30.0], bit
