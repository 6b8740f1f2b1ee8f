"""One compiled file for every torch from 2.10 on: it needs the stable ABI only; the wheel runs under other releases.

The second part sets up environments of its own, gigabytes each, and installs the wheel there, so only when asked:
`make test-abi TORCH="2.10.0 2.14.1"`, with INDEX=https://download.pytorch.org/whl/cpu for the small CPU builds.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from wheels import build, output, quick_start

import mixpol_kernels
from mixpol_kernels.library import library

ROOT = Path(mixpol_kernels.__file__).parents[1]
VERSIONS = os.environ.get("MIXPOL_ABI_TORCH", "").split()
INDEX = os.environ.get("MIXPOL_ABI_INDEX")


def files() -> list[Path]:
    """The kernels, and the schemas for programs without Python."""
    assert library.path is not None
    return [library.path, library.path.parent / "lib" / "libmixpol.so"]


@pytest.fixture(scope="module")
def stable_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The C functions that the headers offer to a library for 2.10."""
    target = re.search(r"TORCH_TARGET_VERSION=(\w+)", (ROOT / "CMakeLists.txt").read_text())
    assert target
    source = tmp_path_factory.mktemp("abi") / "names.cpp"
    headers = ("torch/csrc/inductor/aoti_torch/c/shim.h", "torch/csrc/stable/c/shim.h")
    source.write_text("".join(f"#include <{header}>\n" for header in headers))
    include = Path(torch.__file__).parent / "include"
    compiler = os.environ.get("CXX", "c++")
    text = output(compiler, "-std=c++20", "-E", f"-DTORCH_TARGET_VERSION={target[1]}", f"-I{include}", source)
    names = set(re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", text))
    assert "torch_library_impl" in names
    assert "torch_library_set_python_module" not in names, "that one came with 2.13"
    return names


@pytest.mark.parametrize("which", [0, 1], ids=["_C.so", "libmixpol.so"])
def test_only_the_stable_abi_is_used(which: int, stable_names: set[str]) -> None:
    """No C++ symbol of torch, and no C function that 2.10 lacks."""
    nm = shutil.which("nm")
    assert nm, "binutils are part of the toolchain"
    wanted = {
        line.split()[-1].partition("@")[0] for line in output(nm, "-D", "--undefined-only", files()[which]).splitlines()
    }
    torch_names = {name for name in wanted if re.search(r"torch|aoti|c10|_ZNK?2at", name)}
    assert torch_names, "it registers something"
    assert torch_names <= stable_names, sorted(torch_names - stable_names)


def environment(version: str) -> Path:
    """The interpreter of build/abi/<version>, set up on first use."""
    folder = ROOT / "build" / "abi" / version
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        output(sys.executable, "-m", "venv", "--clear", folder)
        index = ["--index-url", INDEX] if INDEX else []
        output(python, "-m", "pip", "install", "--quiet", *index, f"torch=={version}")
        output(python, "-m", "pip", "install", "--quiet", "numpy")
        (folder / "ready").touch()
    return python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel") / "dist", "--wheel")


@pytest.mark.slow
@pytest.mark.skipif(not VERSIONS, reason="needs environments of its own: make test-abi")
@pytest.mark.parametrize("version", VERSIONS)
def test_other_release(version: str, wheel: Path, tmp_path: Path) -> None:
    """The wheel built here runs the quick start there, without a compiler, and its ops give the same bits."""
    python = environment(version)
    output(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel)
    found = output(python, "-c", "import torch; print(torch.__version__)")
    assert found.startswith(version)
    quick_start(python, tmp_path, backend="cpu")
    check = ("-m", "mixpol_kernels.testing.selfcheck", "--seed", "11", "--cases", "12")
    here = re.search(r"digest \w+", output(sys.executable, *check))
    there = re.search(r"digest \w+", output(python, *check, cwd=tmp_path, PATH=str(tmp_path)))
    assert here
    assert there
    assert there[0] == here[0]
    # The schemas for programs without Python, in a process where nothing else declares them.
    code = (
        "import importlib.util as u, torch; (folder,) = u.find_spec('mixpol_kernels').submodule_search_locations; "
        "torch.ops.load_library(f'{folder}/lib/libmixpol.so'); "
        "print(torch.ops.mixpol.target_attention_fwd.default._schema)"
    )
    assert output(python, "-c", code, cwd=tmp_path).startswith("mixpol::target_attention_fwd(Tensor target")
