"""`dot_target_attention`: its numbers on both backends, against float64 and the formula."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from dot_cases import Case, Config, formula, make
from dot_variants import every_variant
from torch import Tensor

import mixpol_kernels
from mixpol_kernels.testing import budget


def check_budget(case: Case, generator: torch.Generator, **options: Any) -> None:
    __tracebackhide__ = True
    lines = budget.over_budget(case, case.place(generator, **options), generator)
    assert not lines, "\n".join(lines)


@every_variant
def test_reference_is_the_formula(case: Case, generator: torch.Generator) -> None:
    where = case.place(generator)
    expected, weights = formula(case)
    out, got = case.call(case.arguments(where, torch.float64), "reference", return_weights=True)
    got = got if case.config.candidates is not None else got[..., None, :]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(where.gather(got), weights, rtol=1e-12, atol=1e-12)
    assert not where.pads(got).any()


@every_variant
def test_budget(case: Case, generator: torch.Generator) -> None:
    """Output and the gradients of target, history and projections, against the float64 reference."""
    check_budget(case, generator)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("layout", ["lengths", "mask_left", "mask_holes"])
def test_padded_longer_than_any_row(heads: int, layout: str, generator: torch.Generator) -> None:
    check_budget(make(Config(heads=heads, layout=layout), generator), generator, length=151)


@pytest.mark.parametrize("attention", [None, 16])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_scores(size: float, attention: int | None, generator: torch.Generator) -> None:
    """Scores of ±1e4: the softmax neither overflows nor loses a row; one token has all the weight."""
    case = make(Config(heads=2, attention=attention, candidates=2, counts=(3, 130, 1)), generator)
    logs = formula(case)[1].log()
    default = ((attention or case.config.width) / 2) ** -0.5
    scale = default * size / float((logs.amax(0) - logs.amin(0)).max())
    case = replace(case, config=replace(case.config, scale=scale))
    _, weights = formula(case)
    where = case.place(generator)
    out, got = case.call(case.arguments(where), "cpu", return_weights=True)
    assert out.isfinite().all()
    assert weights.max() > 0.99
    torch.testing.assert_close(got.double(), weights, rtol=0, atol=2e-2)
    # Where one weight is nearly 1, float64 itself rounds what the scale and the width's dot product multiply.
    floor = torch.finfo(torch.float64).eps * abs(scale) * case.config.width
    lines = budget.over_budget(case, where, generator, floor=floor)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("candidates", [None, 2])
def test_saturated_softmax_has_no_gradient(candidates: int | None, generator: torch.Generator) -> None:
    """Where one weight is exactly 1, the scores' gradients cancel to the last bit, over any number of chunks."""
    case = make(Config(attention=None, width=16, candidates=candidates, counts=(1, 200, 48)), generator)
    target = case.floats["target"]
    first = torch.tensor([0, 1, 201])
    case.floats["history"][first] = 100.0 * (target if candidates is None else target[:, 0]).sign()
    case = replace(case, config=replace(case.config, scale=100.0))
    if candidates:
        case.floats["target"][:, 1] = target[:, 0] * 2
    results = case.run("cpu", case.place(generator))
    assert not results["grad target"].any()
    expected = torch.zeros_like(results["grad history"])
    expected[first] = case.grad_out if candidates is None else case.grad_out.sum(1)
    assert torch.equal(results["grad history"], expected)


@pytest.mark.parametrize("gap", [8.0, 16.0, 24.0])
def test_nearly_saturated_softmax(gap: float, generator: torch.Generator) -> None:
    """Two tokens, weights of 1 - exp(-gap) and exp(-gap): what rounding keeps their sum from 1 must not show."""
    case = make(Config(attention=None, width=16, counts=(2,)), generator)
    first, second = case.floats["history"]
    case.floats["target"][0] = gap * (first - second) / (first - second).square().sum()
    case = replace(case, config=replace(case.config, scale=1.0))
    where = case.place(generator)
    results, truth = case.run("cpu", where), case.run("reference", where, torch.float64)
    error = (results["grad target"] - truth["grad target"]).abs()
    assert (error <= saturated_bound(case)).all()


def saturated_bound(case: Case) -> Tensor:
    """By how much rounding to float32 may move the target's gradient of one history of two tokens, [1, D].

    It is p1 p2 (d1 - d2) (x1 - x2) with scores q·x1 and q·x2, weights p1 > p2 = exp(-gap) and d = g·x. A dot product of
    D terms is off by at most γ Σ|terms|, γ = D u / (1 - D u): that of the scores scales p2, that of g·x adds to a
    difference that may be small by chance. What else is rounded, exp included, is within 16 u of each value; but the
    mean that is taken from d, nearly d1, is known to u² of itself (two float32), not to a share of what is left of d.
    """
    u = torch.finfo(torch.float32).eps / 2
    width = case.config.width
    gamma = width * u / (1 - width * u)
    query, g = case.floats["target"][0].double(), case.grad_out[0].double()
    x = case.floats["history"].double()
    scores, d = x @ query, x @ g
    weights = scores.softmax(0)
    of_scores, of_d = (float((gamma * (x.abs() @ other.abs())).sum()) for other in (query, g))
    relative = math.expm1(of_scores + u * float(scores.abs().sum())) + 16 * u
    inner = abs(float(d[0] - d[1])) * relative + of_d + 16 * u * float(d.abs().sum())
    return (float(weights.prod()) * inner + 2 * u**2 * float(d.abs().max())) * x.abs().sum(0)[None]


@every_variant
def test_attention_weights(case: Case, generator: torch.Generator) -> None:
    where = case.place(generator)
    arguments = case.arguments(where, requires_grad=True)
    out, weights = case.call(arguments, "cpu", return_weights=True)
    candidates = [] if case.config.candidates is None else [case.config.candidates]
    assert weights.shape == (*where.shape, *candidates, case.config.heads)
    assert weights.dtype == torch.float32
    assert not weights.requires_grad
    # Tokens may be projected, as long as their weights are not asked for.
    torch.testing.assert_close(out, case.call(arguments, "cpu"), rtol=1e-3, atol=1e-4)
    truth = case.call(case.arguments(where, torch.float64), "reference", return_weights=True)[1]
    plain = case.call(case.arguments(where), "reference", return_weights=True)[1]
    error, allowed = ((w.double() - truth).abs() for w in (weights, plain))
    assert error.numel() == 0 or error.max() <= 4 * allowed.max() + 1e-6
    assert not where.pads(weights).count_nonzero()


def test_one_token_is_copied(backend: str, generator: torch.Generator) -> None:
    case = make(Config(counts=(1, 1), heads=4, attention=None), generator)
    out = case.call(case.arguments(case.place(generator)), backend)
    assert torch.equal(out, case.floats["history"])


@pytest.mark.parametrize("layout", ["jagged", "mask_holes"])
@pytest.mark.parametrize("top_k", [1, 4, 50, 100])
def test_ties(top_k: int, layout: str, backend: str, generator: torch.Generator) -> None:
    """Of equal scores the earlier tokens are chosen: small whole numbers, of which many are equal, 0 and -0 too."""
    case = make(Config(attention=None, heads=2, width=8, candidates=3, scale=1.0, counts=(0, 120, 49, 3)), generator)
    case = replace(case, config=replace(case.config, top_k=top_k, layout=layout))
    for name in ("target", "history"):
        case.floats[name].copy_(torch.randint(-1, 2, case.floats[name].shape, generator=generator))
    where = case.place(generator)
    _, expected = formula(case)
    arguments = case.arguments(where, requires_grad=True)
    out, weights = case.call(arguments, backend, return_weights=True)
    weights = where.gather(weights)
    assert torch.equal(weights > 0, expected > 0)
    assert weights.count_nonzero() == 3 * 2 * sum(min(top_k, n) for n in case.counts)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=0)
    out.sum().backward()
    unseen = ~(expected > 0).any(1).repeat_interleave(4, 1)  # by no candidate, in the columns of a head
    grad = where.gather(arguments["history"].grad)
    assert not grad[unseen].count_nonzero()
    assert grad[~unseen].count_nonzero()


def test_best_of_negative_infinity(backend: str) -> None:
    """Scores of -inf are worth less than any other, and of those the earlier come first."""
    history = torch.zeros(1, 60, 2)
    history[0, :, 1] = torch.arange(60.0)
    history[0, :57, 0] = -1e38
    target = torch.tensor([[1e38, 0.0]])
    out, weights = mixpol_kernels.dot_target_attention(
        target, history, scale=1.0, top_k=5, return_weights=True, backend=backend
    )
    torch.testing.assert_close(out, torch.tensor([[0.0, 58.0]]))
    assert weights.count_nonzero() == 3


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize(
    "variant", ["one head", "one head, no projections", "four heads, no projections", "four heads"]
)
def test_nonfinite_inputs(case: Case, value: float, generator: torch.Generator) -> None:
    """They propagate as in the reference, and only to the user that has them."""
    case = replace(case, config=replace(case.config, layout="jagged"))
    where = case.place(generator)
    clean = case.run("cpu", where)
    for name in ("target", "history", *(n for n in case.floats if n in ("w_q", "w_o"))):
        floats = {k: t.clone() for k, t in case.floats.items()}
        row = floats[name][0].view(-1)
        row[int(torch.randint(row.numel(), (), generator=generator))] = value
        sick = replace(case, floats=floats)
        got, expected = (sick.call(sick.arguments(where), b) for b in ("cpu", "reference"))
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(kind(got), kind(expected)), (name, kind)
        if name in ("target", "history"):
            results = sick.run("cpu", where)
            assert torch.equal(results["out"][1:], clean["out"][1:])
            rest = slice(case.counts[0] if name == "history" else 1, None)
            assert torch.equal(results[f"grad {name}"][rest], clean[f"grad {name}"][rest])


def test_scores_of_minus_infinity(backend: str) -> None:
    """A token whose score is -inf has no weight, wherever it stands; if all have, there is no answer."""
    target = torch.tensor([[1.0, 0.0]])
    history = torch.zeros(1, 100, 2)
    history[..., 1] = torch.arange(100.0)
    history[0, :60, 0] = -1e38
    out = mixpol_kernels.dot_target_attention(target * 1e38, history, scale=1.0, backend=backend)
    torch.testing.assert_close(out, torch.tensor([[0.0, 79.5]]))
    history[..., 0] = -1e38
    assert mixpol_kernels.dot_target_attention(target * 1e38, history, scale=1.0, backend=backend).isnan().all()


@pytest.mark.parametrize("layout", ["jagged", "mask_holes"])
@pytest.mark.parametrize(("attention", "top_k"), [(None, None), (4, None), (4, 2)])
def test_gradcheck(attention: int | None, top_k: int | None, layout: str, generator: torch.Generator) -> None:
    config = Config(
        counts=(3, 0, 2), width=4, top_k=top_k, attention=attention, outputs=2, heads=2, candidates=2, layout=layout
    )
    case = make(config, generator)
    arguments = case.arguments(case.place(generator), torch.float64)
    inputs = [arguments[name].nan_to_num().requires_grad_() for name in case.floats]

    def function(*given: Tensor) -> Tensor:
        return case.call(arguments | dict(zip(case.floats, given, strict=True)), "reference")

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype, generator: torch.Generator) -> None:
    """On the reference; the compiled kernels say that they take float32."""
    case = make(Config(heads=2, layout="lengths"), generator)
    where = case.place(generator)
    got, truth = case.run("reference", where, dtype), case.run("reference", where, torch.float64)
    for name, value in got.items():
        assert value.dtype == dtype
        scale = float(truth[name].abs().max()) + 1
        assert float((value - truth[name]).abs().max()) < 64 * torch.finfo(dtype).eps * scale, name
    with pytest.raises(ValueError, match=rf"dot_target_attention: backend='cpu'.*float32.*{dtype}"):
        case.call(case.arguments(where, dtype), "cpu")
