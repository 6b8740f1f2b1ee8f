"""Long histories in parts: the same values, and a user's bits that do not depend on who else is in the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dot_cases
import pytest
import torch

from mixpol_kernels.ops.triton import parts
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.inputs import Config, make

# Of 32 positions a part: none, one token, a part, one more token, three parts but a token.
AROUND = (0, 1, 32, 33, 95)
UNIT = Config(op="target_attention", counts=AROUND, width=8, hidden=(5,), activation="silu")
DOT = dot_cases.Config(counts=AROUND, width=8, attention=None)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART", 32)


def drawn(config: Any, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Any:
    """A case, of values that `dtype` holds exactly."""
    if isinstance(config, Config):
        return make(config, generator, dtype)
    case = dot_cases.make(config, generator)
    floats = {name: tensor.to(dtype).to(tensor.dtype) for name, tensor in case.floats.items()}
    return replace(case, floats=floats, grad_out=case.grad_out.to(dtype).to(case.grad_out.dtype))


@pytest.mark.parametrize(
    "config",
    [
        replace(UNIT, normalize="softmax"),
        replace(UNIT, normalize="softmax", candidates=2, counts=(95,), layout="full"),
        replace(UNIT, normalize="softmax", candidates=2, counts=(1, 33), layout="mask_holes"),
        replace(UNIT, normalize="sigmoid", layout="lengths", activation="dice", hidden=(5, 3)),
        replace(UNIT, candidates=2, counts=(70, 0), index_dtype=torch.int32),
        DOT,
        replace(DOT, candidates=2, counts=(95,), layout="full"),
        replace(DOT, candidates=2, counts=(0, 33), layout="mask_holes"),
        replace(DOT, heads=2, layout="lengths", counts=(1, 64)),
        # Blocks of rows, which add to the tokens' gradients; scores beyond exp's range: one token has the weight.
        replace(DOT, counts=(40, 3), candidates=18, spread=30.0, layout="mask_holes"),
    ],
    ids=lambda config: f"{config.op}-{config.layout}-{config.candidates}-{config.counts}",
)
def test_within_budget(config: Any, generator: torch.Generator) -> None:
    case = drawn(config, generator)
    where = case.place(generator)
    lines = budget.over_budget(case, where, generator, backend="triton")
    assert not lines, "\n".join(lines)
    weights = case.call(case.arguments(where), "triton", return_weights=True)[1]
    exact = case.call(case.arguments(where, torch.float64), "reference", return_weights=True)[1]
    torch.testing.assert_close(weights.double(), exact.double(), rtol=1e-5, atol=1e-6)
    assert not where.pads(weights).count_nonzero()


@pytest.mark.parametrize("config", [replace(UNIT, normalize="softmax", counts=(1, 33)), replace(DOT, counts=(70,))])
def test_low_precision(config: Any, generator: torch.Generator) -> None:
    """Parts leave float32, which is rounded once."""
    case = drawn(config, generator, torch.bfloat16)
    where = case.place(generator)
    lines = budget.over_budget(case, where, generator, backend="triton", dtype=torch.bfloat16)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("config", [UNIT, replace(UNIT, normalize="softmax"), DOT], ids=["none", "softmax", "dot"])
def test_bits_do_not_depend_on_the_batch(
    config: Any, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user alone, jagged or padded; and of one part as if histories were never cut."""
    case = drawn(replace(config, counts=(70, 0, 32, 33)), generator)
    tokens = torch.arange(sum(case.counts)).split(case.counts)
    grad = "grad tokens" if config.op == UNIT.op else "grad history"
    found = case.run("triton", case.place(generator))

    def same(others: dict[str, torch.Tensor], users: list[int]) -> bool:
        pairs = [(name, torch.tensor(users)) for name in ("out", "grad target")]
        pairs += [(grad, torch.cat([tokens[u] for u in users]))]
        return all(torch.equal(others[name], found[name][rows]) for name, rows in pairs)

    for users, layout in (([0], "jagged"), ([3], "lengths")):
        few = case.take(users)
        assert same(few.run("triton", few.place(generator, layout)), users)
    monkeypatch.setattr(parts, "PART", 2048)
    few = case.take([1, 2])
    assert same(few.run("triton", few.place(generator)), [1, 2])
    few = case.take([0])
    assert not same(few.run("triton", few.place(generator)), [0]), "parts have bits of their own"


@pytest.mark.parametrize("offsets", [[0, 0, 0], [0, 31, 200], [0, 32, 64], [5, 64, 200], [0, 190, 64], [-7, 999, 999]])
def test_slots_hold_every_token_once(offsets: list[int]) -> None:
    """And of offsets that are none, which nothing on a GPU has looked at, no slot is out of bounds."""
    count = 200
    found = parts.cut(2, count, torch.tensor(offsets), None, torch.device("cpu"))
    assert found is not None
    assert len(found.users) == 2 + count // parts.PART == found.first[-1]
    assert ((found.kept >= 0) & (found.kept <= parts.PART)).all()
    assert ((found.starts >= 0) & (found.starts + found.kept <= count)).all()
    assert ((found.users >= 0) & (found.users < 2)).all()
    if offsets != sorted(offsets) or not 0 <= offsets[0] <= offsets[-1] <= count:
        return
    for user in range(2):
        slots = range(int(found.first[user]), int(found.first[user + 1]))
        rows = [int(found.starts[s]) + i for s in slots for i in range(int(found.kept[s]))]
        assert rows == list(range(offsets[user], offsets[user + 1]))
        assert all(found.users[s] == user for s in slots if found.kept[s])
