"""Memory readings against sizes known by hand, and the order and number of timed calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixpol_models.bench.memory import peak_mib, saved_mib
from mixpol_models.bench.timing import MIN_ROUNDS, Quartiles, Rounds, interleaved


def test_saved_counts_each_storage_once_and_no_input() -> None:
    x = torch.randn(256, 1024, requires_grad=True)

    def forward() -> torch.Tensor:
        y = x.exp()  # kept by exp and, as a view, by the product: one MiB
        return (y.view(-1) * x.view(-1)).sum()

    assert saved_mib(forward, [x]) == 1.0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_sees_what_was_touched_and_freed() -> None:
    def step() -> None:
        large = torch.ones(16 * 2**18)
        del large
        torch.ones(2**18)

    step()
    peak = peak_mib(step, lambda: None)
    assert peak == pytest.approx(16, abs=1.5)


def test_every_call_in_every_round() -> None:
    seen: list[str] = []
    prepared: list[None] = []
    calls = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    times = interleaved(calls, rounds=8, seconds_per_call=1e-9, prepare=lambda: prepared.append(None))
    assert len(times) == MIN_ROUNDS, "the time was up"
    assert len(prepared) == len(seen)
    warm_up, timed = seen[:6], seen[6:]
    assert warm_up == list("aabbcc")
    turns = [timed[i : i + 3] for i in range(0, len(timed), 3)]
    assert all(sorted(turn) == list("abc") for turn in turns)


def test_one_number_a_round() -> None:
    times = Rounds({"a": [[3.0, 1.0, 2.0], [5.0]], "b": [[1.0], [10.0]]})
    assert times.per_round("a") == [2.0, 5.0]
    assert (times.median("a"), times.least("a")) == (3.5, 1.0)
    assert times.ratio("a", "b") == (0.875, 1.25, 1.625), "2 and 0.5 in the two rounds"


def test_quartiles() -> None:
    assert Quartiles.of([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)
    assert Quartiles.of([7.0]) == (7.0, 7.0, 7.0)


def test_without_a_limit_every_round_has_one_call_each() -> None:
    seen: list[str] = []
    ticks = iter(range(100))
    calls = {name: (lambda name=name: seen.append(name)) for name in "ab"}
    times = interleaved(calls, rounds=5, clock=lambda: next(ticks))
    assert sorted(seen) == list("aaaaabbbbb")
    assert times.seconds == {name: [[1]] * 5 for name in "ab"}
