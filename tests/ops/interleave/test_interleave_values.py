"""`interleave` computes its definition, on every backend, to the last place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from interleave_oracle import DTYPES, Case, User, cases, expected

from mixpol_kernels import Interleaved, interleave

BACKENDS = ("cpu", "reference")
U0: User = ([10, 20, 30], [5, 20, 20, 40])
U1: User = ([], [7, 8])
U2: User = ([3], [])


def assert_expected(got: Interleaved, case: Case) -> None:
    source, polarity, offsets = expected(case)
    assert got.source.dtype == got.offsets.dtype == torch.int64
    assert got.polarity.dtype == torch.uint8
    assert got.source.tolist() == source
    assert got.polarity.tolist() == polarity
    assert got.offsets.tolist() == offsets


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases())
@settings(max_examples=300, deadline=None)
def test_agrees_with_the_definition(backend: str, case: Case) -> None:
    arguments = case.arguments()
    before = {k: v.clone() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    assert_expected(interleave(**arguments, backend=backend), case)
    assert all(torch.equal(arguments[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("budget", "share", "times"),
    [
        (None, None, [[5, 10, 20, 20, 20, 30, 40], [7, 8], [3]]),
        (3, None, [[20, 30, 40], [7, 8], [3]]),
        (1, None, [[40], [8], [3]]),
        (0, None, [[], [], []]),
        (0, 0.5, [[], [], []]),
        (4, 0.5, [[20, 20, 30, 40], [7, 8], [3]]),
        (4, 0.0, [[10, 20, 30, 40], [7, 8], [3]]),
        (4, 1.0, [[5, 20, 20, 40], [7, 8], [3]]),
        (5, 0.1, [[10, 20, 20, 30, 40], [7, 8], [3]]),
        (3, 0.5, [[20, 30, 40][-3:], [7, 8], [3]]),
    ],
)
def test_by_hand(budget: int | None, share: float | None, times: list[list[int]], backend: str) -> None:
    case = Case([U0, U1, U2], budget, share)
    arguments = case.arguments()
    got = interleave(**arguments, backend=backend)
    assert_expected(got, case)
    mixed = got.take(arguments["positive_times"], arguments["negative_times"]).tolist()
    ends = got.offsets.tolist()
    assert [mixed[ends[b] : ends[b + 1]] for b in range(3)] == times


def test_ties(backend: str) -> None:
    """Negatives before positives, each in the order of its list; a budget then keeps the positive."""
    case = Case([([1, 1, 2], [1, 1, 2, 2])], None, None)
    got = interleave(**case.arguments(), backend=backend)
    assert got.polarity.tolist() == [0, 0, 1, 1, 0, 0, 1]
    assert got.source.tolist() == [3, 4, 0, 1, 5, 6, 2]
    for budget, source in ((1, [2]), (2, [6, 2]), (4, [1, 5, 6, 2])):
        got = interleave(**{**case.arguments(), "budget": budget}, backend=backend)
        assert got.source.tolist() == source


def test_unfilled_quota_goes_to_the_other_polarity(backend: str) -> None:
    few_positives, few_negatives = ([1, 3], list(range(10, 30))), (list(range(10, 30)), [1, 3])
    got = interleave(**Case([few_positives, few_negatives], 10, 0.5).arguments(), backend=backend)
    assert got.offsets.tolist() == [0, 10, 20]
    assert got.polarity[:10].sum() == 2
    assert got.polarity[10:].sum() == 8


def test_quota_rounds_half_up(backend: str) -> None:
    user = (list(range(5)), list(range(5)))
    for share, negatives in ((0.0, 0), (0.1, 1), (0.3, 2), (0.5, 3), (1.0, 5)):
        got = interleave(**Case([user], 5, share).arguments(), backend=backend)
        assert int((got.polarity == 0).sum()) == negatives


def random_lists(users: int, most: int, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
    """Lists of very different lengths with many ties."""
    lists = {}
    for name in ("positive", "negative"):
        counts = torch.randint(most + 1, (users,), generator=generator)
        counts[torch.rand(users, generator=generator) < 0.2] = 0
        owner = torch.arange(users).repeat_interleave(counts)
        times = torch.randint(most, (int(counts.sum()),), generator=generator)
        order = (owner * most + times).argsort()
        lists[f"{name}_times"] = times[order].to(dtype)
        lists[f"{name}_offsets"] = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return lists


LIMITS = [(None, None), (40, None), (40, 0.3), (7, 1.0), (0, None), (1000, 0.5)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("budget", "share"), LIMITS)
def test_backends_agree(
    budget: int | None, share: float | None, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Bit for bit, with the work split into blocks."""
    lists = random_lists(700, 90, generator, dtype)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        got, true = (interleave(**lists, budget=budget, negative_share=share, backend=b) for b in BACKENDS)
        for name in ("source", "polarity", "offsets"):
            assert torch.equal(getattr(got, name), getattr(true, name)), name


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_times_beyond_the_next_smaller_type(dtype: torch.dtype, backend: str) -> None:
    """Nothing is narrowed before it is compared."""
    first = 2**52
    case = Case([([first, first + 2], [first + 1, first + 3])], None, None, dtype)
    assert interleave(**case.arguments(), backend=backend).polarity.tolist() == [1, 0, 1, 0]


def test_take(backend: str) -> None:
    """Any column, gradients included."""
    case = Case([U0, U1, U2], 3, None)
    got = interleave(**case.arguments(), backend=backend)
    positive, negative = torch.randn(4, 2, 3).requires_grad_(), torch.randn(6, 2, 3).requires_grad_()
    out = got.take(positive, negative)
    assert torch.equal(out, torch.cat([positive, negative])[got.source])
    out.sum().backward()
    kept = torch.zeros(10)
    kept[got.source] = 1
    assert torch.equal(torch.cat([positive.grad, negative.grad]), kept[:, None, None].expand(10, 2, 3))
    assert torch.equal(got.take(torch.ones(4), torch.zeros(6)), got.polarity.float())


@pytest.mark.parametrize(
    ("columns", "error", "pattern"),
    [
        ((torch.ones(3), torch.ones(6)), ValueError, r"positive has shape \[3\].*\[4, \.\.\.\]"),
        ((torch.ones(4), torch.ones(7)), ValueError, r"negative has shape \[7\].*\[6, \.\.\.\]"),
        ((torch.tensor(1), torch.ones(6)), ValueError, r"positive has shape \[\]"),
        ((torch.ones(4, 2), torch.ones(6, 3)), ValueError, r"negative.*\[3\].*\[2\]"),
        ((torch.ones(4), torch.ones(6).long()), TypeError, r"negative.*int64.*float32"),
        ((torch.ones(4), torch.ones(6, device="meta")), ValueError, r"negative.*meta.*cpu"),
    ],
)
def test_wrong_columns(columns: tuple[torch.Tensor, torch.Tensor], error: type[Exception], pattern: str) -> None:
    got = interleave(**Case([U0, U1, U2], 3, None).arguments())
    with pytest.raises(error, match=pattern):
        got.take(*columns)
