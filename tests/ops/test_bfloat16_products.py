"""Products of bfloat16 tokens: in float32, or on CPUs with AVX512-BF16 in pairs of bfloat16 (cpu/kernels/pairs.h).

`levels.py` calls these tests and those of test_low_precision.py with the pairs emulated: what they check holds for
both, but for results that are those of float32 to the bit.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from products import IN_PAIRS

from mixpol_kernels.testing import budget
from mixpol_kernels.testing.inputs import Case, Config, make

OPS = ("target_attention", "mixed_polarity_attention")
LONG = (70, 1, 0, 7, 48, 49, 101, 6, 13)  # chunks of 48 tokens; up to 6 there is no table


def whole_numbers(config: Config, generator: torch.Generator) -> Case:
    """A case whose every intermediate value bfloat16 holds, or of which float32 holds the sums: nothing is rounded."""
    case = make(replace(config, fusion="bias", activation="relu"), generator, torch.bfloat16)

    def drawn(tensor: torch.Tensor, share: float) -> torch.Tensor:
        signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2.0 - 1
        return signs * (torch.rand(tensor.shape, generator=generator) < share)

    last = len(config.hidden)
    floats = {name: drawn(t, 0.1 if name == f"weights[{last}]" else 0.5) for name, t in case.floats.items()}
    floats[f"biases[{last}]"].fill_(2.0)
    return replace(case, floats=floats, grad_out=drawn(case.grad_out, 0.3))


@pytest.mark.parametrize("candidates", [None, 2])
@pytest.mark.parametrize("hidden", [(5,), (64,), (70,), (5, 3), (20, 9, 4)], ids=str)
@pytest.mark.parametrize("width", [2, 7, 16, 33])
@pytest.mark.parametrize("op", OPS)
def test_whole_numbers_are_exact(
    op: str, width: int, hidden: tuple[int, ...], candidates: int | None, generator: torch.Generator
) -> None:
    """Bitwise what float32 gives: a product that is missed, or taken twice, would show."""
    config = Config(op=op, width=width, hidden=hidden, candidates=candidates, counts=LONG)
    case = whole_numbers(config, generator)
    where = case.place(generator, "mask_holes")
    got, expected = case.run("cpu", where, torch.bfloat16), case.run("cpu", where)
    assert any(value.any() for value in got.values())
    for name, value in got.items():
        assert torch.equal(value, expected[name].to(torch.bfloat16)), name


@pytest.mark.parametrize("gate_inputs", ["product", "full"])
@pytest.mark.parametrize("activation", ["relu", "prelu", "dice", "sigmoid"])
@pytest.mark.parametrize("hidden", [(36,), (80, 40)], ids=str)
def test_budget_of_long_histories(
    hidden: tuple[int, ...], activation: str, gate_inputs: str, generator: torch.Generator
) -> None:
    config = Config(width=40, hidden=hidden, activation=activation, gate_inputs=gate_inputs, counts=LONG, n_extra=3)
    case = make(config, generator, torch.bfloat16)
    lines = budget.over_budget(case, case.place(generator), generator, dtype=torch.bfloat16)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("hidden", [(36,), (70,), (33, 12)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_batch_invariance_of_long_histories(op: str, hidden: tuple[int, ...], generator: torch.Generator) -> None:
    case = make(Config(op=op, width=24, hidden=hidden, counts=LONG), generator, torch.bfloat16)
    expected = case.run("cpu", case.place(generator), torch.bfloat16)
    for user in range(len(LONG)):
        part = case.take([user])
        alone = part.run("cpu", part.place(generator, "lengths"), torch.bfloat16)
        for name in ("out", "grad target"):
            assert torch.equal(alone[name][0], expected[name][user]), name


@pytest.mark.parametrize("op", OPS)
def test_which_products_run(op: str, generator: torch.Generator) -> None:
    case = make(Config(op=op, width=24, counts=LONG), generator, torch.bfloat16)
    where = case.place(generator)
    got, full = case.run("cpu", where, torch.bfloat16), case.run("cpu", where)
    same = all(torch.equal(value, full[name].to(torch.bfloat16)) for name, value in got.items())
    assert same != IN_PAIRS
