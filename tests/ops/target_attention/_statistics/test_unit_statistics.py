"""`unit_statistics` against float64, its layouts, its refusals and its registration."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import statistics_cases
import torch
from kinks import far_from_kinks
from torch import Tensor

from mixpol_kernels.ops.target_attention._statistics.api import unit_statistics
from mixpol_kernels.ops.target_attention._statistics.autograd import FORWARD
from mixpol_kernels.ops.unit import PUBLIC_ACTIVATIONS

DRAWS = 4  # one draw of a few sums that cancel says little of the error


def inputs(
    generator: torch.Generator, hidden: tuple[int, ...], activation: str, counts: tuple[int, ...], width: int = 10
) -> dict[str, Any]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    widths = (4 * width, *hidden)
    slopes = []
    for units in hidden[:-1]:
        if activation == "prelu":
            slopes.append(normal(units))
        if activation == "dice":
            slopes.append(normal(3, units))
        if activation == "dice_row":
            slopes.append(torch.stack([normal(units), normal(units).abs()]))
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return {
        "target": normal(len(counts), width),
        "history": normal(sum(counts), width),
        "weights": [normal(o, i) / i**0.5 for i, o in zip(widths, hidden, strict=False)],
        "biases": [normal(o) for o in hidden],
        "slopes": slopes,
        "activation": activation,
        "offsets": offsets,
    }


def leaves(arguments: dict[str, Any], dtype: torch.dtype) -> tuple[dict[str, Any], list[Tensor]]:
    found: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if isinstance(value, list):
            return [leaf(v) for v in value]
        if isinstance(value, Tensor) and value.is_floating_point():
            found.append(value.detach().to(dtype).requires_grad_())
            return found[-1]
        return value

    return {name: leaf(value) for name, value in arguments.items()}, found


@pytest.mark.parametrize("candidates", [None, 3])
@pytest.mark.parametrize("pads", [None, 0, 9])
@pytest.mark.parametrize("activation", PUBLIC_ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(8,), (36, 20), (5, 18, 3)])
def test_values_and_gradients(
    hidden: tuple[int, ...], activation: str, pads: int | None, candidates: int | None, generator: torch.Generator
) -> None:
    """Five times the error of plain PyTorch, and a few digits for what cancels: plain PyTorch centres the gradient
    through the variance once more, while the kernel has a rounded mean."""
    config = statistics_cases.Config(hidden=hidden, activation=activation, pads=pads, candidates=candidates)
    plain: dict[str, float] = defaultdict(float)
    limit: dict[str, float] = defaultdict(float)
    cpu: dict[str, float] = defaultdict(float)
    for _ in range(DRAWS):
        case = statistics_cases.make(config, generator)
        where = case.place(generator)
        while not far_from_kinks(case, where, torch.float32):
            case = statistics_cases.make(config, generator)
        exact = case.run("reference", where, torch.float64)
        for backend, errors in (("reference", plain), ("cpu", cpu)):
            for name, value in case.run(backend, where).items():
                errors[name] += float((value - exact[name]).abs().max())
        for name, value in exact.items():
            limit[name] += 16 * torch.finfo(torch.float32).eps * float(value.abs().max())
    for name, error in cpu.items():
        assert error <= 5 * plain[name] + limit[name], name


@pytest.mark.parametrize("pad_to", [None, 70])
def test_number_of_rows(pad_to: int | None, backend: str, generator: torch.Generator) -> None:
    given = inputs(generator, (8,), "relu", (3, 0, 70, 1, 48))
    assert int(unit_statistics(**given, pad_to=pad_to, backend=backend).rows) == (5 * 70 if pad_to else 122)


def test_a_constant_unit_far_from_zero_has_no_variance(generator: torch.Generator) -> None:
    """E[x²] - E[x]² would leave a variance of about 1000² · 1e-7 here, or a negative one."""
    arguments = inputs(generator, (8,), "relu", (200, 300))
    arguments["weights"][0].zero_()
    arguments["biases"][0].fill_(1000.1)
    found = unit_statistics(**arguments, backend="cpu")
    assert (found.variance.abs() < 1e-6).all()


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("layout", ["lengths", "mask"])
def test_layouts_agree(layout: str, candidates: int, generator: torch.Generator) -> None:
    counts = (3, 0, 6)
    arguments = inputs(generator, (8, 4), "silu", counts)
    arguments["target"] = torch.randn(3, candidates, 10, generator=generator)
    jagged = unit_statistics(**arguments, pad_to=6, backend="cpu")
    history, keep = torch.full((3, 6, 10), torch.nan), torch.zeros(3, 6, dtype=torch.bool)
    for b, n in enumerate(counts):
        history[b, :n] = arguments["history"][sum(counts[:b]) :][:n]
        keep[b, :n] = True
    del arguments["offsets"]
    arguments["history"] = history
    where = {"lengths": torch.tensor(counts)} if layout == "lengths" else {"mask": keep}
    padded = unit_statistics(**arguments, **where, pad_to=6, backend="cpu")
    assert all(torch.equal(a, b) for a, b in zip(jagged, padded, strict=True))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_rows_give_zeros(backend: str, generator: torch.Generator) -> None:
    found = unit_statistics(**inputs(generator, (8,), "relu", (0, 0)), backend=backend)
    assert int(found.rows) == 0
    assert not found.mean.any()
    assert not found.variance.any()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_bad_arguments(backend: str, generator: torch.Generator) -> None:
    good = inputs(generator, (8,), "relu", (2, 3))
    with pytest.raises(RuntimeError, match=r"pad_to is 2 and user 1 has\s+3 tokens"):
        unit_statistics(**good, pad_to=2, backend=backend)
    with pytest.raises(ValueError, match="pad_to was -1"):
        unit_statistics(**good, pad_to=-1, backend=backend)
    with pytest.raises(ValueError, match="weights has 0 entries"):
        unit_statistics(**{**good, "weights": [], "biases": []}, backend=backend)
    with pytest.raises(ValueError, match=r"biases\[0\] has shape \[3\]"):
        unit_statistics(**{**good, "biases": [torch.zeros(3)]}, backend=backend)
    with pytest.raises(ValueError, match="slopes has 1 entries"):
        unit_statistics(**{**good, "slopes": [torch.zeros(8)], "activation": "prelu"}, backend=backend)
    with pytest.raises(ValueError, match=r"seed was None with dropout 0\.3"):
        unit_statistics(**good, dropout=0.3, backend=backend)
    deep = inputs(generator, (8, 4), "relu", (2, 3))
    with pytest.raises(ValueError, match=r"pad_to was 5 with dropout 0\.3"):
        unit_statistics(**deep, dropout=0.3, seed=1, pad_to=5, backend=backend)
    with pytest.raises(RuntimeError, match="offsets run from 0 to 4"):
        unit_statistics(**{**good, "offsets": torch.tensor([0, 2, 4])}, backend=backend)


@pytest.mark.parametrize("seed", [None, 3])
def test_registration(seed: int | None, generator: torch.Generator) -> None:
    given = inputs(generator, (8, 4), "prelu", (2, 3))
    call = (
        given["target"], given["history"], given["offsets"], None, None,
        given["weights"], given["biases"], given["slopes"], 1,
        *((0.0, None, 5) if seed is None else (0.3, torch.tensor([seed]), -1)),
    )  # fmt: skip
    torch.library.opcheck(FORWARD.compiled, call)


def test_compiles_whole_with_dynamic_shapes(generator: torch.Generator) -> None:
    compiled = torch.compile(unit_statistics, fullgraph=True, dynamic=True, backend="aot_eager")
    for counts in ((2, 3), (4, 0, 7)):
        given, leaf = leaves(inputs(generator, (8,), "relu", counts), torch.float32)
        mean, variance, _ = compiled(**given, pad_to=9, backend="cpu")
        want = unit_statistics(**given, pad_to=9, backend="cpu")
        assert torch.equal(mean, want.mean)
        assert torch.equal(variance, want.variance)
        (mean.sum() + variance.sum()).backward()
        assert all(t.grad is not None for t in leaf)
