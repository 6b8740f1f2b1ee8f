"""The examples run: same losses with and without the fused layers."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {
    "fuxictr_din.py": "fuxictr",
    "deepctr_torch_din.py": "deepctr_torch",
    "recbole_din.py": "recbole",
    "torch_rechub_din.py": "torch_rechub",
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs an example as a program in a folder of its own, and returns what it prints. In this process, which has
    imported the frameworks: that takes most of the time of another one."""

    def program(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return program


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*NEEDS, "compare.py", "fuxictr_polarity.py"}


@pytest.mark.parametrize("name", NEEDS)
def test_example(name: str, run: Callable[..., str]) -> None:
    pytest.importorskip(NEEDS[name])
    short = ["--steps", "3", "--batch", "32", *(["--vocabulary", "1000"] if name == "fuxictr_din.py" else [])]
    said = run(name, *short)
    assert "1 replaced, 0 left as they were" in said
    assert re.search(r"[\d.]+ times as fast", said)


def test_polarity_example(run: Callable[..., str]) -> None:
    pytest.importorskip("fuxictr")
    said = run("fuxictr_polarity.py")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", said)]
    assert losses[-1] < 0.7 * losses[0], said
