"""Sums over a million tokens: held to the error of plain PyTorch's `sum`, which adds in pairs and loses few bits.

The references add up by `index_add`, one chain of additions a user, and would let a kernel lose as much.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mixpol_kernels as mk
from mixpol_kernels.ops.target_attention._dice.api import dice_attention
from mixpol_kernels.ops.target_attention._statistics.api import unit_statistics
from mixpol_kernels.ops.target_attention.reference import activation_unit
from mixpol_kernels.testing.budget import BACKWARD, FORWARD

LONG = 10**6
WIDTH, UNITS, HEADS = 4, 4, 2
EPS = torch.finfo(torch.float32).eps
Inputs = dict[str, Tensor]
Form = Callable[[Inputs], Sequence[Tensor]]


@dataclass(frozen=True)
class Problem:
    """The same function twice, of the same inputs: our op and plain PyTorch."""

    inputs: Inputs
    ours: Form
    plain: Form

    def run(self, form: Form, dtype: torch.dtype) -> Inputs:
        """Outputs, and the gradients of what is summed over tokens for outputs' gradients of 0 ... 1."""
        leaves = {k: v.to(dtype).detach().clone().requires_grad_() for k, v in self.inputs.items()}
        outputs = form(leaves)
        draws = torch.Generator().manual_seed(5)
        torch.autograd.backward(list(outputs), [torch.rand(y.shape, generator=draws).to(dtype) for y in outputs])
        found = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
        return found | {f"grad {k}": v.grad for k, v in leaves.items() if v.grad is not None and k != "tokens"}

    def faults(self) -> list[str]:
        """A line for each result whose error is over the budget of `mixpol_kernels.testing.budget`."""
        truth = self.run(self.plain, torch.float64)
        plain, ours = self.run(self.plain, torch.float32), self.run(self.ours, torch.float32)
        lines = []
        for name, value in truth.items():
            scale = float(value.abs().max())
            theirs, got = (float((found[name] - value).abs().max()) / scale for found in (plain, ours))
            budget = (BACKWARD if name.startswith("grad") else FORWARD) * theirs + EPS
            if not got <= budget:
                lines.append(f"{name}: error {got:.1e}, plain PyTorch's {theirs:.1e}")
        return lines


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    """The same in every run: of one user, plain PyTorch's error is one draw, and can be nearly nothing by luck."""
    return torch.Generator().manual_seed(zlib.crc32(request.node.name.encode()))


def normal(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=generator) * scale


def unit_inputs(generator: torch.Generator, *hidden: int) -> Inputs:
    given, inputs = {}, 4 * WIDTH
    for i, units in enumerate((*hidden, 1)):
        given[f"weight{i}"] = normal(generator, units, inputs, scale=inputs**-0.5)
        given[f"bias{i}"] = normal(generator, units, scale=0.5)
        inputs = units
    return given


def listed(leaves: Inputs, name: str) -> list[Tensor]:
    return [value for key, value in leaves.items() if key.startswith(name)]


def few_rows(generator: torch.Generator, tokens: int) -> Tensor:
    """[1, tokens, D] of positive values, of which few differ: none makes a rectifier's input nearly 0."""
    rows = torch.rand(4096, WIDTH, generator=generator)
    return rows[torch.randint(len(rows), (1, tokens), generator=generator)]


def raw_scores(leaves: Inputs, tokens: Tensor, activation: str) -> Tensor:
    target = leaves["target"][:, None].expand_as(tokens)
    parameters = (listed(leaves, name) for name in ("weight", "bias", "slope"))
    return activation_unit(target, tokens, *parameters, activation)


NORMALIZED = {
    "none": lambda scores: scores,
    "sigmoid": torch.sigmoid,
    "softmax": lambda scores: torch.softmax(scores, 1),
}


@pytest.mark.parametrize(
    ("activation", "normalize", "hidden"),
    [
        ("relu", "none", (UNITS,)),
        ("prelu", "sigmoid", (UNITS, UNITS)),
        ("silu", "softmax", (UNITS,)),
    ],
)
def test_target_attention(activation: str, normalize: str, hidden: tuple[int, ...], generator: torch.Generator) -> None:
    inputs = {"target": normal(generator, 1, WIDTH), "tokens": few_rows(generator, LONG)}
    inputs |= unit_inputs(generator, *hidden)
    if activation == "prelu":
        inputs |= {f"slope{i}": normal(generator, units, scale=0.5) for i, units in enumerate(hidden)}

    def ours(leaves: Inputs) -> list[Tensor]:
        pooled = mk.target_attention(
            leaves["target"], leaves["tokens"], listed(leaves, "weight"), listed(leaves, "bias"),
            slopes=listed(leaves, "slope"), activation=activation, normalize=normalize, backend="cpu",
        )  # fmt: skip
        assert isinstance(pooled, Tensor)
        return [pooled]

    def plain(leaves: Inputs) -> list[Tensor]:
        weights = NORMALIZED[normalize](raw_scores(leaves, leaves["tokens"], activation))
        return [(weights[..., None] * leaves["tokens"]).sum(1)]

    assert not Problem(inputs, ours, plain).faults()


@pytest.mark.parametrize("gate_inputs", ["product", "full"])
@pytest.mark.parametrize("pooled", [True, False], ids=["mixed_polarity_attention", "polarity_fusion"])
def test_polarity_fusion(pooled: bool, gate_inputs: str, generator: torch.Generator) -> None:
    """Gradients of the gate, the pull and both small tables; and of the unit behind them."""
    tokens = LONG // 4
    ids, polarity, extra = (torch.randint(n, (1, tokens), generator=generator) for n in (50, 2, 3))
    sign = torch.tensor([-1.0, 1.0])
    inputs = {"target": normal(generator, 1, WIDTH), "table": torch.rand(50, WIDTH, generator=generator)}
    inputs |= {"polarity": normal(generator, 2, WIDTH), "extra": normal(generator, 3, WIDTH)}
    inputs["gate0"] = normal(generator, WIDTH, 3 * WIDTH if gate_inputs == "full" else WIDTH, scale=0.3)
    inputs |= {"gate1": normal(generator, WIDTH), "gate2": normal(generator, WIDTH, WIDTH, scale=0.3)}
    inputs |= unit_inputs(generator, UNITS) if pooled else {}

    def ours(leaves: Inputs) -> list[Tensor]:
        options = {"fusion": "tapf", "gate": listed(leaves, "gate"), "sign": sign.to(leaves["table"].dtype)}
        options |= {"extra_ids": extra, "extra_table": leaves["extra"], "backend": "cpu"}
        if not pooled:
            x = F.embedding(ids, leaves["table"])
            return [mk.polarity_fusion(leaves["target"], x, polarity, leaves["polarity"], **options)]
        options |= {"weights": listed(leaves, "weight"), "biases": listed(leaves, "bias"), "activation": "silu"}
        return [
            mk.mixed_polarity_attention(
                leaves["target"], ids, polarity, leaves["table"], leaves["polarity"], normalize="sigmoid", **options
            )
        ]

    def plain(leaves: Inputs) -> list[Tensor]:
        x = F.embedding(ids, leaves["table"])
        target = leaves["target"][:, None].expand_as(x)
        given = torch.cat([x, target, x * target], -1) if gate_inputs == "full" else x * target
        gate = torch.sigmoid(F.linear(given, leaves["gate0"], leaves["gate1"]))
        pull = F.linear(leaves["target"], leaves["gate2"])[:, None]
        # As products with one-hot rows: a look-up's gradient is one chain of additions.
        small = sum(
            F.one_hot(at, len(rows)).to(x.dtype) @ rows
            for at, rows in ((polarity, leaves["polarity"]), (extra, leaves["extra"]))
        )
        fused = x + small + sign.to(x.dtype)[polarity][..., None] * gate * pull
        if not pooled:
            return [fused]
        weights = torch.sigmoid(raw_scores(leaves, fused, "silu"))
        return [(weights[..., None] * fused).sum(1)]

    assert not Problem(inputs, ours, plain).faults()


@pytest.mark.parametrize("rising", [False, True], ids=["level", "rising"])
@pytest.mark.parametrize(("projected", "candidates"), [(False, 1), (True, 1), (True, 30)])
def test_dot_target_attention(projected: bool, candidates: int, rising: bool, generator: torch.Generator) -> None:
    """Absorbed projections, and with many candidates projected tokens. `rising`: every score is a new largest one."""
    tokens = LONG if candidates == 1 else LONG // 20
    inputs = {
        "target": normal(generator, 1, candidates, WIDTH),
        "tokens": torch.rand(1, tokens, WIDTH, generator=generator),
    }
    if projected:
        inputs |= {name: normal(generator, WIDTH, WIDTH, scale=WIDTH**-0.5) for name in ("w_q", "w_k", "w_v", "w_o")}
    if rising:
        inputs["tokens"][..., 0] += torch.linspace(0, 4, tokens)

    def ours(leaves: Inputs) -> list[Tensor]:
        projections = {name: leaves[name] for name in leaves if name.startswith("w_")}
        pooled = mk.dot_target_attention(
            leaves["target"], leaves["tokens"], num_heads=HEADS, **projections, backend="cpu"
        )  # fmt: skip
        assert isinstance(pooled, Tensor)
        return [pooled]

    def plain(leaves: Inputs) -> list[Tensor]:
        queries, keys, values = leaves["target"], leaves["tokens"], leaves["tokens"]
        if projected:
            queries = F.linear(queries, leaves["w_q"])
            keys, values = F.linear(keys, leaves["w_k"]), F.linear(values, leaves["w_v"])
        queries, keys, values = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (queries, keys, values))
        weights = torch.softmax(queries @ keys.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5, -1)
        pooled = (weights[..., None] * values[:, :, None]).sum(-2).transpose(1, 2).flatten(-2)
        return [F.linear(pooled, leaves["w_o"]) if projected else pooled]

    assert not Problem(inputs, ours, plain).faults()


def statistics_problem(generator: torch.Generator, users: int, tokens: int, offset: float) -> Problem:
    """Of one layer whose bias is `offset` larger."""
    inputs = {"target": normal(generator, users, WIDTH), "tokens": normal(generator, users, tokens, WIDTH)}
    inputs |= {"weight": normal(generator, UNITS, 4 * WIDTH, scale=0.2), "bias": normal(generator, UNITS) + offset}

    def ours(leaves: Inputs) -> list[Tensor]:
        found = unit_statistics(
            leaves["target"], leaves["tokens"], [leaves["weight"]], [leaves["bias"]], backend="cpu"
        )  # fmt: skip
        return [found.mean, found.variance]

    def plain(leaves: Inputs) -> list[Tensor]:
        x, target = leaves["tokens"], leaves["target"][:, None].expand_as(leaves["tokens"])
        h = F.linear(torch.cat([target, x, target - x, target * x], -1), leaves["weight"], leaves["bias"])
        mean = h.mean((0, 1))
        return [mean, ((h - mean) ** 2).mean((0, 1))]

    return Problem(inputs, ours, plain)


@pytest.mark.parametrize(("users", "tokens", "offset"), [(1, LONG, 0.0), (1, LONG, 300.0), (50, 60, 300.0)])
def test_unit_statistics(users: int, tokens: int, offset: float, generator: torch.Generator) -> None:
    """`offset`: a mean far above the spread, of which float32 rounds away what the gradients need."""
    assert not statistics_problem(generator, users, tokens, offset).faults()


def test_the_bias_moves_the_mean_alone(generator: torch.Generator) -> None:
    """Its gradient is the mean's own, to the last bit."""
    problem = statistics_problem(generator, 3, 70, 40.0)
    leaves = {name: value.requires_grad_() for name, value in problem.inputs.items()}
    grad_mean = normal(generator, UNITS)
    torch.autograd.backward(list(problem.ours(leaves)), [grad_mean, 1e3 * normal(generator, UNITS)])
    assert torch.equal(leaves["bias"].grad, grad_mean)


@pytest.mark.parametrize("offset", [0.0, 30.0, 300.0, 3000.0])
def test_dice_attention_far_from_zero(offset: float, generator: torch.Generator) -> None:
    """Pre-activations whose mean is far above their spread."""
    inputs = {"target": normal(generator, 3, WIDTH), "history": normal(generator, 3, 60, WIDTH)}
    inputs |= unit_inputs(generator, UNITS) | {"alpha": normal(generator, UNITS)}
    inputs["bias0"] += offset
    inputs |= {"gain": 1 + 0.3 * normal(generator, UNITS), "shift": normal(generator, UNITS)}

    def form(backend: str) -> Form:
        return lambda leaves: [
            dice_attention(
                leaves["target"], leaves["history"], listed(leaves, "weight"), listed(leaves, "bias"),
                leaves["alpha"], norm_weight=leaves["gain"], norm_bias=leaves["shift"], backend=backend,
            ).pooled
        ]  # fmt: skip

    problem = Problem(inputs, form("cpu"), form("reference"))
    truth = problem.run(problem.plain, torch.float64)["grad bias0"]
    plain, ours = (problem.run(f, torch.float32)["grad bias0"] for f in (problem.plain, problem.ours))
    assert (ours - truth).abs().max() <= 8 * (plain - truth).abs().max() + 2 * EPS * truth.abs().max()


@pytest.mark.parametrize("fusion", ["bias", "tapf"])
def test_small_tables_and_many_candidates(fusion: str, generator: torch.Generator) -> None:
    """Every candidate adds to the few rows of the polarity and extra tables."""
    users, candidates, tokens = 1, 100, 200
    ids, polarity, extra = (torch.randint(n, (users, tokens), generator=generator) for n in (100, 2, 3))
    inputs = {
        "target": normal(generator, users, candidates, WIDTH),
        "table": torch.rand(100, WIDTH, generator=generator),
    }
    inputs |= {"polarity": normal(generator, 2, WIDTH), "extra": normal(generator, 3, WIDTH)}
    inputs |= unit_inputs(generator, UNITS)
    if fusion == "tapf":
        inputs |= {"gate0": normal(generator, WIDTH, WIDTH, scale=0.3), "gate1": normal(generator, WIDTH)}
        inputs["gate2"] = normal(generator, WIDTH, WIDTH, scale=0.3)

    def form(backend: str) -> Form:
        return lambda leaves: [
            mk.mixed_polarity_attention(
                leaves["target"], ids, polarity, leaves["table"], leaves["polarity"], fusion=fusion,
                gate=listed(leaves, "gate"), extra_ids=extra, extra_table=leaves["extra"],
                weights=listed(leaves, "weight"), biases=listed(leaves, "bias"), activation="silu", backend=backend,
            )
        ]  # fmt: skip

    assert not Problem(inputs, form("cpu"), form("reference")).faults()


def test_gradient_of_a_hot_row(generator: torch.Generator) -> None:
    """A million gradients that go to one row of a table."""
    ids, grads = torch.zeros(LONG, dtype=torch.int64), torch.rand(LONG, 3, generator=generator)
    table = torch.zeros(2, 3, requires_grad=True)
    polarity = torch.zeros(1, 3, requires_grad=True)
    mk.polarity_embedding(ids, ids, table, polarity, backend="cpu").backward(grads)
    truth = grads.double().sum(0)
    for grad in (table.grad, polarity.grad):
        assert ((grad[0] - truth).abs() <= EPS * truth).all()


def test_infinite_gradients_stay_infinite() -> None:
    """What a sum lost is no number once the sum is infinite, and must not reach it."""
    ids, grads = torch.zeros(1000, dtype=torch.int64), torch.ones(1000, 17)
    grads[3, 1], grads[900, 2] = torch.inf, -torch.inf
    table = torch.zeros(1, 17, requires_grad=True)
    mk.polarity_embedding(ids, ids, table, torch.zeros(1, 17), backend="cpu").backward(grads)
    assert torch.equal(table.grad[0, :4], torch.tensor([1000.0, torch.inf, -torch.inf, 1000.0]))


@pytest.mark.parametrize("normalize", ["sigmoid", "softmax"])
def test_same_bits_wherever_a_long_history_lies(normalize: str, generator: torch.Generator) -> None:
    """Alone, behind another user, padded, and on two threads: long enough that its sums move to totals."""
    lengths = torch.tensor([37, 2001])
    target, history = normal(generator, 2, WIDTH), normal(generator, 2, 2100, WIDTH)
    parameters = unit_inputs(generator, UNITS)
    weights, biases = listed(parameters, "weight"), listed(parameters, "bias")

    def run(target: Tensor, history: Tensor, **layout: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t, x = target.clone().requires_grad_(), history.clone().requires_grad_()
        unit = mk.target_attention(
            t, x, weights, biases, activation="silu", normalize=normalize, backend="cpu", **layout
        )
        dot = mk.dot_target_attention(t, x, num_heads=HEADS, backend="cpu", **layout)
        assert isinstance(unit, Tensor)
        assert isinstance(dot, Tensor)
        (unit + dot).sum().backward()
        assert t.grad is not None
        assert x.grad is not None
        return unit.detach(), dot.detach(), t.grad, x.grad

    alone = run(target[1:], history[1, :2001], offsets=torch.tensor([0, 2001]))
    torch.set_num_threads(2)
    jagged = run(target, torch.cat([history[0, :37], history[1, :2001]]), offsets=torch.tensor([0, 37, 2038]))
    padded = run(target, history, lengths=lengths)
    for found, tokens in ((jagged, jagged[3][37:]), (padded, padded[3][1, :2001])):
        assert all(torch.equal(got[1:], want) for got, want in zip(found[:3], alone[:3], strict=True))
        assert torch.equal(tokens, alone[3])
