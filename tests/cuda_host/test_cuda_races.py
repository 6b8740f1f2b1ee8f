"""ThreadSanitizer on a small case: no races as the kernels are, and one for every barrier that is left out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from emulation import ROOT, build

FUSED = ("fusion.cuh",)
FILES = {"attention": ("attention.cuh", *FUSED), "fusion": ("polarity_fusion.cuh", *FUSED)}


def barriers(kernel: str) -> list[str]:
    """Every barrier that a kernel may meet, as "file.cuh:line"."""
    return [
        f"{name}:{number}"
        for name in FILES[kernel]
        for number, line in enumerate((ROOT / "csrc" / "cuda" / name).read_text().splitlines(), 1)
        if "__syncthreads();" in line
    ]


@pytest.fixture(scope="module")
def program() -> Path:
    return build("races.cpp", "tsan")


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Without randomised addresses: ThreadSanitizer does not take every layout of memory.
    command = ["setarch", "-R", str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("tables", ["resident", "rebuilt"])
@pytest.mark.parametrize("kernel", FILES)
def test_no_races(kernel: str, tables: str, program: Path) -> None:
    result = run(program, kernel, tables)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("kernel", "barrier"), [(k, b) for k in FILES for b in barriers(k)])
def test_a_missing_barrier_is_found(kernel: str, barrier: str, program: Path) -> None:
    """With tables that stay or that are rebuilt: between barriers of the rebuilding, some others are not needed."""
    results = [run(program, kernel, tables, barrier) for tables in ("resident", "rebuilt")]
    assert all(result.returncode in (0, 66) for result in results), [result.stderr for result in results]
    assert any("WARNING: ThreadSanitizer: data race" in result.stderr for result in results)
