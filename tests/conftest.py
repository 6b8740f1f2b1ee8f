"""A fresh seed for every run, shown on failure; MIXPOL_TEST_SEED=<n> repeats a run. One thread a process."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch and for child processes too: the cores are shared by several test processes, and OpenMP threads that
# outnumber them wait for one another in loops (small models then train up to ten times as long).
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Triton's interpreter is chosen when kernels are imported: its tests run when they are asked for by name.
INTERPRETED = Path(__file__).parent / "triton_kernels"
SEED = int(os.environ.get("MIXPOL_TEST_SEED") or random.SystemRandom().randrange(2**31))


def _seed_of(node: pytest.Item) -> int:
    # One seed per test, so that a test alone draws what it drew in the whole run.
    return SEED ^ zlib.crc32(node.name.encode())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = any(Path(argument.partition("::")[0]).resolve().is_relative_to(INTERPRETED) for argument in config.args)
    return True if collection_path == INTERPRETED and not asked else None


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(_seed_of(request.node))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tests of several threads set their number, and need not set it back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    """Random numbers of this test in this run."""
    return torch.Generator().manual_seed(_seed_of(request.node))


@pytest.fixture
def source(request: pytest.FixtureRequest) -> random.Random:
    """Random choices of this test in this run."""
    return random.Random(_seed_of(request.node))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        report.sections.append(("seed", f"MIXPOL_TEST_SEED={SEED} repeats the random inputs"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from mixpol_kernels.testing.budget import worst

    if worst:
        terminalreporter.section("largest share of the error budget used (1 is the limit)")
        for name, share in sorted(worst.items()):
            terminalreporter.line(f"{share:6.2f}  {name}")
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.line(f"random inputs: repeat with MIXPOL_TEST_SEED={SEED}")
