"""The runner behind `make test-mutants`, on a toy; and that every fault still fits the sources."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "mutants"))

from faults import FAULTS  # noqa: E402
from runner import Fault, main  # noqa: E402

SOURCE = '''"""A toy."""


def clip(x, low, high):
    if low > high:
        raise ValueError("low is above high")
    return max(low, min(x, high))
'''
TESTS = """
import sys
import subprocess
import pytest
from mixpol_kernels import clip

def test_clip():
    assert clip(5, 0, 3) == 3

def test_child_process_sees_the_copy():
    code = "from mixpol_kernels import clip; assert clip(-5, 0, 3) == 0, 'low'"
    subprocess.run([sys.executable, "-c", code], check=True)

@pytest.fixture
def clipped():
    return clip(2, 0, 3)

def test_fixture(clipped):
    assert clipped == 2
"""
TOP = Fault("top", "mixpol_kernels/__init__.py", "min(x, high)", "min(x, high + 1)", ("test_toy.py",), "test_clip")
LOW = Fault("low", "mixpol_kernels/__init__.py", "max(low,", "max(-9,", ("test_toy.py",), "child")
UNSEEN = Fault("unseen", "mixpol_kernels/__init__.py", "low > high", "low >= high", ("test_toy.py",), "test_clip")
MISSING = Fault("missing", "mixpol_kernels/__init__.py", "median(x)", "x", ("test_toy.py",))
TWICE = Fault("twice", "mixpol_kernels/__init__.py", "x", "y", ("test_toy.py",))
SYNTAX = Fault("syntax", "mixpol_kernels/__init__.py", "return max", "return return max", ("test_toy.py",))
SETUP = Fault("setup", "mixpol_kernels/__init__.py", "max(low", "max(None", ("test_toy.py",), "test_fixture")
UNTESTED = Fault("untested", "mixpol_kernels/__init__.py", "min(x, high)", "high", ("test_toy.py",), "no_such_test")


@pytest.fixture(autouse=True)
def _without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's tests start in half the time."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    (root / "mixpol_kernels").mkdir()
    (root / "mixpol_kernels" / "__init__.py").write_text(SOURCE)
    (root / "test_toy.py").write_text(TESTS)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", root, *command], check=True)
    return root


def run(toy: Path, capsys: pytest.CaptureFixture[str], *faults: Fault) -> tuple[int, list[str]]:
    """Exit status and table."""
    status = main(toy, faults, ["--jobs", "1"])
    assert (toy / "mixpol_kernels" / "__init__.py").read_text() == SOURCE
    return status, capsys.readouterr().out.split("\n\n", 1)[1].splitlines()


def test_outcomes(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Caught in the process of the test and in a child of it; unnoticed; does not fit, import, set up or select."""
    faults = TOP, LOW, UNSEEN, MISSING, TWICE, SYNTAX, SETUP, UNTESTED
    status, table = run(toy, capsys, *faults)
    assert status == 1
    assert table[-1] == "2 of 8 faults caught"
    expected = (
        ("caught", "test_toy.py::test_clip"),
        ("caught", "test_toy.py::test_child_process_sees_the_copy"),
        ("NOT CAUGHT", "1 tests"),
        ("broken", "its text occurs 0 times in mixpol_kernels/__init__.py, expected once"),
        ("broken", "its text occurs 3 times in mixpol_kernels/__init__.py, expected once"),
        ("broken", "collecting test_toy.py"),
        ("broken", "setup of test_toy.py::test_fixture"),
        ("broken", "without the fault: broken, no test ran"),
    )
    for i, (fault, (word, text)) in enumerate(zip(faults, expected, strict=True)):
        assert table[2 * i].startswith(word), table[2 * i]
        assert table[2 * i].endswith(f": {fault.name}")
        assert text in table[2 * i + 1]


def test_all_caught(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, table = run(toy, capsys, TOP)
    assert status == 0, table
    assert table[-1] == "1 of 1 faults caught"


def test_tests_that_fail_without_a_fault(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy / "test_toy.py").write_text(TESTS + "\ndef test_wrong():\n    assert False\n")
    try:
        fault = Fault("top", TOP.file, TOP.old, TOP.new, ("test_toy.py",))
        status, table = run(toy, capsys, fault)
    finally:
        (toy / "test_toy.py").write_text(TESTS)
    assert status == 1
    assert "without the fault: caught, test_toy.py::test_wrong" in table[1]


def test_arguments(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--only", "nothing"], "--only was 'nothing', which no fault's name or file matches"),
        (["--jobs", "0"], "--jobs was 0; expected 1 or more"),
    ):
        with pytest.raises(SystemExit):
            main(toy, [TOP], arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(toy, [TOP, TOP], [])
    assert "faults have one name: top" in capsys.readouterr().err


def test_the_list_fits_the_sources() -> None:
    """So that a change of a kernel keeps the list alive; whether each is caught is for `make test-mutants`."""
    misfits = {fault.name: fault.misfit(ROOT) for fault in FAULTS}
    assert not {name: why for name, why in misfits.items() if why}
    assert len(FAULTS) >= 48
    assert max(Counter(fault.name for fault in FAULTS).values()) == 1
