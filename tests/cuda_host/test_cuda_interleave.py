"""`interleave` on CUDA gives what the reference gives, exactly, and refuses what the CPU refuses."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from emulation import Emulation, RefusedError

import mixpol_kernels

DTYPES = (torch.int64, torch.int32, torch.float32, torch.float64)


def lists(source: random.Random, users: int, longest: int, values: int, dtype: torch.dtype) -> dict[str, Any]:
    """Times out of few values, for ties, with the ends of the range among them."""
    limits = (-math.inf, math.inf) if dtype.is_floating_point else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    arguments: dict[str, Any] = {}
    for name in ("positive", "negative"):
        times, offsets = [], [0]
        for _ in range(users):
            count = source.choice([0, 1, source.randint(0, longest)])
            times += sorted(source.choice([source.randint(0, values), *limits]) for _ in range(count))
            offsets.append(len(times))
        arguments |= {f"{name}_times": torch.tensor(times, dtype=dtype), f"{name}_offsets": torch.tensor(offsets)}
    return arguments


def check(cuda: Emulation, arguments: dict[str, Any], budget: int | None, share: float | None) -> None:
    expected = mixpol_kernels.interleave(**arguments, budget=budget, negative_share=share, backend="reference")
    quota = None if share is None or budget is None else min(math.floor(share * budget + 0.5), budget)
    for got, wanted in zip(cuda.interleave(arguments, budget, quota), expected[:3], strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("budget", [None, 0, 1, 7, 100, 2**62])
def test_agrees_with_the_reference(
    budget: int | None, dtype: torch.dtype, cuda: Emulation, source: random.Random
) -> None:
    for share in [None] if budget is None else [None, 0.0, 0.4, 1.0]:
        check(cuda, lists(source, 6, 12, 5, dtype), budget, share)
    check(cuda, lists(source, 3, 300, 50, dtype), budget, None)


@pytest.mark.parametrize("users", [0, 1])
def test_no_events(users: int, cuda: Emulation, source: random.Random) -> None:
    check(cuda, lists(source, users, 0, 1, torch.int64), None, None)
    check(cuda, lists(source, users, 0, 1, torch.int64), 5, 0.5)


@pytest.mark.parametrize("name", ["positive", "negative"])
def test_refusals(name: str, cuda: Emulation) -> None:
    good = {
        "positive_times": torch.tensor([1.0, 2.0, 3.0]), "positive_offsets": torch.tensor([0, 2, 3]),
        "negative_times": torch.tensor([4.0, 5.0, 0.0]), "negative_offsets": torch.tensor([0, 2, 3]),
    }  # fmt: skip

    def refused(argument: str, values: Any, pattern: str) -> None:
        with pytest.raises(RefusedError, match=pattern):
            cuda.interleave({**good, f"{name}_{argument}": torch.tensor(values)}, None, None)

    refused("times", [2.0, 1.0, 3.0], rf"{name}_times\[1\] is 1, below {name}_times\[0\] = 2 of the same user")
    refused("times", [1.0, 2.0, math.nan], rf"{name}_times\[2\] is nan; expected a number")
    refused("offsets", [0, 2, 4], rf"{name}_offsets run from 0 to 4; expected 0 to 3")
    refused("offsets", [0, 4, 3], rf"{name}_offsets\[2\] is 3, below {name}_offsets\[1\] = 4")
