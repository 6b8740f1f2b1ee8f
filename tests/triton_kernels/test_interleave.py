"""The Triton kernels of `interleave`, interpreted: exactly the reference's order, and what is wrong is reported."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mixpol_kernels import check_device_errors, explain, interleave
from mixpol_kernels.backend import TIME_TYPES
from mixpol_kernels.ops.interleave import api
from mixpol_kernels.ops.interleave.autograd import FORWARD
from mixpol_kernels.testing.recorder import Recorder

LIMITS = [(None, None), (0, None), (1, None), (7, None), (2**62, None), (7, 0.0), (7, 0.3), (7, 1.0), (0, 0.5)]
# Positives and negatives a user: none, of one polarity only, more than a tile of 16, at a tile's edges.
COUNTS = [(0, 0), (3, 0), (0, 5), (20, 9), (1, 1), (8, 8), (2, 40), (0, 0)]


def lists(
    counts: list[tuple[int, int]], generator: torch.Generator, dtype: torch.dtype = torch.int64, values: int = 12
) -> dict[str, Any]:
    """Times with many ties, rising within each list."""
    found: dict[str, Any] = {}
    for side, name in enumerate(("positive", "negative")):
        times = [torch.randint(values, (c[side],), generator=generator).sort().values for c in counts]
        found[f"{name}_times"] = torch.cat([*times, torch.zeros(0, dtype=torch.int64)]).to(dtype)
        found[f"{name}_offsets"] = torch.tensor([0, *(c[side] for c in counts)]).cumsum(0)
    return found


def check(arguments: dict[str, Any], **limits: Any) -> None:
    found, expected = (interleave(**arguments, **limits, backend=name) for name in ("triton", "reference"))
    for name in ("source", "polarity", "offsets"):
        ours, plain = getattr(found, name), getattr(expected, name)
        assert ours.dtype == plain.dtype
        assert ours.tolist() == plain.tolist()


@pytest.mark.parametrize(("budget", "share"), LIMITS)
def test_limits(budget: int | None, share: float | None, generator: torch.Generator) -> None:
    check(lists(COUNTS, generator), budget=budget, negative_share=share)


@pytest.mark.parametrize("dtype", TIME_TYPES)
def test_dtypes(dtype: torch.dtype, generator: torch.Generator) -> None:
    arguments = lists(COUNTS, generator, dtype)
    arguments["negative_offsets"] = arguments["negative_offsets"].int()
    if dtype.is_floating_point:
        arguments["positive_times"][0], arguments["negative_times"][4] = -torch.inf, torch.inf
    else:
        arguments["positive_times"][0] = torch.iinfo(dtype).min
    for budget in (None, 5):
        check(arguments, budget=budget)


@pytest.mark.parametrize("counts", [[], [(0, 0)], [(0, 0), (0, 3)], [(5, 0)], [(1, 1)] * 20])
def test_edges(counts: list[tuple[int, int]], generator: torch.Generator) -> None:
    for budget in (None, 1):
        check(lists(counts, generator), budget=budget)


def test_all_at_one_time(generator: torch.Generator) -> None:
    check(lists(COUNTS, generator, values=1), budget=6)


def test_strided_lists(generator: torch.Generator) -> None:
    arguments = lists(COUNTS, generator)
    check({name: torch.stack([t, t + 7], 1)[:, 0] for name, t in arguments.items()}, budget=9)


@pytest.mark.parametrize("draw", range(4))
def test_drawn(draw: int, generator: torch.Generator, source: random.Random) -> None:
    counts = [(source.randint(0, 12), source.randint(0, 12)) for _ in range(source.randint(1, 6))]
    budget = source.choice([None, 3, 10])
    share = None if budget is None else source.choice([None, 0.5])
    check(lists(counts, generator, values=source.choice([2, 30])), budget=budget, negative_share=share)


@pytest.mark.parametrize("budget", [None, 4])
def test_opcheck(budget: int | None, generator: torch.Generator) -> None:
    with Recorder() as recorder:
        interleave(**lists([(2, 3), (0, 1)], generator), budget=budget, backend="triton")
    ((op, args),) = recorder.calls
    assert op == FORWARD.triton
    torch.library.opcheck(op, args)


def test_on_a_gpu_that_is_not_here() -> None:
    with FakeTensorMode():
        times, at = torch.zeros(9, device="cuda"), torch.zeros(3, dtype=torch.int64, device="cuda")
        assert explain(interleave, times, at, times, at).backend == "triton"
        assert interleave(times, at, times, at).source.shape == (18,)
    assert torch._C._dispatch_has_kernel_for_dispatch_key(FORWARD.triton.name(), "CUDA")


BAD: dict[str, tuple[str, int, Any]] = {
    "positive_times at position 4": ("positive_times", 4, -1),
    "negative_times at position 2": ("negative_times", 2, torch.nan),
    "positive_offsets at position 1": ("positive_offsets", 1, 9),
    "negative_offsets at position 3": ("negative_offsets", 3, 99),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("budget", [None, 3])
def test_wrong_values(
    budget: int | None, what: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused where they can be looked at; on a GPU nothing out of bounds is touched, and they are named later."""
    arguments = lists([(3, 2), (3, 0), (0, 2)], generator, torch.float32)
    check_device_errors()
    name, at, value = BAD[what]
    arguments[name][at] = value
    with pytest.raises(RuntimeError, match=name):
        interleave(**arguments, budget=budget, backend="triton")
    monkeypatch.setattr(api, "_check_values", lambda *_: None)
    interleave(**arguments, budget=budget, backend="triton")
    pattern = f"{name} of an earlier call had .*" + what.removeprefix(name).strip() if "times" in name else name
    with pytest.raises(RuntimeError, match=pattern):
        check_device_errors()
    check_device_errors()


def test_a_new_user_may_begin_earlier(generator: torch.Generator) -> None:
    """Times fall from one list to the next, which is no mistake; empty lists stand between."""
    arguments = {
        "positive_times": torch.tensor([5, 6, 1, 0, 9]),
        "positive_offsets": torch.tensor([0, 0, 2, 2, 3, 3, 5]),
        "negative_times": torch.tensor([4, 3, 2]),
        "negative_offsets": torch.tensor([0, 1, 2, 2, 2, 3, 3]),
    }
    check(arguments)
    check_device_errors()
