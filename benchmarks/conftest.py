"""The suites' options. `make bench` is quick; `pytest benchmarks --benchmark-only --full` has every length.

Figures to quote come from `python -m mixpol_models.bench`, whose rounds are interleaved: pytest-benchmark
times one form after the other, so whatever changes in between (clock, neighbours) is part of its ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mixpol_models.bench import machine_facts

QUICK, FULL = (50,), (10, 50, 200, 1000)
ROUNDS = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="benchmark every length, not only the quick one")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "length" in metafunc.fixturenames:
        lengths = FULL if metafunc.config.getoption("--full") else QUICK
        metafunc.parametrize("length", lengths, scope="module", ids=lambda length: f"L{length}")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["node"] = ""
    machine_info["mixpol"] = machine_facts()


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., None]:
    """Times `call` after `prepare`, which is outside of the timed part."""

    def measure(group: str, call: Callable[[], object], prepare: Callable[[], None]) -> None:
        benchmark.group = group
        benchmark.pedantic(call, setup=prepare, rounds=ROUNDS, iterations=1, warmup_rounds=2)
        prepare()

    return measure
