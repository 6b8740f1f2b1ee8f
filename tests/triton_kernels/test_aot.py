"""What the compiler makes of the kernels for GPUs that are not here: benchmarks/gpu_compile.py, a sample again."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mixpol_kernels.ops.dot_target_attention.triton import configs as dot
from mixpol_kernels.ops.polarity_fusion.triton import configs as fusion
from mixpol_kernels.ops.target_attention.triton import configs as attention
from mixpol_kernels.ops.triton import devices

ROOT = Path(__file__).parent.parent.parent


def _load() -> ModuleType:
    import sys

    spec = importlib.util.spec_from_file_location("gpu_compile", ROOT / "benchmarks" / "gpu_compile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_compile"] = module
    sys.path.append(str(ROOT / "benchmarks"))
    spec.loader.exec_module(module)
    return module


gpu_compile = _load()
gpu_kernels = importlib.import_module("gpu_kernels")
gpu_staged = importlib.import_module("gpu_staged")


def test_every_architecture_is_shipped() -> None:
    for architecture in gpu_compile.ARCHITECTURES:
        for element in gpu_compile.elements(architecture, "target_attention"):
            assert (64, (64,)) in attention.served(architecture, element, 1)
        for element in devices.ELEMENTS[:2]:
            assert 64 in fusion.served(architecture, element)
        assert architecture == "gfx942" or "forward/tf32x3/64" in devices.shipped(fusion.FOLDER, architecture)
        for element in gpu_compile.elements(architecture, "dot_target_attention"):
            assert 64 in dot.served(architecture, element)


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [False, True])
def test_a_sample_passes_the_gate(drawn: bool, source: random.Random) -> None:
    """No spills, shared memory within the chip, matrix instructions where planned, 16-byte loads.

    The plainest and the most demanding variant of each for sm_90, and the latter for an architecture that the seed
    draws; GPU_COMPILE.md, which a test below checks, has all.
    """
    architecture = source.choice(["sm_80", "sm_100", "gfx942"]) if drawn else "sm_90"
    both = [job for op in gpu_compile.FOLDERS for job in gpu_compile.shipped_jobs(architecture, op)]
    names = [list(variants) for variants in gpu_compile.VARIANTS.values()]
    ends = {variants[at] for variants in names for at in ((-1,) if drawn else (0, -1))}
    both = [job for job in both if job.variant in ends]
    jobs = [job for job in both if job.element == "half" and job.width == 64 and job.units in ((), (64,))]
    assert len(jobs) == (6 if drawn else 12), "three ops, two directions, one variant or two"
    for job, found in gpu_compile.run([*jobs, *gpu_compile.small_jobs(architecture)]):
        assert not gpu_compile.failures(job, found), (job, found)
        assert found["registers"] > 0
        assert found["matrix"] or job.op == "small"


@pytest.mark.slow
@pytest.mark.parametrize("element", ["half", "float32"])
def test_several_candidates_compile(element: str) -> None:
    """The form for M candidates, whose gradients are added up in float32, with one, two and three hidden layers."""
    jobs = [
        dataclasses.replace(job, variant=gpu_kernels.CANDIDATES_OF_ONE_HISTORY)
        for job in gpu_compile.shipped_jobs("sm_90")
        if job.element == element and job.width == 64 and max(job.units) == 64 and job.variant.startswith("relu")
    ]
    assert {(job.direction, len(job.units)) for job in jobs} >= {("forward", 1), ("backward", 1), ("forward", 2)}
    for job, found in gpu_compile.run(jobs):
        assert "error" not in found, (job, found)


def test_the_gate_can_fail() -> None:
    """One warp for a tile of 64 spills; and each condition is looked at."""
    (job,) = [
        j for j in gpu_compile.shipped_jobs("sm_90")
        if (j.direction, j.element, j.units) == ("backward", "half", (64,)) and j.variant.startswith("relu")
    ]  # fmt: skip
    crowded = dataclasses.replace(job, config=devices.Config(tile=64, warps=1, stages=1))
    ((_, found),) = gpu_compile.run([crowded])
    assert any("spilled" in line for line in gpu_compile.failures(crowded, found))
    good: dict[str, Any] = {"spills": 0, "shared": 1024, "matrix": ["wgmma"], "widest": 16, "registers": 128}
    assert not gpu_compile.failures(job, good)
    for bad in ({"spills": 8}, {"shared": 300_000}, {"matrix": []}, {"widest": 8}, {"error": "died"}):
        assert len(gpu_compile.failures(job, good | bad)) == 1


def test_the_table_is_of_these_sources() -> None:
    """Of every shipped configuration in every variant, and nothing in it fails."""
    text = gpu_compile.REPORT.read_text()
    assert all(line in text for line in gpu_compile.sources()), "run `make gpu-compile`"
    assert "fails" not in text
    rows = re.findall(r"^\| (?:forward|backward|either) .*$", text, flags=re.MULTILINE)
    assert len(rows) == sum(
        len([*gpu_compile.small_jobs(architecture)])
        + sum(len([*gpu_compile.shipped_jobs(architecture, op)]) for op in gpu_compile.FOLDERS)
        for architecture in gpu_compile.ARCHITECTURES
    )


@pytest.mark.slow
def test_staged_kernels_pass_their_gate() -> None:
    """Of one unit that has all forms, what the launchers ask for on sm_90."""
    found = list(gpu_staged.run("sm_90", [gpu_staged.UNITS[0]]))
    assert {facts["kernel"] for facts in found} >= {"layer_kernel", "across_backward_kernel", "merge_statistics"}
    for facts in found:
        assert not gpu_staged.failures("sm_90", facts), facts
    assert gpu_staged.failures("sm_90", {"spills": 24, "shared": 1024})
    assert gpu_staged.failures("sm_90", {"spills": 0, "shared": 120_000})


def test_the_staged_table_is_of_these_sources() -> None:
    text = gpu_staged.REPORT.read_text()
    assert f"`{gpu_staged.digest()}`" in text, "run `make gpu-compile`"
    assert "fails" not in text
    assert all(f"## {architecture}" in text for architecture in gpu_staged.ARCHITECTURES)
