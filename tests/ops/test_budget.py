"""Contract 1: the compiled kernels stay within a multiple of the rounding error of plain PyTorch."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from mixpol_kernels.library import library
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.configurations import drawn, grid, label
from mixpol_kernels.testing.inputs import OPS, Case, Config, make
from mixpol_kernels.testing.oracle import outputs

GRID = [config for op in OPS for config in grid(op)]
UNITS = ("target_attention", "mixed_polarity_attention")
EDGES: dict[str, dict[str, Any]] = {
    "no users": {"batch": 0},
    "one user": {"batch": 1},
    "one token": {"counts": (1,)},
    "all empty": {"counts": (0, 0, 0)},
    "no padding between": {"counts": (0, 0, 3, 0, 1)},
    "one very long row": {"counts": (2, 4000, 0, 1)},
    "many short rows": {"batch": 150, "length": 3},
    "one item": {"items": 1},
    "one polarity": {"n_polarity": 1},
    "one extra row": {"n_extra": 1},
    "many extra rows": {"n_extra": 200, "id_dtype": torch.int16},
    "all sizes one": {"width": 1, "hidden": (1,), "counts": (1, 2)},
    "three layers of one": {"hidden": (1, 1, 1)},
    "wide": {"width": 200, "hidden": (260,), "batch": 3},
    "wide and deep": {"width": 72, "hidden": (130, 70, 34), "batch": 3},
    "many candidates": {"candidates": 19, "batch": 3},
    "no candidates": {"candidates": 0},
    "rows around a tile": {"counts": (15, 16, 17, 31, 33, 47, 48, 49, 63, 64, 65, 96, 97)},
}


def check(case: Case, generator: torch.Generator, **options: Any) -> None:
    __tracebackhide__ = True
    lines = budget.over_budget(case, case.place(generator, **options), generator)
    assert not lines, "\n".join(lines)


def test_library_is_loaded() -> None:
    """The tests of backend "cpu" mean nothing without it: no test is skipped for a missing library."""
    assert library.loaded, library.reason


@pytest.mark.parametrize("config", GRID, ids=[f"{c.op}-{label(c)}" for c in GRID])
def test_every_pair_of_options(config: Config, generator: torch.Generator) -> None:
    check(make(config, generator), generator)


@pytest.mark.parametrize("draw", range(12))
@pytest.mark.parametrize("op", OPS)
def test_fresh_options(op: str, draw: int, generator: torch.Generator, source: random.Random) -> None:
    check(make(drawn(op, source), generator), generator)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("op", OPS)
def test_edge_shapes(op: str, edge: str, activation: str, generator: torch.Generator) -> None:
    layout = "jagged" if activation == "relu" else "lengths"
    normalize = "none" if activation == "relu" else "softmax"
    more = {} if activation == "relu" else {"gate_inputs": "full", "n_extra": 3}
    config = Config(op=op, layout=layout, activation=activation, normalize=normalize, **more)
    check(make(replace(config, **EDGES[edge]), generator), generator)


@pytest.mark.parametrize("op", OPS)
def test_padded_longer_than_any_row(op: str, generator: torch.Generator) -> None:
    check(make(Config(op=op, layout="lengths"), generator), generator, length=23)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
@pytest.mark.parametrize("activation", ["sigmoid", "silu"])
@pytest.mark.parametrize("op", UNITS)
def test_saturated_units(op: str, activation: str, scale: float, generator: torch.Generator) -> None:
    case = make(Config(op=op, activation=activation, hidden=(36, 20), length=30), generator)
    case.floats["weights[0]"].mul_(scale)
    check(case, generator)


@pytest.mark.parametrize("shift", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("op", UNITS)
def test_softmax_of_large_scores(op: str, shift: float, generator: torch.Generator) -> None:
    """Scores beyond the range of exp: the largest score of the row is subtracted first."""
    case = make(Config(op=op, activation="sigmoid", normalize="softmax", length=30), generator)
    case.floats["weights[1]"].mul_(20)
    case.floats["biases[1]"].add_(shift)
    check(case, generator)


@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_left", "mask_holes"])
@pytest.mark.parametrize("normalize", ["none", "softmax", "sigmoid"])
@pytest.mark.parametrize("candidates", [None, 3])
@pytest.mark.parametrize("op", UNITS)
def test_attention_weights(
    op: str, candidates: int | None, normalize: str, layout: str, generator: torch.Generator
) -> None:
    case = make(Config(op=op, layout=layout, candidates=candidates, normalize=normalize), generator)
    where = case.place(generator)
    truth = outputs(case)[1]
    assert truth is not None
    weights = {}
    for backend in ("cpu", "reference"):
        for grad in (False, True):
            arguments = case.arguments(where, requires_grad=grad)
            _, got = case.call(arguments, backend, return_weights=True)
            assert got.requires_grad == grad
            got = got.detach()
            got = got if candidates else got[..., None]
            assert not where.pads(got).any(), "weights at pads"
            weights[backend] = where.gather(got)
            assert weights[backend].shape == truth.shape
    plain = float((weights["reference"] - truth).abs().max())
    limit = 2 * plain + 4 * torch.finfo(torch.float32).eps * float(truth.abs().max())
    assert float((weights["cpu"] - truth).abs().max()) <= limit


@pytest.mark.parametrize("op", OPS)
def test_without_gradient_the_output_is_the_same(op: str, generator: torch.Generator) -> None:
    case = make(Config(op=op), generator)
    where = case.place(generator)
    with_grad = case.call(case.arguments(where, requires_grad=True), "cpu").detach()
    assert torch.equal(case.call(case.arguments(where), "cpu"), with_grad)
    with torch.no_grad():
        assert torch.equal(case.call(case.arguments(where, requires_grad=True), "cpu"), with_grad)


@pytest.mark.parametrize("op", OPS)
def test_gradients_of_one_input_alone(op: str, generator: torch.Generator) -> None:
    """Each gradient is the same, bitwise, whichever other inputs want one."""
    case = make(Config(op=op, activation="prelu", gate_inputs="full", n_extra=3), generator)
    where = case.place(generator)
    full = case.run("cpu", where)
    for name in case.floats:
        arguments = case.arguments(where)
        prefix, _, index = name.partition("[")
        prefix = "history" if prefix == "tokens" and op == "target_attention" else prefix
        leaf = arguments[prefix][int(index[:-1])] if index else arguments[prefix]
        leaf.requires_grad_()
        out = case.call(arguments, "cpu")
        token_out = not case.config.has_unit
        out.backward(where.spread(case.grad_out) if token_out else case.grad_out)
        grad = where.gather(leaf.grad) if name == "tokens" else leaf.grad
        assert torch.equal(grad, full[f"grad {name}"]), name
