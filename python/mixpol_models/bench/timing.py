"""Timing protocol: interleaved rounds, medians and quartiles of the ratios within a round."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Generic, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)
MIN_ROUNDS = 3
_MAX_REPEATS = 64


class Quartiles(NamedTuple):
    """Lower quartile, median and upper quartile; linear between the values, all of them within their range."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Those of one or more values."""
        low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(low, median(values), high)


@dataclass(frozen=True)
class Rounds(Generic[Key]):
    """Times of several calls in interleaved rounds.

    Attributes:
        seconds: of each call, [round][repeat].
    """

    seconds: Mapping[Key, Sequence[Sequence[float]]]

    def __len__(self) -> int:
        return len(next(iter(self.seconds.values())))

    def per_round(self, key: Key) -> list[float]:
        """The median of each round's repeats."""
        return [median(repeats) for repeats in self.seconds[key]]

    def median(self, key: Key) -> float:
        """Over the rounds."""
        return median(self.per_round(key))

    def least(self, key: Key) -> float:
        """Over all repeats."""
        return min(map(min, self.seconds[key]))

    def ratio(self, key: Key, base: Key) -> Quartiles:
        """Time of `key` over time of `base` in the same round."""
        return Quartiles.of([a / b for a, b in zip(self.per_round(key), self.per_round(base), strict=True)])


def interleaved(
    calls: Mapping[Key, Callable[[], object]],
    rounds: int,
    seconds_per_call: float | None = None,
    prepare: Callable[[], None] = lambda: None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds[Key]:
    """Times every call in every round, so that what changes over time hits all of them alike.

    The order is shuffled each round: with a mere rotation every call would always follow the same neighbour,
    and inherit its caches. Garbage collection is off meanwhile.

    Args:
        calls: what to time.
        rounds: at most this many rounds.
        seconds_per_call: after MIN_ROUNDS rounds, stop when this times the number of calls is used up. A short call is
            repeated within its turn, to get its share of the time; two calls before that warm up. None: every round,
            one call each, without warm-up.
        prepare: runs before each call, outside of the timed part.
        seed: of the order.
        clock: seconds.
    """
    repeats = dict.fromkeys(calls, 1)
    if seconds_per_call is not None:
        for key, call in calls.items():
            once = min(_timed(call, prepare, clock) for _ in range(2))
            repeats[key] = max(1, min(_MAX_REPEATS, int(seconds_per_call / rounds / max(once, 1e-9))))
    order, shuffle = list(calls), random.Random(seed).shuffle
    times: dict[Key, list[list[float]]] = {key: [] for key in calls}
    started, limit = time.perf_counter(), float("inf") if seconds_per_call is None else seconds_per_call * len(calls)
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for done in range(rounds):
            if done >= MIN_ROUNDS and time.perf_counter() - started > limit:
                break
            shuffle(order)
            for key in order:
                times[key].append([_timed(calls[key], prepare, clock) for _ in range(repeats[key])])
    finally:
        if was_enabled:
            gc.enable()
    return Rounds(times)


def median_within(budget: float, measure: Callable[[], float]) -> float:
    """Median of as many readings, in seconds, as fit into the budget: 3 to 998, after two that warm up."""
    times: list[float] = []
    for i in range(1000):
        seconds = measure()
        if i >= 2:
            times.append(seconds)
        if len(times) >= 3 and sum(times) > budget:
            break
    return median(times)


def _timed(call: Callable[[], object], prepare: Callable[[], None], clock: Callable[[], float]) -> float:
    prepare()
    start = clock()
    result = call()
    elapsed = clock() - start
    del result
    return elapsed
