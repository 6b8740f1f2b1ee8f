"""The examples run: same losses with and without the fused layers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {
    "fuxictr_din.py": "fuxictr",
    "deepctr_torch_din.py": "deepctr_torch",
    "recbole_din.py": "recbole",
    "torch_rechub_din.py": "torch_rechub",
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*NEEDS, "compare.py", "fuxictr_polarity.py"}


@pytest.mark.parametrize("name", NEEDS)
def test_example(name: str, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS[name])
    short = ["--steps", "3", "--batch", "32", *(["--vocabulary", "1000"] if name == "fuxictr_din.py" else [])]
    run = subprocess.run([sys.executable, str(EXAMPLES / name), *short], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "1 replaced, 0 left as they were" in run.stdout
    assert re.search(r"[\d.]+ times as fast", run.stdout)


def test_polarity_example(tmp_path: Path) -> None:
    pytest.importorskip("fuxictr")
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "fuxictr_polarity.py")], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", run.stdout)]
    assert losses[-1] < 0.7 * losses[0], run.stdout
