"""Dropout of hidden units: its masks are random enough, the same everywhere, and follow torch's generator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mixpol_kernels as mk
from mixpol_kernels.ops.target_attention.reference import token_dropout
from mixpol_kernels.ops.unit import draw_seed
from mixpol_kernels.testing.inputs import Config, make
from mixpol_kernels.testing.oracle import _dropout

OPS = ("target_attention", "mixed_polarity_attention")


def masks(seed: int, p: float = 0.5, users: int = 40, tokens: int = 20, units: int = 64, layer: int = 0) -> Tensor:
    """Whether units are kept, [users, tokens, units]."""
    user = torch.arange(users).repeat_interleave(tokens)
    drop = token_dropout(p, torch.tensor([seed]), user, None, users, 1)
    assert drop is not None
    return (drop(torch.ones(users * tokens, 1, units), layer) > 0).view(users, tokens, units)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
def test_the_probability_is_right(p: float) -> None:
    """Within five standard deviations, overall and for every unit and place; what is kept keeps the expectation."""
    kept = masks(int(draw_seed()), p)
    for share, draws in ((kept.float().mean(), kept.numel()), (kept.float().mean((0, 1)), 800),
                         (kept.float().mean((0, 2)), 2560), (kept.float().mean((1, 2)), 1280)):  # fmt: skip
        assert ((share - (1 - p)).abs() < 5 * (p * (1 - p) / draws) ** 0.5).all()


def test_masks_are_independent() -> None:
    """Between neighbours in every direction, layers and seeds: agreement of fair coins within five deviations."""
    seed = int(draw_seed())
    kept = masks(seed)
    others = {
        "next unit": (kept[..., 1:], kept[..., :-1]),
        "next token": (kept[:, 1:], kept[:, :-1]),
        "next user": (kept[1:], kept[:-1]),
        "next layer": (masks(seed, layer=1), kept),
        "next seed": (masks(seed ^ 1), kept),
        "high bits of the seed": (masks(seed ^ 2**40), kept),
        "user and token swapped": (kept[:20], kept[:20].transpose(0, 1)),
    }
    for name, (a, b) in others.items():
        differs = a != b
        if name == "user and token swapped":
            differs = differs[~torch.eye(20, dtype=torch.bool)]
        limit = 5 * 0.5 / differs.numel() ** 0.5 * 2**0.5
        assert abs(float(differs.float().mean()) - 0.5) < limit, name


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("op", OPS)
def test_the_mask_is_as_documented(op: str, backend: str, generator: torch.Generator) -> None:
    """From values alone: with one unit kept or dropped by the rules, the score is its value / (1 - p), or the bias."""
    case = make(Config(op=op, hidden=(1,), counts=(40, 0, 7), candidates=2, fusion="none", dropout=0.4), generator)
    for bias, value in (("biases[0]", 50.0), ("biases[1]", 0.25), ("weights[1]", 1.0), ("weights[0]", 0.0)):
        case.floats[bias].fill_(value)
    _, weights = case.call(case.arguments(case.place(generator)), backend, return_weights=True)
    for start, user, count in ((0, 0, 40), (40, 2, 7)):
        for m in range(2):
            factors = _dropout(0.4, case.config.seed, user * 2 + m, 0, count, 1)[:, 0]
            torch.testing.assert_close(weights[start : start + count, m].double(), 50 * factors + 0.25)


@pytest.mark.parametrize("op", OPS)
def test_without_seed_it_follows_the_generator(op: str, generator: torch.Generator) -> None:
    case = make(Config(op=op, activation="silu", dropout=0.5), generator)
    arguments = case.arguments(case.place(generator))
    arguments["seed"] = None
    torch.manual_seed(1)
    first, second = case.call(arguments, "cpu"), case.call(arguments, "cpu")
    torch.manual_seed(1)
    again = case.call(arguments, "cpu")
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    mk.explain(getattr(mk, op), **arguments)
    case.call({**arguments, "dropout": 0.0}, "cpu")
    assert torch.equal(torch.get_rng_state(), state), "drew a number that nothing needs"


@pytest.mark.parametrize("op", OPS)
def test_a_mean_over_seeds_is_the_plain_score(op: str, generator: torch.Generator) -> None:
    """One hidden layer: the score is linear in what dropout scales, so its expectation does not change."""
    case = make(Config(op=op, activation="tanh", hidden=(20,), counts=(3, 2)), generator)
    arguments = case.arguments(case.place(generator))
    plain = case.call(arguments, "cpu")
    draws = torch.stack([case.call({**arguments, "dropout": 0.3, "seed": i}, "cpu") for i in range(2000)])
    deviation = draws.std(0) / 2000**0.5
    assert ((draws.mean(0) - plain).abs() < 6 * deviation + 1e-5).all()


@pytest.mark.parametrize("op", OPS)
def test_what_is_kept_for_backward(op: str, generator: torch.Generator) -> None:
    """The attention weights, four bytes a token, and the seed."""
    case = make(Config(op=op, hidden=(64,), dropout=0.3), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    arguments["seed"] = None
    assert mk.explain(getattr(mk, op), **arguments, backend="cpu").saved_bytes == 4 * sum(case.counts) + 8


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one": ({"dropout": 1.0}, ValueError, r"dropout was 1.0; expected 0 <= dropout < 1"),
    "negative": ({"dropout": -0.1}, ValueError, r"dropout was -0.1"),
    "float seed": ({"dropout": 0.1, "seed": torch.zeros(1)}, TypeError, r"seed has dtype torch.float32"),
    "two seeds": ({"dropout": 0.1, "seed": torch.tensor([1, 2])}, ValueError, r"seed has shape \[2\]"),
    "seed elsewhere": (
        {"dropout": 0.1, "seed": torch.zeros(1, dtype=torch.int64, device="meta")}, ValueError, r"on meta",
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", BAD)
@pytest.mark.parametrize("op", OPS)
def test_bad_arguments(op: str, label: str, backend: str, generator: torch.Generator) -> None:
    change, error, pattern = BAD[label]
    case = make(Config(op=op), generator)
    with pytest.raises(error, match=pattern):
        case.call({**case.arguments(case.place(generator)), **change}, backend)


def test_the_op_itself_refuses_too(generator: torch.Generator) -> None:
    case = make(Config(op="target_attention"), generator)
    a = case.arguments(case.place(generator))
    call = (a["target"], a["history"], a["offsets"], None, None, a["weights"], a["biases"], None, 0, 0)
    op = torch.ops.mixpol.target_attention_fwd
    with pytest.raises(RuntimeError, match=r"dropout is 1\.5"):
        op(*call, 1.5, None, False, False)
    with pytest.raises(RuntimeError, match="seed is missing"):
        op(*call, 0.5, None, False, False)
    with pytest.raises(RuntimeError, match="seed has 2 values"):
        op(*call, 0.5, torch.tensor([1, 2]), False, False)
    with pytest.raises(RuntimeError, match="save_bits was true"):
        op(*call, 0.5, torch.tensor([1]), True, True)
