"""The suites' options. `make bench` is quick; `pytest benchmarks --benchmark-only --full` has every shape.

Figures to quote come from `mixpol bench`, whose rounds are interleaved: pytest-benchmark times one form after the
other, so whatever changes in between (clock, neighbours) is part of its ratios.
"""

from __future__ import annotations

from mixpol_models.environment import prepare

prepare()  # before torch is imported

from collections.abc import Callable
from typing import Any

import pytest

from mixpol_models.bench import machine_facts
from mixpol_models.bench.shapes import SHAPES, Shape, main_shapes

QUICK = [*main_shapes((50,)), SHAPES["polarity embedding, L=200"], SHAPES["TAPF alone, L=200"]]
LENGTHS, ALL_LENGTHS = (50,), (50, 200, 1000, 10_000)
ROUNDS = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="benchmark every shape, not only a few")


def shapes(config: pytest.Config) -> list[Shape]:
    """Those of this run; `interleave` has a suite of its own."""
    chosen = list(SHAPES.values()) if config.getoption("--full") else QUICK
    return [shape for shape in chosen if shape.op != "interleave"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "length" in metafunc.fixturenames:
        lengths = ALL_LENGTHS if metafunc.config.getoption("--full") else LENGTHS
        metafunc.parametrize("length", lengths, scope="module", ids=lambda length: f"L{length}")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["node"] = ""
    machine_info["mixpol"] = machine_facts()


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., None]:
    """Times `call` after `prepare`, which is outside of the timed part."""

    def measure(group: str, call: Callable[[], object], prepare: Callable[[], None], **facts: Any) -> None:
        benchmark.group = group
        benchmark.extra_info.update(facts)
        benchmark.pedantic(call, setup=prepare, rounds=ROUNDS, iterations=1, warmup_rounds=2)
        prepare()

    return measure
