"""`mixpol bench --compare REF`: the kernels of this checkout against those of another revision, in turns.

Both sides run this checkout's Python and differ in the compiled library alone, so that what is compared is csrc/. The
revision's is built in a temporary worktree, without network and without build isolation; where its csrc/ and
CMakeLists.txt are those of the working tree, the library that is loaded serves for both sides. The other one is the
library as it was last built: rebuild it after a change (`make setup`).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from mixpol_kernels.library import library
from mixpol_models.bench.shapes import Shape

BUILT_FROM = ("csrc", "CMakeLists.txt")
_RESAMPLES, _COVERED = 2000, 0.95
ROUNDS, TOLERANCE = 9, 0.05


@dataclass(frozen=True)
class Change:
    """One shape and direction: this checkout's time over the revision's; above 1, this checkout is slower.

    Attributes:
        name, direction: what ran; "forward" or "forward + backward".
        before_ms, now_ms: medians over the rounds.
        ratio, low, high: median over the rounds of the ratio within a round, and the interval that covers 95 % of the
            medians of bootstrap samples of the rounds.
    """

    name: str
    direction: str
    before_ms: float
    now_ms: float
    ratio: float
    low: float
    high: float

    def slower(self, tolerance: float = TOLERANCE) -> bool:
        """Whether the whole interval is above 1 + tolerance."""
        return self.low > 1 + tolerance


def compare(
    reference: str,
    shapes: Sequence[Shape],
    rounds: int = ROUNDS,
    seconds: float = 0.5,
    progress: Callable[[str, float], None] | None = None,
    seed: int = 0,
) -> list[Change]:
    """Measures this checkout and a revision in interleaved rounds: in each, a process for either, in random order.

    Args:
        reference: anything that git takes for a commit.
        shapes: what is measured, in its fused form.
        rounds: how many.
        seconds: of timing a shape and turn.
        progress: gets a line of text and the share that is done.
        seed: of the order and the bootstrap.

    Raises:
        ValueError: this is no git checkout, or it has no such revision.
        RuntimeError: no library is loaded, the revision cannot be built, or its ops have other signatures.
    """
    say = progress or (lambda line, done: None)
    if library.path is None or not library.loaded:
        raise RuntimeError(f"there is no compiled library to compare: {library.reason}")
    source = random.Random(seed)
    with _library_of(reference, say) as other:
        sides = {"before": other, "now": library.path}
        times: dict[str, list[list[tuple[float, float]]]] = {side: [] for side in sides}
        for done in range(rounds):
            for turn, side in enumerate(source.sample(list(sides), 2)):
                say(f"round {done + 1} of {rounds}: {side}", (2 * done + turn) / (2 * rounds))
                times[side].append(_turn(sides[side], reference if side == "before" else "", shapes, seconds, not done))
    say("done", 1.0)
    return [
        _change(shape.name, direction, *([r[i][j] for r in times[side]] for side in ("before", "now")), source)
        for i, shape in enumerate(shapes)
        for j, direction in enumerate(("forward", "forward + backward"))
    ]


def _change(name: str, direction: str, before: list[float], now: list[float], source: random.Random) -> Change:
    ratios = [n / b for n, b in zip(now, before, strict=True)]
    drawn = sorted(median(source.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES))
    cut = int((1 - _COVERED) / 2 * _RESAMPLES)
    return Change(name, direction, median(before), median(now), median(ratios), drawn[cut], drawn[-1 - cut])


def _turn(path: Path, revision: str, shapes: Sequence[Shape], seconds: float, check: bool) -> list[tuple[float, float]]:
    """One process on one library."""
    request = {"shapes": [asdict(shape) for shape in shapes], "seconds": seconds, "check": check}
    command = (sys.executable, "-m", "mixpol_models.bench.compare_worker")
    done = _run_group(command, json.dumps(request), {**os.environ, "MIXPOL_LIBRARY": str(path)})
    if done.returncode:
        who = f"revision {revision}" if revision else "this checkout"
        raise RuntimeError(f"{who} cannot be measured: {done.stderr.strip().splitlines()[-1]}")
    return [(forward, total) for forward, total in json.loads(done.stdout)]


@contextmanager
def _library_of(reference: str, say: Callable[[str, float], None]) -> Iterator[Path]:
    """The compiled library of a revision, for as long as the context lasts."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        raise ValueError(f"compare was {reference!r} and {root.name} is no git checkout; expected to run in one")
    found = _run("git", "-C", str(root), "rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}")
    if found.returncode:
        raise ValueError(f"compare was {reference!r}; expected a revision that this checkout has (see `git log`)")
    commit = found.stdout.strip()
    changed = _run("git", "-C", str(root), "status", "--porcelain", "--", *BUILT_FROM).stdout.strip()
    if not changed and _tree(root, commit) == _tree(root, "HEAD"):
        assert library.path is not None
        say(f"{reference} has the same sources: the same library for both", 0.0)
        yield library.path
        return
    with tempfile.TemporaryDirectory(prefix="mixpol-compare-") as scratch:
        tree, build = Path(scratch) / "tree", Path(scratch) / "build"
        _expect(_run("git", "-C", str(root), "worktree", "add", "--quiet", "--detach", str(tree), commit), reference)
        try:
            say(f"building {reference}", 0.0)
            cmake, ninja = _tool("cmake"), _tool("ninja")
            options = ["-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}", "-DMIXPOL_CUDA=OFF"]
            configure = [cmake, "-S", str(tree), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
            _expect(_run(*configure, *options), reference)
            _expect(_run(cmake, "--build", str(build), "--target", "_C"), reference)
            yield build / "_C.so"
        finally:
            _run("git", "-C", str(root), "worktree", "remove", "--force", str(tree))


def _tree(root: Path, commit: str) -> list[str]:
    """Git's hashes of what the library is built from."""
    return [_run("git", "-C", str(root), "rev-parse", "--verify", f"{commit}:{path}").stdout for path in BUILT_FROM]


def _tool(name: str) -> str:
    """A program of this environment, or of the machine."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        raise RuntimeError(f"{name} was not found, and a revision is built with it: pip install {name}")
    return found


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return _run_group(command)


def _run_group(
    command: Sequence[str], text: str | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program, which ends with all that it started if this process is stopped meanwhile."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, text=True, start_new_session=True
    ) as process:
        try:
            out, error = process.communicate(text)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def _expect(done: subprocess.CompletedProcess[str], reference: str) -> None:
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise RuntimeError(f"revision {reference} cannot be built: `{' '.join(map(str, done.args))}` said\n{said}")
