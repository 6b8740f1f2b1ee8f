"""Every .cu compiles ahead of time, and the compiler made of it what was meant: see benchmarks/cuda_compile.py."""

from __future__ import annotations

import importlib.util
import random
import re
from pathlib import Path
from types import ModuleType

import pytest
from emulation import ROOT

PTX = """
.visible .entry _Z5wide1v(
)
{
	ld.global.nc.v4.f32 	{%f1, %f2, %f3, %f4}, [%rd1];
	ld.global.f32 	%f5, [%rd2];
}
.visible .entry _Z7narrow1v(
)
{
	ld.global.nc.b32 	%f1, [%rd1];
}
"""
LOG = """
ptxas info    : Compiling entry function '_Z5wide1v' for 'sm_90'
ptxas info    : Function properties for _Z5wide1v
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
ptxas info    : Compiling entry function '_Z7narrow1v' for 'sm_90'
ptxas info    : Function properties for _Z7narrow1v
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""


@pytest.fixture(scope="module")
def cuda_compile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_compile", ROOT / "benchmarks" / "cuda_compile.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def needs_nvcc(module: ModuleType) -> None:
    if module.nvcc() is None:
        pytest.skip("nvcc was not found (CUDA_HOME, PATH, /usr/local/cuda)")


def table_rows(module: ModuleType) -> list[tuple[str, str]]:
    """Kernel and cells."""
    return re.findall(r"^\| `(.+?)` \| (.+) \|$", Path(module.TABLE).read_text(), re.MULTILINE)


def test_the_gate_can_fail(cuda_compile: ModuleType) -> None:
    wide, narrow = cuda_compile.read(LOG, PTX, 90)
    assert (wide.load, wide.registers, wide.spills, wide.faults()) == (16, 40, 0, [])
    assert (narrow.load, narrow.stack, narrow.spills) == (4, 8, 16)
    assert len(narrow.faults()) == 2
    stream = cuda_compile.Compiled("attention_forward<relu, true>", 90, 130, 0, 0, 8)
    assert len(stream.faults()) == 2


def test_a_source_for_one_architecture(cuda_compile: ModuleType, source: random.Random) -> None:
    """Compiled now, launchers and all, without a warning, to the kernels of the table.

    Every run draws a source; the table, which has all of them, is held to their digest below.
    """
    needs_nvcc(cuda_compile)
    drawn = source.choice(cuda_compile.sources())
    compiled = cuda_compile.compile_one(drawn, (90,))
    assert compiled, drawn
    assert not [fault for c in compiled for fault in c.faults()], drawn
    assert {c.kernel for c in compiled} <= {name for name, _ in table_rows(cuda_compile)}, drawn


def test_the_table_is_of_these_sources(cuda_compile: ModuleType) -> None:
    """For every architecture, nothing that the gate refuses; a change of the sources asks for `make cuda-compile`."""
    text = Path(cuda_compile.TABLE).read_text()
    assert f"sources {cuda_compile.digest()}." in text, "older than csrc/cuda: run `make cuda-compile`"
    rows = table_rows(cuda_compile)
    kernels = {name for name, _ in rows}
    assert {"attention_forward<relu, true>", "attention_forward<dice, false>", "merge_events<double>"} <= kernels
    assert all(any(kernel.startswith(stream) for kernel in kernels) for stream in cuda_compile.STREAMS)
    for kernel, cells in rows:
        *registers, spills, stack, load = map(int, cells.split(" | "))
        assert len(registers) == len(cuda_compile.ARCHITECTURES)
        for architecture, count in zip(cuda_compile.ARCHITECTURES, registers, strict=True):
            assert not cuda_compile.Compiled(kernel, architecture, count, spills, stack, load).faults()
