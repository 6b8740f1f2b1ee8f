"""The ops themselves in every layout, dtype and backend, each result within the error budget before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mixpol_kernels
from mixpol_kernels.backend import STORED
from mixpol_kernels.testing.budget import over_budget
from mixpol_kernels.testing.inputs import OPS, Case, Config, make
from mixpol_kernels.testing.layouts import Placement

BACKENDS = ("cpu", "reference")
LAYOUTS = ("jagged", "lengths", "mask_left", "full")
# Kept tokens: few enough that draws exist which keep every rectifier away from its kink.
TOKENS = 4000


@pytest.fixture(scope="module", params=OPS)
def op(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=STORED, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def drawn(op: str, length: int, dtype: torch.dtype, layout: str) -> tuple[Case, Placement]:
    if dtype is not torch.float32 and op in ("polarity_embedding", "polarity_fusion"):
        pytest.skip(f"{op} takes float32 only")
    generator = torch.Generator().manual_seed(0)
    config = Config(op, layout, batch=max(2, TOKENS // length), length=length, width=64, hidden=(64,), items=10_000)
    case = make(config, generator, dtype)
    return case, case.place(generator)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
def test_op(
    measure: Callable[..., None],
    drawn: tuple[Case, Placement],
    dtype: torch.dtype,
    backend: str,
    direction: str,
) -> None:
    case, where = drawn
    if backend != "reference":
        faults = over_budget(case, where, torch.Generator().manual_seed(0), backend=backend, dtype=dtype)
        assert not faults, faults
    arguments = case.arguments(where, dtype, requires_grad=direction != "forward")
    upstream = case.grad_out.to(dtype)
    if not case.config.has_unit:
        upstream = where.spread(upstream)

    def step() -> Any:
        out = case.call(arguments, backend)
        if direction != "forward":
            out.backward(upstream)
        return out

    def clear() -> None:
        for value in arguments.values():
            for leaf in value if isinstance(value, list) else [value]:
                if isinstance(leaf, torch.Tensor):
                    leaf.grad = None

    name = f"{case.config.op}, {direction}, B={len(case.counts)} L={case.config.length} D=64"
    measure(name, step, clear, tokens=sum(case.counts), version=mixpol_kernels.__version__)
