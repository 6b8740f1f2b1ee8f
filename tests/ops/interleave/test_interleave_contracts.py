"""`interleave` keeps the contracts: determinism, batch invariance, views, registration, compile, explain."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from interleave_oracle import DTYPES, Case, User, expected
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from mixpol_kernels import Interleaved, explain, interleave

LIMITS = [(None, None), (12, None), (12, 0.25), (0, None)]


def draw_users(users: int, most: int, generator: torch.Generator) -> list[User]:
    """Rising lists with ties, empty ones among them."""

    def times() -> list[int]:
        n = int(torch.randint(most + 1, (), generator=generator))
        return torch.randint(most, (n,), generator=generator).sort().values.tolist()

    return [([], []), *[(times(), times()) for _ in range(users)], ([], [3]), ([3], [])]


def same(got: Interleaved, true: Interleaved) -> bool:
    return all(torch.equal(*pair) for pair in zip(got[:3], true[:3], strict=True)) and got[3:] == true[3:]


@pytest.mark.parametrize(("budget", "share"), LIMITS)
def test_any_number_of_threads(budget: int | None, share: float | None, generator: torch.Generator) -> None:
    users = [*draw_users(200, 80, generator), (list(range(30_000)), list(range(0, 60_000, 2)))]
    arguments = Case(users, budget, share).arguments()
    expected_bits = interleave(**arguments, backend="cpu")
    for threads in (2, 2, 3, 7):
        torch.set_num_threads(threads)
        assert same(interleave(**arguments, backend="cpu"), expected_bits), threads


@pytest.mark.parametrize(("budget", "share"), LIMITS)
def test_a_user_alone(budget: int | None, share: float | None, backend: str, generator: torch.Generator) -> None:
    """What a user gets does not depend on the batch."""
    users = draw_users(30, 40, generator)
    together = interleave(**Case(users, budget, share).arguments(), backend=backend)
    p_start = n_start = 0
    for b, user in enumerate(users):
        alone = interleave(**Case([user], budget, share).arguments(), backend=backend)
        inside = slice(int(together.offsets[b]), int(together.offsets[b + 1]))
        shift = torch.where(alone.polarity == 1, p_start, together.n_positive + n_start - len(user[0]))
        assert torch.equal(alone.polarity, together.polarity[inside])
        assert torch.equal(alone.source + shift, together.source[inside])
        p_start, n_start = p_start + len(user[0]), n_start + len(user[1])


def wild(like: Tensor, size: int) -> Tensor:
    fill = torch.nan if like.dtype.is_floating_point else torch.iinfo(like.dtype).max
    return torch.full((size,), fill, dtype=like.dtype)


def with_gaps(tensor: Tensor) -> Tensor:
    return wild(tensor, 2 * len(tensor) + 1)[1::2].copy_(tensor)


def shifted(tensor: Tensor) -> Tensor:
    return wild(tensor, len(tensor) + 2)[1:-1].copy_(tensor)


def column(tensor: Tensor) -> Tensor:
    return wild(tensor, 3 * len(tensor)).view(-1, 3)[:, 1].copy_(tensor)


@pytest.mark.parametrize("view", [with_gaps, shifted, column])
@pytest.mark.parametrize("dtype", DTYPES)
def test_views(dtype: torch.dtype, view: Callable[[Tensor], Tensor], backend: str, generator: torch.Generator) -> None:
    case = Case(draw_users(20, 9, generator), 7, 0.4, dtype, (torch.int32, torch.int64))
    arguments = case.arguments()
    true = interleave(**arguments, backend=backend)
    names = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    for changed in (names, *[[name] for name in names]):
        got = interleave(**{**arguments, **{n: view(arguments[n]) for n in changed}}, backend=backend)
        assert same(got, true), changed


def test_expanded_times(backend: str) -> None:
    """Stride 0: all events at one time."""
    offsets = torch.tensor([0, 2, 3])
    times = torch.tensor([5]).expand(3)
    got = interleave(times, offsets, times, offsets, backend=backend)
    assert got.source.tolist() == [3, 4, 0, 1, 5, 2]


@pytest.mark.parametrize("users", [[], [([], [])], [([], []), ([], []), ([], [])]])
@pytest.mark.parametrize(("budget", "share"), LIMITS)
def test_nothing_to_merge(budget: int | None, share: float | None, users: list[User], backend: str) -> None:
    got = interleave(**Case(users, budget, share).arguments(), backend=backend)
    assert got.source.shape == got.polarity.shape == (0,)
    assert got.offsets.tolist() == [0] * (len(users) + 1)
    assert got.take(torch.ones(0, 3), torch.ones(0, 3)).shape == (0, 3)


def test_times_with_gradient(backend: str) -> None:
    """Places have no gradient; a column of times taken through them has."""
    times = torch.tensor([1.0, 3.0]).requires_grad_()
    offsets = torch.tensor([0, 2])
    got = interleave(times, offsets, times.detach(), offsets, budget=1, backend=backend)
    assert not got.source.requires_grad
    got.take(times, times.detach()).sum().backward()
    assert times.grad is not None
    assert times.grad.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("budget", "share"), LIMITS)
def test_opcheck(budget: int | None, share: float | None, dtype: torch.dtype, generator: torch.Generator) -> None:
    arguments = Case(draw_users(5, 30, generator), budget, share, dtype).arguments()
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    quota = None if share is None else int(share * 12)
    results = torch.library.opcheck(torch.ops.mixpol.interleave.default, (*tensors, budget, quota))
    assert set(results.values()) == {"SUCCESS"}, results


@pytest.mark.parametrize(("budget", "share"), LIMITS)
def test_full_graph(budget: int | None, share: float | None, backend: str, generator: torch.Generator) -> None:
    """One graph serves other users and other lists, and goes on behind the data-dependent number of events."""
    torch._dynamo.reset()
    table = torch.randn(3, 4)

    def pooled(positive_ids: Tensor, negative_ids: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
        mixed = interleave(**arguments, backend=backend)
        return table[mixed.take(positive_ids, negative_ids)] * mixed.polarity[:, None], mixed.offsets

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(pooled, fullgraph=True, dynamic=True, backend=counter)
    compilations = []
    for users in (7, 12, 9):
        drawn = draw_users(users, 30, generator)
        while sum(len(liked) - len(skipped) for liked, skipped in drawn) == 0:  # a graph of its own
            drawn = draw_users(users, 30, generator)
        arguments = Case(drawn, budget, share).arguments()
        ids = [torch.randint(3, arguments[f"{p}_times"].shape, generator=generator) for p in ("positive", "negative")]
        got, true = compiled(*ids, **arguments), pooled(*ids, **arguments)
        assert all(torch.equal(*pair) for pair in zip(got, true, strict=True))
        compilations.append(counter.frame_count)
    # A share, being a float, makes dynamo compile its first graph twice.
    assert compilations[2] == compilations[1] <= 2


def test_bad_values_are_refused_in_a_graph() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(interleave, fullgraph=True, dynamic=True, backend="aot_eager")
    case = Case([([1, 2], [3]), ([4], [])], 2, None)
    assert compiled(**case.arguments(), backend="cpu").source.tolist() == expected(case)[0]
    arguments = case.arguments()
    arguments["positive_times"][1] = 0
    with pytest.raises(RuntimeError, match=r"positive_times\[1\] is 0, below"):
        compiled(**arguments, backend="cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_auto_takes_the_compiled_kernel(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    """In every dtype, and nothing is logged."""
    case = Case([([1, 2], [1])], 2, 0.5, dtype)
    found = explain(interleave, **case.arguments())
    assert (found.op, found.backend, found.rejected, found.saved_bytes) == ("interleave", "cpu", {}, 0)
    with caplog.at_level(logging.DEBUG, logger="mixpol_kernels"):
        assert interleave(**case.arguments()).source.tolist() == expected(case)[0]
    assert not caplog.records
    assert explain(interleave, **case.arguments(), backend="reference").backend == "reference"


def test_the_op_refuses_what_the_public_function_does() -> None:
    """Called past the checks, the kernel still reads nothing out of bounds."""
    times, offsets = torch.arange(3), torch.tensor([0, 3])
    op = torch.ops.mixpol.interleave
    assert op(times, offsets, times, offsets, None, None)[0].tolist() == [3, 0, 4, 1, 5, 2]
    for arguments, pattern in (
        ((times, offsets.int(), times, offsets, None, None), "positive_offsets.*int64"),
        ((times, offsets, times, torch.tensor([0, 1, 3]), None, None), "2 users and positive_offsets 1"),
        ((times, offsets, times.double(), offsets, None, None), "negative_times.*dtype"),
        ((times.short(), offsets, times.short(), offsets, None, None), "positive_times is neither"),
        ((times, offsets, times[None], offsets, None, None), "negative_times is not"),
        ((times, offsets, times, offsets, -1, None), "budget is -1"),
        ((times, offsets, times, offsets, 2, 3), "n_negative 3"),
    ):
        with pytest.raises(RuntimeError, match=pattern):
            op(*arguments)
