"""Builds what is released, and installs it where there is nothing else: for `test_wheels.py` and `test_abi.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch
from pages import ROOT, python

PURE = "--config-setting=wheel.cmake=false"


def output(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """What a command prints; AssertionError with all of it if it fails."""
    words = [str(word) for word in command]
    run = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, **environment})
    assert run.returncode == 0, f"{' '.join(words)}\n{run.stdout}{run.stderr}"
    return run.stdout


def build(folder: Path, *options: str, source: Path = ROOT) -> Path:
    """Builds into an empty folder: one file. A compiled wheel is packed from build/Release, as far as that is built."""
    tools = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    output(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, *options, source, PATH=tools)
    (built,) = folder.iterdir()
    return built


def installed(wheel: Path, folder: Path) -> Path:
    """The interpreter of a fresh environment with this wheel; torch and numpy are those of this process."""
    output(sys.executable, "-m", "venv", "--without-pip", folder)
    interpreter = folder / "bin" / "python"
    output(sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet", "--no-deps", "--no-index", wheel)
    site = output(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "shared.pth").write_text(f"{Path(torch.__file__).parents[1]}\n", encoding="utf-8")
    return interpreter


def quick_start(interpreter: Path, folder: Path, backend: str) -> str:
    """Runs docs/quickstart.md there, with no compiler or anything else on the path, and returns what it prints.

    Ends with the report of mixpol_kernels.info. `backend` is what has to run.
    """
    program, empty = folder / "quickstart.py", folder / "empty"
    empty.mkdir()
    checks = f"""
import mixpol_kernels, sys
assert mixpol_kernels.__file__.startswith(sys.prefix), mixpol_kernels.__file__
assert explain(attention, target, history, lengths=lengths).backend == {backend!r}
from mixpol_kernels.info import report
print(report())
"""
    program.write_text("".join(block.text for block in python(ROOT / "docs" / "quickstart.md")) + checks, "utf-8")
    return output(interpreter, "-I", program, cwd=empty, PATH=str(empty))
