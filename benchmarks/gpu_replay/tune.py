"""The fastest configuration of a grid by predicted time: what `mixpol tune` does where there is a GPU.

A candidate that spills, does not fit, or has lost a stage that it asks for is left out; not the present one, with which
the others are compared.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from gpu_replay.capture import ARCHITECTURE
from gpu_replay.cases import USERS, Case, shipped
from gpu_replay.gate import alone, judge
from gpu_replay.predict import Subject
from mixpol_kernels.ops.triton import devices
from mixpol_kernels.ops.triton.devices import Config
from mixpol_models.bench.tune import candidates
from mixpol_models.bench.tune_trial import FOLDERS, Entry, configuration

LENGTHS = (50, 200, 1000)
ROUGH_LENGTHS, ROUGH_USERS, FINALISTS = (200,), 1056, 5
VARIANTS = {"target_attention": "relu", "polarity_fusion": "product", "dot_target_attention": "one target"}


@dataclasses.dataclass(frozen=True)
class Tried:
    """A candidate: microseconds by length, or why it is out."""

    config: Config
    microseconds: tuple[float, ...] = ()
    refused: str = ""


def attempt(entry: Entry, config: Config, lengths: Sequence[int], users: int) -> Tried:
    """Predicts an entry's kernel in one configuration, the plainest variant of its op."""
    present = devices.shipped(FOLDERS[entry.op], ARCHITECTURE).get(entry.name)
    found = []
    for length in lengths:
        case = Case(entry.op, entry.element, entry.width, entry.units, VARIANTS[entry.op], users, length)
        with configuration(entry, ARCHITECTURE, config):
            launches = case.launches()
        wanted = f"{entry.op}/{entry.name}"
        launch = next((one for one in launches if one.configuration == wanted), None)
        if launch is None:
            return Tried(config, refused="the op does not launch it")
        subject = Subject(launch)
        result = judge(entry.name, launch, subject.predict(timed=False))
        if result.row.spills and config != present:
            return Tried(config, refused=f"{result.row.spills} spills in loops")
        if result.row.stages < config.stages and config != present:
            return Tried(config, refused=f"a pipeline of {result.row.stages}")
        time = subject.predict().microseconds
        assert time is not None
        found.append(round(time, 1))
    return Tried(config, tuple(found))


def tune(entry: Entry, jobs: int, tries: Sequence[Config]) -> list[Tried]:
    """These candidates, the fastest first by the product of their times, then those that are out.

    All are compared on few users, and the best of them on the lengths.
    """
    rough = _attempts(entry, jobs, tries, ROUGH_LENGTHS, ROUGH_USERS)
    rough.sort(key=_merit)
    best = [tried.config for tried in rough if tried.microseconds][:FINALISTS]
    best += [config for config in tries[:1] if config not in best]  # the present one, to compare with
    return sorted(_attempts(entry, jobs, best, LENGTHS, USERS), key=_merit) + [t for t in rough if t.refused]


def _attempts(entry: Entry, jobs: int, tries: Sequence[Config], lengths: Sequence[int], users: int) -> list[Tried]:
    found = []
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(lambda config: alone(attempt, entry, config, lengths, users), tries)
        for config, got in zip(tries, results, strict=True):
            found.append(got if isinstance(got, Tried) else Tried(config, refused=str(got)))
            print(_line(found[-1]), flush=True)
    return found


def _merit(tried: Tried) -> float:
    product = 1.0
    for time in tried.microseconds:
        product *= time
    return product if tried.microseconds else float("inf")


def _line(tried: Tried) -> str:
    times = " / ".join(f"{t:,.1f}" for t in tried.microseconds)
    name = " / ".join(map(str, dataclasses.astuple(tried.config)))
    return f"{name}: {times + ' µs' if times else tried.refused}"


def report(name: str, jobs: int) -> int:
    """Tunes one configuration and prints the table; 1 where no candidate is left."""
    every = {f"{op}/{entry.name}": entry for op, entries in shipped().items() for entry in entries}
    if name not in every:
        print(f"--tune was {name!r}; expected one of: {', '.join(every)}")
        return 2
    print(f"{name}, tile / warps / stages / flush, at most {' / '.join(map(str, LENGTHS))} tokens, predicted:")
    entry = every[name]
    present = devices.shipped(FOLDERS[entry.op], ARCHITECTURE)[entry.name]
    ranked = tune(entry, jobs, list(dict.fromkeys([present, *candidates(entry)])))
    best, *rest = ranked
    shipped_too = next((_line(tried) for tried in ranked if tried.config == present), "")
    print(f"\nfastest: {_line(best)}\nshipped: {shipped_too}")
    for tried in itertools.islice((r for r in rest if r.microseconds and r.config != present), 4):
        print(f"then     {_line(tried)}")
    return 0 if best.microseconds else 1
