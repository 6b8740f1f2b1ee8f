"""What fails: bank conflicts, spills in loops, lost stages and blocks, and predicted slowdowns against a record."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_replay.capture import Launch
from gpu_replay.cases import Case
from gpu_replay.predict import Prediction, Scope, Subject

RECORD = Path(__file__).parents[1] / "gpu_replay.json"
WAVEFRONTS = 1.2  # of what shared memory takes without conflicts
SLOWER = 1.05  # than the record
# What a scope's conflicts may cost, of an SM's time, whatever their ratio: some transposes are not worth a layout.
WORTH = 0.02


@dataclass(frozen=True)
class Row:
    """One launch, as the record has it.

    Attributes:
        configuration: tile / warps / stages / flush; "" for kernels that have none.
        microseconds: predicted; None where only the code was looked at.
        warps: on an SM at a time.
        stages: of the deepest pipeline found.
        wavefronts: of shared memory, by the conflict-free ones.
        spills: instructions in loops.
    """

    configuration: str
    microseconds: float | None
    warps: int
    stages: int
    registers: int
    wavefronts: float
    spills: int


@dataclass(frozen=True)
class Result:
    """A launch's row, what is wrong with its code by itself, what could not be known, and its entry on file."""

    name: str
    row: Row
    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()
    entry: str = ""


def judge(name: str, launch: Launch, found: Prediction) -> Result:
    """Of one launch: what its code shows without a record."""
    faults = []
    for scope in found.scopes:
        if scope.ratio > WAVEFRONTS and _share(scope, found) > WORTH:
            faults.append(_conflict(scope, launch))
        if scope.loop and scope.spills:
            faults.append(f"{scope.spills} loads and stores of spilled registers in {scope.name}; expected none")
    if launch.configuration and found.stages < launch.stages:
        faults.append(f"a pipeline of {found.stages} in machine code; the configuration asks for {launch.stages}")
    row = Row(
        _configuration(launch), None if found.microseconds is None else round(found.microseconds, 1),
        found.blocks * found.warps, found.stages, found.registers,
        round(found.wavefronts / found.ideal, 2) if found.ideal else 1.0, sum(s.spills for s in found.scopes if s.loop),
    )  # fmt: skip
    return Result(name, row, tuple(faults), found.notes, launch.configuration)


def _share(scope: Scope, found: Prediction) -> float:
    """Of all that keeps the SM's data stage or its schedulers busy, what the scope's conflicts take."""
    return (scope.wavefronts - scope.ideal) / found.busy if found.busy else 1.0


def _conflict(scope: Scope, launch: Launch) -> str:
    each = max(scope.times, 1)
    tile = launch.constants.get("TILE") if scope.loop else None
    unit = "a token" if tile else "a pass"
    counts = [round(n / each / (tile or 1)) for n in (scope.wavefronts, scope.ideal)]
    return (
        f"{counts[0]:,} wavefronts {unit} in {scope.name}, {counts[1]:,} without bank conflicts: "
        f"{scope.ratio:.2f} times; expected at most {WAVEFRONTS}"
    )


def _configuration(launch: Launch) -> str:
    if not launch.configuration:
        return ""
    constants = launch.constants
    return f"{constants.get('TILE', '?')} / {launch.warps} / {launch.stages} / {constants.get('FLUSH', 0)}"


def compare(result: Result, recorded: dict[str, Any] | None) -> list[str]:
    """What is worse than the record of the same launch."""
    if recorded is None:
        return []
    row, lines = result.row, []
    if row.warps < recorded["warps"]:
        lines.append(f"{row.warps} warps on an SM; the record has {recorded['warps']}")
    if row.stages < recorded["stages"]:
        lines.append(f"a pipeline of {row.stages}; the record has {recorded['stages']}")
    before = recorded["microseconds"]
    if row.microseconds is not None and before is not None and row.microseconds > SLOWER * before:
        slower = row.microseconds / before - 1
        lines.append(f"{row.microseconds:,.1f} µs predicted; the record has {before:,.1f}: {slower:.0%} slower")
    return lines


def examine(case: Case) -> list[Result]:
    """Every kernel that a case launches, once for each machine code that is made of it."""
    found: dict[bytes, Result] = {}
    names: Counter[str] = Counter()
    for launch in case.launches():
        if launch.cubin not in found:
            names[launch.kernel] += 1
            again = f" {names[launch.kernel]}" if names[launch.kernel] > 1 else ""
            name = f"{case.name}: {launch.kernel}{again}"
            found[launch.cubin] = judge(name, launch, Subject(launch).predict(case.timed))
    return list(found.values())


def results(cases: Sequence[Case], jobs: int) -> Iterator[tuple[Case, list[Result] | str]]:
    """Each case in a process of its own, `jobs` at a time, in order; a message where one fails."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from zip(cases, pool.map(lambda case: alone(examine, case), cases), strict=True)


_forking = threading.Lock()


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a forked process, which a compiler that dies takes down alone; a message where it fails."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def child() -> None:
        try:
            send.send(work(*arguments))
        except Exception as error:
            send.send(f"{type(error).__name__}: {error}"[:400])

    process = context.Process(target=child)
    with _forking:
        process.start()
        send.close()
    try:
        found = receive.recv()
    except EOFError:
        found = None
    process.join()
    return f"the process ended with {process.exitcode}" if found is None else found


def recorded(version: str, path: Path = RECORD) -> dict[str, Any]:
    """Rows by name, of a version of Triton; empty where there are none."""
    if not path.exists():
        return {}
    rows: dict[str, Any] = json.loads(path.read_text()).get(version, {})
    return rows


def record(version: str, found: Sequence[Result], path: Path = RECORD) -> None:
    """Replaces these rows of a version of Triton."""
    store(version, {result.name: asdict(result.row) for result in found}, path)


def store(name: str, rows: dict[str, Any], path: Path = RECORD) -> None:
    """Replaces these rows of a table of the record, and leaves the others."""
    every = json.loads(path.read_text()) if path.exists() else {}
    every[name] = dict(sorted((every.get(name, {}) | rows).items()))
    tables = []
    for title, entries in sorted(every.items()):
        lines = (f"  {json.dumps(key)}: {json.dumps(entry, ensure_ascii=False)}" for key, entry in entries.items())
        tables.append(f" {json.dumps(title)}: {{\n" + ",\n".join(lines) + "\n }")
    path.write_text("{\n" + ",\n".join(tables) + "\n}\n")
