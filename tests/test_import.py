"""Import hygiene, in fresh interpreters: quiet, light, and possible without the library."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mixpol_kernels

PACKAGE = Path(mixpol_kernels.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in SOURCES]


def python(code: str, *flags: str, **environment: str) -> str:
    """Runs code in a fresh interpreter and returns what it printed, errors included."""
    run = subprocess.run(
        [sys.executable, *flags, "-c", code],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.mark.parametrize("skip", ["0", "1"])
def test_import_is_quiet_and_light(skip: str) -> None:
    """Nothing printed, no warning, no compiler, no GPU, no triton, none of the packages that use this one."""
    code = """
import sys, torch
before = set(sys.modules)
import mixpol_kernels, mixpol_kernels.nn
for name in ("triton", "torch._dynamo", "torch._inductor", "mixpol_models", "lightning", "pytest", "hypothesis"):
    assert name in before or name not in sys.modules, name
assert not torch.cuda.is_initialized()
assert "mixpol_models" not in sys.modules and "triton" not in sys.modules
"""
    assert python(code, "-W", "error", MIXPOL_SKIP_EXT=skip) == ""


def test_works_without_the_library() -> None:
    """The references run, "auto" says once why it takes them, and "cpu" refuses with the reason."""
    code = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
import torch, mixpol_kernels as mk
from mixpol_kernels.library import library
assert not library.loaded and library.isa() == "none"
layer = mk.nn.MixedPolarityAttention(50, 8, [16])
ids, polarity, offsets = torch.tensor([3, 1, 2]), torch.tensor([1, 0, 0]), torch.tensor([0, 2, 3])
for _ in range(2):
    layer(torch.tensor([7, 9]), ids, polarity, offsets=offsets).sum().backward()
layer.backend = "cpu"
try:
    layer(torch.tensor([7, 9]), ids, polarity, offsets=offsets)
except ValueError as error:
    print("refused:", error)
"""
    log, refused = python(code, MIXPOL_SKIP_EXT="1").splitlines()
    assert log.startswith("mixpol_kernels WARNING mixed_polarity_attention: using the PyTorch reference")
    assert "MIXPOL_SKIP_EXT=1" in log
    assert refused.startswith("refused: mixed_polarity_attention: backend='cpu' was requested, but")
    assert "MIXPOL_SKIP_EXT=1" in refused


def test_works_without_triton_and_numpy_free_calls() -> None:
    """triton is not importable here, and nobody asks."""
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("triton", "mixpol_models"):
            raise AssertionError(name + " was imported")
sys.meta_path.insert(0, Block())
import torch, mixpol_kernels as mk
layer = mk.nn.TargetAttention(8, [16])
layer(torch.randn(2, 8), torch.randn(2, 5, 8)).sum().backward()
"""
    assert "was imported" not in python(code)


def test_testing_needs_no_test_framework() -> None:
    code = """
import sys
import mixpol_kernels.testing.budget, mixpol_kernels.testing.configurations
assert not {"pytest", "hypothesis", "_pytest"} & set(sys.modules)
"""
    assert python(code) == ""


def imported(path: Path) -> set[str]:
    """Modules that a source file imports, functions' bodies and `TYPE_CHECKING` blocks included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("name", NAMES)
def test_arrows_point_one_way(name: str) -> None:
    """models → nn → ops; references import torch and references only; nobody imports mixpol_models."""
    names = imported(PACKAGE / name)
    ours = {n for n in names if n.split(".")[0] == "mixpol_kernels"}
    assert not {n for n in names if n.split(".")[0] == "mixpol_models"}
    if Path(name).parent.name != "triton":  # nobody needs Triton but the kernels
        assert not {n for n in names if n.split(".")[0] == "triton"}
    if name.endswith("reference.py"):
        assert all(n.endswith(".reference") for n in ours)
        assert {n.split(".")[0] for n in names} <= {"__future__", "collections", "torch", "mixpol_kernels"}
    if not name.startswith(("nn", "__init__", "drop_in", "testing", "info")):
        assert not {n for n in ours if n.startswith("mixpol_kernels.nn")}
    if not name.startswith("testing"):
        assert not {n for n in ours if n.startswith("mixpol_kernels.testing")}


def test_public_names() -> None:
    """`__all__` is what the documentation promises, sorted, and all of it exists."""
    assert mixpol_kernels.__all__ == sorted(mixpol_kernels.__all__)
    assert {
        "explain", "mixed_polarity_attention", "nn", "polarity_embedding", "polarity_fusion", "target_attention",
    } <= set(mixpol_kernels.__all__)  # fmt: skip
    for module in (mixpol_kernels, mixpol_kernels.nn):
        for name in module.__all__:
            assert getattr(module, name).__doc__, name
