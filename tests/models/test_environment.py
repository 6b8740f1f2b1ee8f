"""How threads wait and in which pages memory comes: set by every command before torch is loaded, the user first."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixpol_models.environment import DEFAULTS, PAGES, POLICY, SPIN, unset

ROOT = Path(__file__).parents[2]
NAMES = (SPIN, POLICY, PAGES)


def python(*command: str, **environment: str) -> str:
    """What a fresh interpreter prints, errors included; of the variables it has only those given."""
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, *command],
        env=clean | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout
    return done.stdout


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, DEFAULTS),
        ({SPIN: "5"}, {PAGES: "1"}),
        ({SPIN: ""}, {PAGES: "1"}),
        ({POLICY: "active"}, {PAGES: "1"}),
        ({PAGES: "0"}, {SPIN: DEFAULTS[SPIN]}),
        ({POLICY: "passive", PAGES: "1"}, {}),
    ],
)
def test_what_the_user_has_set_stays(given: dict[str, str], expected: dict[str, str]) -> None:
    assert unset(given) == expected


def test_processes_inherit_it() -> None:
    code = """
import multiprocessing, os, subprocess, sys
from mixpol_models.environment import prepare
if __name__ == "__main__":
    assert prepare() == ""
    assert "torch" not in sys.modules
    child = "import os; print(os.environ['GOMP_SPINCOUNT'], os.environ['THP_MEM_ALLOC_ENABLE'])"
    subprocess.run([sys.executable, "-c", child], check=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(os.getenv, ("GOMP_SPINCOUNT",)))
    import torch
    assert prepare() == "", "all is set: nothing to say"
"""
    assert python("-c", code).split() == [DEFAULTS[SPIN], "1", DEFAULTS[SPIN]]


def test_too_late_is_said() -> None:
    code = "import torch; from mixpol_models.environment import prepare; assert prepare()"
    said = python("-c", code, THP_MEM_ALLOC_ENABLE="1")
    assert said == (
        f"{SPIN}={DEFAULTS[SPIN]} does not take effect in this process: torch is imported already; set it before\n"
    )


def test_the_command_sets_it_before_torch() -> None:
    code = """
import os, sys
from mixpol_models import cli
cli.app = lambda: print(os.environ["GOMP_SPINCOUNT"], os.environ["THP_MEM_ALLOC_ENABLE"], "torch" in sys.modules)
cli.main()
"""
    assert python("-c", code).split() == [DEFAULTS[SPIN], "1", "False"]


PROGRAMS = [
    *(ROOT / "benchmarks" / f"{name}.py" for name in ("conftest", "serving", "precision")),
    *(ROOT / "python" / "mixpol_models" / "bench" / f"{name}.py" for name in ("__main__", "growth")),
]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_programs_set_it_before_other_imports(path: Path) -> None:
    """Of what they import before, nothing may import torch."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Expr) and ast.unparse(node) == "prepare()":
            return
        if isinstance(node, ast.ImportFrom):
            assert node.module in ("__future__", "mixpol_models.environment"), f"{node.module} comes before prepare()"
        else:
            assert not isinstance(node, ast.Import), f"{ast.unparse(node)} comes before prepare()"
    pytest.fail("prepare() is not called")


def test_info_says_what_is_set_and_what_it_costs() -> None:
    bare = python("-m", "mixpol_kernels.info")
    assert "waiting     threads that wait keep their cores: beside another busy process" in bare
    assert f"{SPIN}={DEFAULTS[SPIN]}, set before torch is imported" in bare
    assert "pages       large tensors in small pages: long histories may train more slowly; " in bare
    ready = python("-m", "mixpol_kernels.info", **DEFAULTS)
    assert f"waiting     {SPIN}={DEFAULTS[SPIN]}\n" in ready
    assert f"pages       {PAGES}=1: large tensors in huge pages\n" in ready
    assert f"waiting     {POLICY}=passive\n" in python("-m", "mixpol_kernels.info", OMP_WAIT_POLICY="passive")
