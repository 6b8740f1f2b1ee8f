"""The instruction sets below the one that the other tests run at: one helper process for each makes all checks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mixpol_kernels.library import ISA_LEVELS, library


def best_level() -> str:
    """The widest instruction set of this CPU, as PyTorch sees it."""
    if torch.cpu._is_avx512_bf16_supported():
        return "avx512_bf16"
    return {"AVX2": "avx2", "AVX512": "avx512"}.get(torch.backends.cpu.get_cpu_capability(), "base")


pytestmark = pytest.mark.slow


def holds(generator: torch.Generator, checks: str, isa: str, **environment: str) -> None:
    """Runs levels.py; it has to run at `isa`."""
    __tracebackhide__ = True
    seed = int(torch.randint(2**31, (), generator=generator))
    command = [sys.executable, str(Path(__file__).with_name("levels.py")), str(seed), "--checks", checks]
    run = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.match(rf"isa {isa}\n", run.stdout), run.stdout
    assert run.stdout.endswith("\n0 failed\n"), run.stdout


def test_isa() -> None:
    assert library.isa() == os.environ.get("MIXPOL_CPU_ISA", best_level())


@pytest.mark.parametrize("level", ISA_LEVELS)
def test_every_level(level: str, generator: torch.Generator) -> None:
    """MIXPOL_CPU_ISA lowers the level, never raises it; each one computes the same within the error budget.

    Lower ones, and the lowest of a CPU that has no lower one, are looked at in full; the best is that of this process.
    """
    best = ISA_LEVELS.index(best_level())
    lower = ISA_LEVELS.index(level) < best or level == ISA_LEVELS[0]
    holds(generator, "level" if lower else "few", min(level, best_level(), key=ISA_LEVELS.index), MIXPOL_CPU_ISA=level)


def test_emulated_pairs(generator: torch.Generator) -> None:
    """What bfloat16 promises where it is multiplied in pairs (cpu/kernels/pairs.h), on a CPU that may lack them."""
    isa = min("avx2", best_level(), key=ISA_LEVELS.index)  # no higher: on ARM the base
    holds(generator, "pairs", isa, MIXPOL_CPU_ISA=isa, MIXPOL_EMULATE_BF16="1")
