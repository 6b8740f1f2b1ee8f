"""`mixpol bench --compare`: turns, intervals, exit status and what it refuses."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixpol_kernels.library import library
from mixpol_models.bench import compare as revisions
from mixpol_models.bench import compare_worker
from mixpol_models.bench.compare import Change, compare
from mixpol_models.bench.gate import GateError
from mixpol_models.bench.shapes import SHAPES
from mixpol_models.cli import app

TINY = SHAPES["DIN ReLU, L=10"].small()
ROOT = Path(__file__).parents[3]
needs_library = pytest.mark.skipif(not library.loaded, reason=library.reason)
needs_checkout = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")


def _git(*command: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True).stdout.strip()


@needs_library
@needs_checkout
def test_head_against_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two real processes on the library that is there; it is built only where csrc/ differs from HEAD."""
    if _git("status", "--porcelain", "--", *revisions.BUILT_FROM):
        pytest.skip("csrc/ differs from HEAD, which would have to be built")
    said: list[str] = []
    changes = compare("HEAD", [TINY], rounds=1, seconds=0.01, progress=lambda line, done: said.append(line))
    assert "the same library for both" in said[0]
    assert [(change.name, change.direction) for change in changes] == [
        ("DIN ReLU, L=10", "forward"),
        ("DIN ReLU, L=10", "forward + backward"),
    ]
    for change in changes:
        assert change.before_ms > 0
        assert change.ratio == pytest.approx(change.now_ms / change.before_ms)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Replaces processes by made-up times: this checkout takes `factor` times as long, give or take a hundredth."""

    def plant(factor: float) -> None:
        noise = random.Random(0)
        here = Path("now")

        def turn(path: Path, *_: object) -> list[tuple[float, float]]:
            ms = (factor if path == here else 1.0) * (1 + 0.01 * noise.random())
            return [(ms, 3 * ms)] * 8

        def other(*_: object) -> AbstractContextManager[Path]:
            return nullcontext(Path("before"))

        monkeypatch.setattr(library, "path", here)
        monkeypatch.setattr(library, "reason", "")
        monkeypatch.setattr(revisions, "_turn", turn)
        monkeypatch.setattr(revisions, "_library_of", other)

    return plant


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (0.8, 0), (1.04, 0), (1.08, 1)])
def test_exit_status(slow: Callable[[float], None], factor: float, status: int) -> None:
    slow(factor)
    done = CliRunner().invoke(app, ["bench", "--quick", "--compare", "HEAD"])
    assert done.exit_code == status, done.output
    assert done.output.splitlines()[-1].strip() not in ("0", "1"), "the status is no message"
    assert ("slower" in done.output.split("interval")[1]) == (status == 1)


def test_tolerance(slow: Callable[[float], None]) -> None:
    slow(1.08)
    command = ["bench", "--quick", "--compare", "HEAD", "--tolerance", "0.2"]
    assert CliRunner().invoke(app, command).exit_code == 0


def test_a_wide_interval_is_no_verdict() -> None:
    source = random.Random(0)
    change = revisions._change("case", "forward", [1.0] * 9, [0.9] * 4 + [1.3] * 5, source)
    assert change.ratio == pytest.approx(1.3)
    assert change.low < 1 < change.high
    assert not change.slower()
    assert Change("case", "forward", 1.0, 1.2, 1.2, 1.06, 1.3).slower()


@needs_library
def test_an_unknown_revision_is_refused() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = CliRunner().invoke(app, ["bench", "--quick", "--compare", "no-such-revision"])
    assert done.exit_code == 2
    assert "compare was 'no-such-revision'; expected a revision" in done.output


@needs_library
def test_no_checkout_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(revisions, "__file__", str(tmp_path / "a" / "b" / "c" / "compare.py"))
    with pytest.raises(ValueError, match="no git checkout"):
        compare("HEAD", [TINY], rounds=1)


def test_a_report_cannot_be_had_with_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "--compare", "HEAD", "--output", str(tmp_path)])
    assert done.exit_code == 2
    assert "expected it alone" in done.output


def test_without_a_library_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "reason", "planted: not built")
    with pytest.raises(RuntimeError, match="planted: not built"):
        compare("HEAD", [TINY], rounds=1)


def test_other_signatures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process on a library that does not load says why, and whose it was."""

    def failed(command: list[str], *_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "a warning\n_C.so was built for another signature of x\n")

    monkeypatch.setattr(revisions, "_run_group", failed)
    with pytest.raises(RuntimeError, match=r"revision v1 cannot be measured: _C\.so was built for another signature"):
        revisions._turn(Path("_C.so"), "v1", [TINY], 0.01, True)


@needs_library
def test_a_turn_checks_before_it_times(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, total = compare_worker.time_shape(TINY, 0.01, check=True)
    assert forward > 0
    assert total > 0
    monkeypatch.setattr("mixpol_models.bench.case.gate.OUTPUT_FACTOR", -1e9)
    with pytest.raises(GateError):
        compare_worker.time_shape(TINY, 0.01, check=True)


def test_a_stop_ends_what_a_build_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that starts another one: both hold the pipe, which ends when neither is left."""

    class Stop(BaseException):
        pass

    inner = "import time; print('started', flush=True); time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    pipes = []

    def stop(process: subprocess.Popen[str], *_: object) -> None:
        assert process.stdout is not None
        pipes.append(process.stdout)
        assert process.stdout.readline() == "started\n"
        raise Stop

    monkeypatch.setattr(subprocess.Popen, "communicate", stop)
    monkeypatch.setattr(subprocess.Popen, "__exit__", lambda process, *_: process.wait() and None)
    with pytest.raises(Stop):
        revisions._run_group([sys.executable, "-c", outer])
    assert pipes[0].read() == ""
