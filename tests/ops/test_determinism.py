"""Contract 4: the same inputs give the same bits, for any number of threads."""

from __future__ import annotations

import pytest
import torch

from mixpol_kernels.testing.inputs import OPS, Case, Config, make
from mixpol_kernels.testing.layouts import Placement

UNITS = ("target_attention", "mixed_polarity_attention")
# Large enough that the work is split, with few items so that table rows are hit from everywhere.
LARGE = {"batch": 70, "length": 60, "items": 11}
VARIANTS = [
    Config(op="polarity_embedding", layout="lengths", width=24, **LARGE),
    Config(op="polarity_embedding", width=64, sparse=True, **LARGE),
    Config(op="polarity_fusion", width=40, **LARGE),
    Config(op="polarity_fusion", fusion="bias", layout="mask_holes", **LARGE),
    Config(op="polarity_embedding", layout="lengths", width=24, n_extra=9, **LARGE),
    Config(op="polarity_fusion", width=40, gate_inputs="full", n_extra=9, **LARGE),
    Config(hidden=(64,), width=40, gate_inputs="full", n_extra=9, candidates=2, **LARGE),
    Config(fusion="bias", width=4, n_extra=700_000, **LARGE),  # fewer blocks, since each sums the whole table
    *[Config(op=op, hidden=(64,), width=16, **LARGE) for op in UNITS],
    *[Config(op=op, hidden=(80, 40), activation="silu", normalize="softmax", **LARGE) for op in UNITS],
    *[Config(op=op, hidden=(36,), activation="prelu", candidates=3, layout="lengths", **LARGE) for op in UNITS],
    *[Config(op=op, hidden=(36,), counts=(3, 5000, 0, 2), activation="sigmoid") for op in UNITS],
    # One user's candidates are shared out in the forward.
    *[Config(op=op, hidden=(36,), counts=(0, 300), candidates=50, normalize="softmax") for op in UNITS],
    Config(op="target_attention", hidden=(24, 8), counts=(70,), candidates=50, layout="mask_holes"),
]
IDS = [f"{i}-{c.op}-{c.layout}" for i, c in enumerate(VARIANTS)]


def assert_same_bits(case: Case, where: Placement, threads: tuple[int, ...]) -> None:
    __tracebackhide__ = True
    torch.set_num_threads(1)
    expected = case.run("cpu", where)
    for number in threads:
        torch.set_num_threads(number)
        for name, value in case.run("cpu", where).items():
            assert torch.equal(value, expected[name]), (
                f"{name} with {number} threads differs from 1 thread by {(value - expected[name]).abs().max():.1e}"
            )


@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
def test_any_number_of_threads(config: Config, generator: torch.Generator) -> None:
    case = make(config, generator)
    assert_same_bits(case, case.place(generator), (1, 2, 2, 2, 3))


@pytest.mark.parametrize("op", OPS)
def test_under_deterministic_algorithms(op: str, generator: torch.Generator) -> None:
    """The flag of PyTorch changes nothing and raises nothing."""
    case = make(Config(op=op, normalize="softmax"), generator)
    where = case.place(generator)
    expected = case.run("cpu", where)
    torch.use_deterministic_algorithms(True)
    try:
        got = case.run("cpu", where)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
