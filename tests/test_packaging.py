"""Installing from sources: what to compile against is found, or the line that mends it is said."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT

PACKAGING = ROOT / "csrc" / "packaging"
MEND = 'pip install "torch>=2.10" scikit-build-core cmake ninja && pip install --no-build-isolation .'


def torch_in(folder: Path, version: str) -> Path:
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "version.py").write_text(f"__version__ = '{version}'\ncuda = None\n", encoding="utf-8")
    return folder / "torch"


def find(monkeypatch: pytest.MonkeyPatch, environment: Path) -> None:
    """Runs the finder as pip's isolated build does: torch is in the environment's folder and not importable."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(environment))
    monkeypatch.setattr("site.getsitepackages", list)
    monkeypatch.setattr("site.ENABLE_USER_SITE", False)
    runpy.run_path(str(PACKAGING / "find_torch.py"), run_name="__main__")


def test_torch_of_the_environment_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = torch_in(tmp_path, "2.13.0+cpu")
    find(monkeypatch, tmp_path)
    assert capsys.readouterr().out == f"{folder}\n"


def test_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no torch was found") as error:
        find(monkeypatch, tmp_path)
    assert MEND in str(error.value)


def test_torch_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_in(tmp_path, "2.9.1")
    with pytest.raises(SystemExit, match=r"torch 2\.9 is installed.*>= 2\.10") as error:
        find(monkeypatch, tmp_path)
    assert MEND in str(error.value)


def test_backend_without_scikit_build_core() -> None:
    run = subprocess.run(
        [sys.executable, "-S", "-c", "import backend"], cwd=PACKAGING, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "needs scikit_build_core, which is not installed" in run.stderr
    assert MEND in run.stderr


def test_readme_has_the_line() -> None:
    assert f"\n{MEND}\n" in (ROOT / "README.md").read_text("utf-8")
