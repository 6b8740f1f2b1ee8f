"""The compiled library: found, loaded, its instruction sets apart (ops/test_levels.py: in agreement)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mixpol_kernels
from mixpol_kernels.library import ISA_LEVELS, CompiledLibrary, library

BUILD = Path(mixpol_kernels.__file__).parent.parent / "build" / "Release"


def selfcheck(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mixpol_kernels.testing.selfcheck", *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_is_loaded() -> None:
    """A machine that runs the tests has built the library: nothing here is skipped for its absence."""
    assert library.loaded, library.reason
    assert library.path is not None
    assert library.path.is_file()


def test_unknown_level() -> None:
    run = selfcheck(MIXPOL_CPU_ISA="sse9")
    assert run.returncode != 0
    assert "ValueError: MIXPOL_CPU_ISA was 'sse9'; expected one of base, avx2, avx512, avx512_bf16" in run.stderr


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normal: the reason says how to build it."""
    monkeypatch.setattr("mixpol_kernels.library._find", lambda: None)
    monkeypatch.delenv("MIXPOL_SKIP_EXT", raising=False)
    other = CompiledLibrary()
    other.load()
    assert not other.loaded
    assert "pip install --no-build-isolation -e ." in other.reason
    assert other.isa() == "none"


def test_broken_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Reported, not hidden: the reason names the file and how to rebuild it."""
    broken = tmp_path / "_C.so"
    broken.write_text("not a library")
    monkeypatch.setattr("mixpol_kernels.library._find", lambda: broken)
    monkeypatch.delenv("MIXPOL_SKIP_EXT", raising=False)
    other = CompiledLibrary()
    other.load()
    assert not other.loaded
    assert re.search(r"_C\.so does not load under torch.*--force-reinstall", other.reason)


@pytest.mark.parametrize(
    ("source", "pattern"),
    [
        ("", r"_C\.so is older than the package; rebuild"),
        ('"cpu_isa(int level) -> int\\n"', r"_C\.so was built for another signature of mixpol::cpu_isa.*rebuild"),
        ('"cpu_isa() -> int\\nan_op_of_tomorrow(Tensor x) -> Tensor\\n"', r"^$"),
    ],
    ids=["no signatures", "another signature", "the same"],
)
def test_outdated_library(source: str, pattern: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kernels that expect other arguments are never called: nothing rebuilds on import after an update."""
    code = f'extern "C" const char* mixpol_signatures() {{ return {source}; }}' if source else ""
    command = [os.environ.get("CXX", "c++"), "-shared", "-fPIC", "-x", "c++", "-", "-o", str(tmp_path / "_C.so")]
    subprocess.run(command, input=code, text=True, check=True)
    monkeypatch.setattr("mixpol_kernels.library._find", lambda: tmp_path / "_C.so")
    monkeypatch.delenv("MIXPOL_SKIP_EXT", raising=False)
    other = CompiledLibrary()
    other.load()
    assert re.search(pattern, other.reason)


def test_missing_cuda_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Normal beside a CPU build of torch; a broken one is reported, and the CPU kernels stay."""
    assert library.path is not None
    (tmp_path / "_C.so").symlink_to(library.path)
    monkeypatch.setattr("mixpol_kernels.library._find", lambda: tmp_path / "_C.so")
    monkeypatch.delenv("MIXPOL_SKIP_EXT", raising=False)
    other = CompiledLibrary()
    other.load()
    assert (other.loaded, other.cuda_loaded) == (True, False)
    assert other.cuda_reason.startswith("not built; that needs a CUDA build of torch, and nvcc")
    (tmp_path / "_cuda.so").write_text("no library")
    other.load()
    assert (other.loaded, other.cuda_loaded) == (True, False)
    assert re.search(r"_cuda\.so does not load under torch.*--force-reinstall", other.cuda_reason)


def objects() -> dict[str, list[Path]]:
    # "avx512_bf16" has the kernels of "avx512".
    return {level: sorted(BUILD.rglob(f"kernels_{level}.dir/**/*.o")) for level in ISA_LEVELS if level != "avx512_bf16"}


@pytest.mark.skipif(not BUILD.is_dir(), reason="no build folder beside the package (installed from a wheel)")
def test_no_weak_symbols() -> None:
    """A weak symbol of a wide build could replace the narrow one: older CPUs would die of it."""
    nm = shutil.which("nm")
    assert nm, "binutils are part of the toolchain"
    found = objects()
    assert all(found.values()), "objects of every level"
    assert len({tuple(path.name for path in paths) for paths in found.values()}) == 1
    for level, paths in found.items():
        for path in paths:
            listing = subprocess.run([nm, "-C", path], capture_output=True, text=True, check=True).stdout
            weak = [line for line in listing.splitlines() if re.search(r" [WVu] ", line)]
            assert not weak, f"{level}/{path.name}: {weak[:5]}"


@pytest.mark.skipif(not BUILD.is_dir(), reason="no build folder beside the package (installed from a wheel)")
def test_levels_define_different_symbols() -> None:
    """Each level has its own namespace: no symbol is defined twice."""
    nm = shutil.which("nm")
    assert nm
    defined: dict[str, str] = {}
    for level, paths in objects().items():
        for path in paths:
            listing = subprocess.run([nm, path], capture_output=True, text=True, check=True).stdout
            for line in listing.splitlines():
                if match := re.search(r" [TDBRVWu] (\S+)", line):
                    assert defined.setdefault(match[1], level) == level, match[1]
