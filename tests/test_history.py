"""`mixpol_kernels.history`: the layouts of a history, and the checks of their arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mixpol_kernels.history import Layout, layout
from mixpol_kernels.testing.layouts import LAYOUTS, place

COUNTS = (2, 0, 3)


CPU = torch.device("cpu")


def made(history: Tensor, batch: int = 3, **arguments: Any) -> Layout:
    options = {"offsets": None, "lengths": None, "mask": None, "trailing": 1, "name": "history", **arguments}
    return layout(history, batch, **options)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_jagged(index_dtype: torch.dtype) -> None:
    where = made(torch.randn(5, 4), offsets=torch.tensor([0, 2, 2, 5], dtype=index_dtype))
    assert (where.batch, where.token_shape) == (3, (5,))
    offsets, _, _ = where.canonical()
    assert offsets is not None
    assert offsets.dtype == torch.int64
    user, keep = where.assignment(CPU)
    assert user.tolist() == [0, 0, 2, 2, 2]
    assert keep is None
    where.check_values()


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_lengths(index_dtype: torch.dtype) -> None:
    where = made(torch.randn(3, 4, 2), lengths=torch.tensor(COUNTS, dtype=index_dtype))
    user, keep = where.assignment(CPU)
    assert user.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert keep is not None
    assert keep.tolist() == [True, True, False, False] + [False] * 4 + [True, True, True, False]
    where.check_values()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_mask(dtype: torch.dtype) -> None:
    mask = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]])
    where = made(torch.randn(3, 3, 2), mask=(mask * 2).to(dtype))
    _, _, kept = where.canonical()
    assert kept is not None
    assert kept.dtype == torch.bool
    _, keep = where.assignment(CPU)
    assert keep is not None
    assert keep.tolist() == mask.flatten().bool().tolist()


def test_full() -> None:
    where = made(torch.randn(3, 2, 4))
    user, keep = where.assignment(CPU)
    assert user.tolist() == [0, 0, 1, 1, 2, 2]
    assert keep is None
    where.check_values()


def test_ids_have_no_trailing_dimension() -> None:
    assert made(torch.zeros(3, 4).long(), trailing=0).token_shape == (3, 4)
    ids = torch.zeros(5).long()
    assert made(ids, trailing=0, offsets=torch.tensor([0, 2, 2, 5])).token_shape == (5,)
    with pytest.raises(ValueError, match=r"ids has shape \[5\]; expected \[B, L\]; a jagged history also needs"):
        made(ids, trailing=0, name="ids")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"offsets": torch.arange(4), "mask": torch.ones(3, 2)}, ValueError, "offsets and mask were given together"),
        ({"lengths": torch.ones(3, 1).long()}, ValueError, r"lengths has shape \[3, 1\]; expected \[3\] \(B\)"),
        ({"lengths": torch.ones(3)}, TypeError, "lengths has dtype torch.float32; expected torch.int32 or"),
        ({"lengths": torch.ones(3).long().to("meta")}, ValueError, "lengths is on meta and the history on cpu"),
        ({"mask": torch.ones(2, 3)}, ValueError, r"mask has shape \[2, 3\]; expected \[3, 2\]"),
        ({"batch": 4}, ValueError, "history has 3 users and target has 4"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made(torch.randn(3, 2, 4), **arguments)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([1, 2, 2, 5], "offsets run from 1 to 5; expected 0 to 5"),
        ([0, 2, 2, 6], "offsets run from 0 to 6; expected 0 to 5"),
        ([0, 3, 2, 5], r"offsets\[2\] is 2, below offsets\[1\] = 3"),
    ],
)
def test_wrong_offsets(offsets: list[int], message: str) -> None:
    where = made(torch.randn(5, 4), offsets=torch.tensor(offsets))
    with pytest.raises(RuntimeError, match=message):
        where.check_values()


@pytest.mark.parametrize(("lengths", "message"), [([2, -1, 0], r"lengths\[1\] is -1"), ([0, 0, 5], r"\[2\] is 5")])
def test_wrong_lengths(lengths: list[int], message: str) -> None:
    where = made(torch.randn(3, 4, 2), lengths=torch.tensor(lengths))
    with pytest.raises(RuntimeError, match=message + r"; expected 0 \.\.\. 4"):
        where.check_values()


def test_no_users() -> None:
    where = made(torch.randn(0, 4), batch=0, offsets=torch.tensor([0]))
    where.check_values()
    assert where.assignment(CPU)[0].shape == (0,)
    where = made(torch.randn(0, 7, 4), batch=0, lengths=torch.zeros(0).long())
    where.check_values()
    assert where.assignment(CPU)[0].shape == (0,)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_assigns_the_same_tokens(name: str, generator: torch.Generator) -> None:
    """What the factories of the tests place, the package reads back."""
    counts = (3, 3, 3) if name == "full" else COUNTS
    spot = place(counts, name, generator)
    tokens = torch.randn(sum(counts), 4)
    history = spot.spread(tokens)
    where = made(history, **spot.arguments)
    where.check_values()
    user, keep = where.assignment(CPU)
    flat = history.reshape(-1, 4)
    assert torch.equal(flat if keep is None else flat[keep], tokens)
    user = user if keep is None else user[keep]
    assert user.tolist() == [b for b, n in enumerate(counts) for _ in range(n)]
    assert torch.equal(spot.gather(history), tokens)
    assert spot.pads(history).isnan().all()
