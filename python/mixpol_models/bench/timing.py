"""Interleaved timing: every form in every round, so that what changes over time hits all of them alike."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Hashable, Mapping
from statistics import median
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
MIN_ROUNDS = 3
_MAX_REPEATS = 64


def interleaved(
    calls: Mapping[Key, Callable[[], object]],
    prepare: Callable[[], None],
    rounds: int,
    seconds_per_call: float,
    seed: int = 0,
) -> dict[Key, list[list[float]]]:
    """Times every call in every round.

    The order is shuffled each round: with a mere rotation every call would always follow the same neighbour,
    and inherit its caches. A short call is repeated within its turn, so that it too gets its share of the
    time. Garbage collection is off meanwhile.

    Args:
        calls: what to time; called twice before for warm-up.
        prepare: runs before each call, outside of the timed part.
        rounds: at most this many rounds.
        seconds_per_call: after MIN_ROUNDS rounds, stop when this times the number of calls is used up.
        seed: of the order.

    Returns:
        seconds of each call: [round][repeat].
    """
    repeats = {}
    for key, call in calls.items():
        once = min(_timed(call, prepare) for _ in range(2))
        turn = seconds_per_call / rounds
        repeats[key] = max(1, min(_MAX_REPEATS, int(turn / max(once, 1e-9))))
    order, shuffle = list(calls), random.Random(seed).shuffle
    times: dict[Key, list[list[float]]] = {key: [] for key in calls}
    started, limit = time.perf_counter(), seconds_per_call * len(calls)
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for done in range(rounds):
            if done >= MIN_ROUNDS and time.perf_counter() - started > limit:
                break
            shuffle(order)
            for key in order:
                times[key].append([_timed(calls[key], prepare) for _ in range(repeats[key])])
    finally:
        if was_enabled:
            gc.enable()
    return times


def per_round(times: list[list[float]]) -> list[float]:
    """One number a round: the median of its repeats."""
    return [median(repeats) for repeats in times]


def _timed(call: Callable[[], object], prepare: Callable[[], None]) -> float:
    prepare()
    start = time.perf_counter()
    result = call()
    elapsed = time.perf_counter() - start
    del result
    return elapsed
