"""torch.compile: every public function as one graph, forward and backward, for any batch size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import mixpol_kernels
from mixpol_kernels.testing.inputs import OPS, Config, make

UNITS = ("target_attention", "mixed_polarity_attention")
VARIANTS = [
    *[("cpu", Config(op=op)) for op in OPS],
    *[("cpu", Config(op=op, layout="lengths", normalize="softmax", activation="silu", candidates=3)) for op in OPS],
    ("cpu", Config(op="target_attention", layout="mask_left", hidden=(12, 5), activation="prelu")),
    ("cpu", Config(op="mixed_polarity_attention", layout="full", fusion="none")),
    ("cpu", Config(op="mixed_polarity_attention", layout="lengths", dropout=0.3, activation="dice_row")),
    ("reference", Config(op="target_attention", layout="lengths", dropout=0.3, activation="dice_row")),
    *[("cpu", Config(op=op, gate_inputs="full", n_extra=3)) for op in OPS if op != "target_attention"],
    *[("reference", Config(op=op, activation="prelu", normalize="softmax")) for op in OPS],
    ("reference", Config(op="polarity_fusion", layout="lengths", gate_inputs="full", n_extra=3)),
    ("reference", Config(op="mixed_polarity_attention", layout="lengths")),
]
IDS = [f"{i}-{backend}-{c.op}-{c.layout}" for i, (backend, c) in enumerate(VARIANTS)]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


def forward_and_backward(function: Any, arguments: dict[str, Any], backend: str) -> list[Tensor]:
    leaves = []
    fresh: dict[str, Any] = {}
    for name, value in arguments.items():
        entries = [
            t.detach().nan_to_num().requires_grad_()
            if isinstance(t, Tensor) and t.is_floating_point() and name != "sign"
            else t
            for t in (value if isinstance(value, list) else [value])
        ]
        leaves += [t for t in entries if isinstance(t, Tensor) and t.requires_grad]
        fresh[name] = entries if isinstance(value, list) else entries[0]
    out = function(**fresh, backend=backend)
    (out * out).sum().backward()
    grads = [t.grad if t.grad is not None else torch.zeros_like(t) for t in leaves]
    return [out.detach(), *[g.to_dense() if g.is_sparse else g for g in grads]]


@pytest.mark.parametrize(("backend", "config"), VARIANTS, ids=IDS)
def test_full_graph(backend: str, config: Config, generator: torch.Generator) -> None:
    """One compilation serves two batch sizes, and gives what the eager call gives."""
    eager = getattr(mixpol_kernels, config.op)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(eager, fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for counts in ((4,) * 11, (7,) * 13):  # sizes that equal no other size, which would be traced as one symbol
        case = make(replace(config, counts=counts), generator)
        arguments = case.arguments(case.place(generator, length=10 if config.layout != "full" else None))
        expected = forward_and_backward(eager, arguments, backend)
        got = forward_and_backward(compiled, arguments, backend)
        for value, true in zip(got, expected, strict=True):
            if backend == "cpu":
                assert torch.equal(value, true)
            else:
                torch.testing.assert_close(value, true)
        frames.append(counter.frame_count)
    # Not 1: dynamo starts over once when it learns that a float argument is a constant.
    assert frames[0] == frames[1]


@pytest.mark.slow
def test_inductor(generator: torch.Generator) -> None:
    """A model around the fused op, through the default compiler."""
    layer = mixpol_kernels.nn.MixedPolarityAttention(50, 8, [16], backend="cpu")
    head = torch.nn.Linear(16, 1)

    def model(target_ids: Tensor, ids: Tensor, polarity: Tensor, offsets: Tensor) -> Tensor:
        target = layer.item_embedding(target_ids)
        pooled = layer(target, ids, polarity, offsets=offsets)
        return head(torch.cat([pooled, target], 1)).sigmoid().sum()

    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    parameters = [*layer.parameters(), *head.parameters()]
    for counts in ((3, 0, 5), (2, 9, 4, 1, 0)):
        case = make(Config(counts=counts), generator)
        offsets = case.place(generator).arguments["offsets"]
        inputs = (torch.arange(len(counts)), case.ids, case.polarity, offsets)
        expected = torch.autograd.grad(model(*inputs), parameters)
        for got, true in zip(torch.autograd.grad(compiled(*inputs), parameters), expected, strict=True):
            torch.testing.assert_close(got, true)


def test_dropout_is_drawn_anew(generator: torch.Generator) -> None:
    """Every call of the compiled graph draws a seed, from the generator that the caller seeds."""
    layer = mixpol_kernels.nn.TargetAttention(8, [16], dropout=0.5)
    compiled = torch.compile(layer, fullgraph=True)
    target, history = torch.randn(3, 8, generator=generator), torch.randn(3, 5, 8, generator=generator)
    torch.manual_seed(3)
    first, second = compiled(target, history), compiled(target, history)
    torch.manual_seed(3)
    assert torch.equal(compiled(target, history), first)
    assert not torch.equal(first, second)
    first.sum().backward()
    assert layer.layers[0].weight.grad is not None


@pytest.mark.parametrize("op", UNITS)
def test_return_weights(op: str, generator: torch.Generator) -> None:
    case = make(Config(op=op, normalize="softmax"), generator)
    arguments = case.arguments(case.place(generator))
    function = getattr(mixpol_kernels, op)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    expected = function(**arguments, return_weights=True, backend="cpu")
    got = compiled(**arguments, return_weights=True, backend="cpu")
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1])


def test_bad_values_are_refused_in_a_graph(generator: torch.Generator) -> None:
    """The kernels check the values when they run; shapes are checked while tracing."""
    case = make(Config(op="mixed_polarity_attention", n_extra=3), generator)
    arguments = case.arguments(case.place(generator))
    function = mixpol_kernels.mixed_polarity_attention
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled(**arguments, backend="cpu")
    arguments["item_ids"] = arguments["item_ids"].clone()
    arguments["item_ids"][3] = 1000
    with pytest.raises(RuntimeError, match=r"item_ids.*1000"):
        compiled(**arguments, backend="cpu")
    arguments["item_ids"][3] = 0
    arguments["extra_ids"] = arguments["extra_ids"].clone()
    arguments["extra_ids"][2] = 3
    with pytest.raises(RuntimeError, match=r"extra_ids.*3 at position 2"):
        compiled(**arguments, backend="cpu")
    assert case.call(case.arguments(case.place(generator)), "cpu").isfinite().all()
