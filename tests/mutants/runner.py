"""Shows that the tests have power: plants each fault of `faults.py` in a copy, and expects the tests to fail.

    python tests/mutants [--only PATTERN] [--jobs N]        (make test-mutants)

The checkout is left alone. The tests that the faults name have to pass in the copy first. A fault is caught when a test
fails while it runs. A fault that does not fit the sources any more, or does not build, import or collect, is a mistake
in the list and fails the run as one that no test notices does.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

HERE = Path(__file__).resolve().parent
Selection = tuple[tuple[str, ...], str]  # arguments of pytest, and its -k
T = TypeVar("T")
PACKAGES = ("mixpol_kernels", "mixpol_models")
LIMIT = 600.0  # seconds for one fault's tests; a fault that makes them hang counts as broken


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        name: what it stands for, in a few words.
        file: of the repository.
        old, new: a text that occurs once in the file, and what takes its place.
        tests: arguments of pytest that should catch it: few, for speed, of those that `make test` runs.
        select: an expression for pytest's -k; empty for all of `tests`.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    select: str = ""

    @property
    def compiled(self) -> bool:
        """Whether the library has to be built again; tests of the CUDA kernels build what they run."""
        return self.file.startswith(("csrc/cpu/", "csrc/math/")) or self.file == "csrc/register.cpp"

    @property
    def selection(self) -> Selection:
        return self.tests, self.select

    def misfit(self, root: Path) -> str:
        """Why it cannot be planted in the sources below `root`; empty if it can."""
        path = root / self.file
        if not path.is_file():
            return f"there is no {self.file}"
        count = path.read_text().count(self.old)
        if count != 1:
            return f"its text occurs {count} times in {self.file}, expected once: write the fault for the new sources"
        if self.old == self.new:
            return "it changes nothing"
        missing = [test for test in self.tests if not (root / test.partition("::")[0]).exists()]
        return f"there is no {', '.join(missing)}" if missing else ""


@dataclass(frozen=True)
class Outcome:
    """What tests did: "passed", "caught" (one failed while it ran) or "broken", and the first such test or a reason."""

    kind: str
    text: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Copy:
    """A copy of the repository's tracked files, in which packages and tests run.

    Attributes:
        root: the folder of the copy.
        scratch: a folder for what belongs to it.
        jobs: processes of one build.
        library: the compiled library without a fault; None where the repository has none.
    """

    root: Path
    scratch: Path
    jobs: int
    library: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the library is built."""
        return self.scratch / "build"

    def environment(self, library: Path | None) -> dict[str, str]:
        paths = (HERE / "site", self.root, self.root / "python")
        found = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "MIXPOL_MUTANT_ROOT": str(self.root),
            "MIXPOL_MUTANT_PACKAGES": ",".join(name for name in PACKAGES if self.has(name)),
            "MIXPOL_TEST_SEED": os.environ.get("MIXPOL_TEST_SEED", "0"),
            "PYTHONDONTWRITEBYTECODE": "1",  # it is checked by whole seconds, in which files may change twice
        }
        return found | ({"MIXPOL_LIBRARY": str(library)} if library else {})

    def has(self, package: str) -> bool:
        return any((folder / package / "__init__.py").is_file() for folder in (self.root, self.root / "python"))

    def test(self, selection: Selection, library: Path | None) -> Outcome:
        """Runs tests up to the first failure."""
        tests, select = selection
        log = self.scratch / "outcomes"
        log.write_text("")
        command = [sys.executable, "-m", "pytest", *tests, "-x", "-q", "-p", "no:cacheprovider", "-p", "outcomes"]
        command += ["-k", select] if select else []
        begin = time.monotonic()
        with open(self.scratch / "output", "w") as output:
            try:
                code = subprocess.run(
                    command, cwd=self.root, stdout=output, stderr=subprocess.STDOUT, timeout=LIMIT, check=False,
                    env={**self.environment(library), "MIXPOL_OUTCOMES": str(log)},
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                return Outcome("broken", f"took more than {LIMIT:.0f} s", time.monotonic() - begin)
        return self._outcome(log.read_text().splitlines(), code, time.monotonic() - begin)

    def _outcome(self, lines: Sequence[str], code: int, seconds: float) -> Outcome:
        entries = [line.partition(" ")[::2] for line in lines]
        kinds = Counter(kind for kind, _ in entries)
        for wanted in ("broken", "caught"):
            for kind, text in entries:
                if kind == wanted:
                    return Outcome(kind, text, seconds)
        if code and entries and entries[-1][0] == "call":
            return Outcome("caught", f"{entries[-1][1]} (the process ended with {code})", seconds)
        if code or not kinds["passed"]:
            lines = (self.scratch / "output").read_text().strip().splitlines()
            return Outcome("broken", f"no test ran: {lines[-1] if lines else f'exit status {code}'}", seconds)
        return Outcome("passed", f"{kinds['passed']} tests", seconds)

    def build(self) -> str:
        """Builds the library, or what changed since. Returns what the compiler said if it failed."""
        steps = [["cmake", "--build", str(self.folder), "--target", "_C", "-j", str(self.jobs)]]
        if not (self.folder / "build.ninja").is_file():
            options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=", "-DMIXPOL_QUICK=ON", "-DMIXPOL_CUDA=OFF"]
            options.append(f"-DPython_EXECUTABLE={sys.executable}")
            steps.insert(0, ["cmake", "-S", str(self.root), "-B", str(self.folder), *options])
        for step in steps:
            run = subprocess.run(step, capture_output=True, text=True, check=False)
            if run.returncode:
                errors = [line for line in (run.stdout + run.stderr).splitlines() if "error" in line.lower()]
                return errors[0] if errors else f"{step[0]} ended with {run.returncode}"
        return ""

    def begin_anew(self) -> str:
        """Leaves a build without a fault: else the next fault would also build again what this one touches."""
        clean = self.scratch / "clean"
        if clean.exists():
            shutil.rmtree(self.folder)
            shutil.copytree(clean, self.folder)
        elif error := self.build():
            return f"the library does not build without a fault: {error}"
        else:
            shutil.copytree(self.folder, clean)
        return ""

    def plant(self, fault: Fault) -> Outcome:
        """What the fault's tests say of it. The copy is as before afterwards."""
        begin = time.monotonic()
        path = self.root / fault.file
        text, status = path.read_text(), path.stat()
        library = self.library
        compiled = fault.compiled and library is not None
        try:
            error = self.begin_anew() if compiled else ""
            path.write_text(text.replace(fault.old, fault.new))
            if compiled:
                library = self.folder / "_C.so"
                error = error or self.build()
            outcome = Outcome("broken", error) if error else self.test(fault.selection, library)
        finally:
            path.write_text(text)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return replace(outcome, seconds=time.monotonic() - begin)


def copy_tracked(source: Path, to: Path) -> None:
    """The files that git tracks, as they are now."""
    listed = subprocess.run(["git", "-C", source, "ls-files", "-z"], capture_output=True, text=True, check=False)
    if listed.returncode:
        raise SystemExit(f"{source} is no git checkout ({listed.stderr.strip()}); expected one: clone the repository")
    for name in filter(None, listed.stdout.split("\0")):
        if (source / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, to / name)


class Run:
    """All faults, by `jobs` workers with a copy each."""

    def __init__(self, source: Path, faults: Sequence[Fault], jobs: int, scratch: Path) -> None:
        self.source, self.faults, self.scratch = source, faults, scratch
        self.jobs = min(jobs, len(faults))
        self.results: dict[str, Outcome] = {}
        self.lock = threading.Lock()
        self.begin = time.monotonic()

    def check(self) -> bool:
        """Whether every fault is caught."""
        for fault in self.faults:
            if misfit := fault.misfit(self.source):
                self.results[fault.name] = Outcome("broken", misfit)
        fitting = [fault for fault in self.faults if fault.name not in self.results]
        copies = self._copies() if fitting else []
        selections = list(dict.fromkeys(fault.selection for fault in fitting))
        self.say(f"{len(fitting)} faults; first the {len(selections)} selections of tests that they name, without any")
        failing: dict[Selection, Outcome] = {}

        def clean(copy: Copy, selection: Selection) -> None:
            outcome = copy.test(selection, copy.library)
            if outcome.kind != "passed":
                failing[selection] = outcome
            self.say(f"{outcome.kind:<8} {outcome.seconds:5.0f} s  {' '.join(selection[0])}  {selection[1]}")

        self._share(copies, selections, clean)
        for fault in fitting:
            if wrong := failing.get(fault.selection):
                self.results[fault.name] = Outcome("broken", f"without the fault: {wrong.kind}, {wrong.text}")
        # One worker begins with what has to be built, the other with the rest.
        rest = sorted((f for f in fitting if f.name not in self.results), key=lambda f: (not f.compiled, f.file))

        def planted(copy: Copy, fault: Fault) -> None:
            outcome = copy.plant(fault)
            with self.lock:
                self.results[fault.name] = outcome
            count = f"{len(self.results)}/{len(self.faults)}"
            self.say(f"{count:>7}  {_word(outcome):<10} {outcome.seconds:5.0f} s  {fault.name}")

        self._share(copies, rest, planted)
        return self._table()

    def say(self, text: str) -> None:
        with self.lock:
            minutes, seconds = divmod(int(time.monotonic() - self.begin), 60)
            print(f"{minutes:3d}:{seconds:02d}  {text}", flush=True)

    def _copies(self) -> list[Copy]:
        cores = len(os.sched_getaffinity(0))
        copies = []
        for worker in range(self.jobs):
            copy = Copy(self.scratch / str(worker) / "copy", self.scratch / str(worker), max(cores // self.jobs, 1))
            copy_tracked(self.source, copy.root)
            copies.append(copy)
        first = copies[0]
        if not (first.root / "CMakeLists.txt").is_file():
            return copies
        self.say("building the library")
        if error := replace(first, jobs=cores).build():
            raise SystemExit(f"the library does not build: {error}")
        library = Path(shutil.copy2(first.folder / "_C.so", self.scratch))
        return [replace(copy, library=library) for copy in copies]

    def _share(self, copies: Sequence[Copy], items: Iterable[T], work: Callable[[Copy, T], None]) -> None:
        """Calls work(copy, item) for all: every other copy takes from the end."""
        waiting = deque(items)
        errors: list[BaseException] = []

        def worker(index: int) -> None:
            try:
                while not errors:
                    try:
                        item = waiting.pop() if index % 2 else waiting.popleft()
                    except IndexError:
                        return
                    work(copies[index], item)
            except BaseException as error:  # to be raised in the main thread
                errors.append(error)

        threads = [threading.Thread(target=worker, args=(i,)) for i in range(len(copies))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:  # Ctrl-C
            errors.append(error)
            for thread in threads:  # to the end of what they are at, since they use the folder
                thread.join()
        if errors:
            raise errors[0]

    def _table(self) -> bool:
        print()
        for fault in self.faults:
            outcome = self.results[fault.name]
            print(f"{_word(outcome):<10} {outcome.seconds:5.0f} s  {fault.file}: {fault.name}\n{'':20}{outcome.text}")
        found = sum(outcome.kind == "caught" for outcome in self.results.values())
        print(f"\n{found} of {len(self.faults)} faults caught")
        return found == len(self.faults)


def _word(outcome: Outcome) -> str:
    return "NOT CAUGHT" if outcome.kind == "passed" else outcome.kind


def main(source: Path, faults: Sequence[Fault], arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if every fault is caught, 1 if not, 2 where there is nothing to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of names or files, as '*softmax*'")
    parser.add_argument("--jobs", type=int, default=2, help="workers (default: 2)")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs was {options.jobs}; expected 1 or more")
    repeated = [name for name, count in Counter(fault.name for fault in faults).items() if count > 1]
    if repeated:
        parser.error(f"faults have one name: {', '.join(repeated)}; expected a name of its own for each")
    chosen = [f for f in faults if fnmatch.fnmatch(f.name, options.only) or fnmatch.fnmatch(f.file, options.only)]
    if not chosen:
        parser.error(f"--only was {options.only!r}, which no fault's name or file matches")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with tempfile.TemporaryDirectory(prefix="mixpol-mutants-") as scratch:
        return 0 if Run(source, chosen, options.jobs, Path(scratch)).check() else 1
