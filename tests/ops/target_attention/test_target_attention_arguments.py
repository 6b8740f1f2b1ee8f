"""`target_attention`: its own arguments, wrong and right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mixpol_kernels
from mixpol_kernels.testing.inputs import Config, make

JAGGED = Config(op="target_attention", counts=(3, 0, 4, 2), width=6, hidden=(8, 5), activation="prelu")


def entry(
    name: str, i: int, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda a: {name: [change(t.detach()) if i == j else t for j, t in enumerate(a[name])]}


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "target 1-D": (lambda a: {"target": a["target"][0]}, ValueError, r"target.*\[6\].*\[B, D\].*\[B, M, D\]"),
    "target 4-D": (lambda a: {"target": a["target"][None, None]}, ValueError, r"target.*\[1, 1, 4, 6\]"),
    "integer target": (lambda a: {"target": a["target"].int()}, TypeError, r"target.*int32.*float32"),
    "complex target": (lambda a: {"target": a["target"].cfloat()}, TypeError, r"target.*complex64.*float32"),
    "double history": (lambda a: {"history": a["history"].double()}, TypeError, r"history.*float64.*float32"),
    "history elsewhere": (lambda a: {"history": a["history"].to("meta")}, ValueError, r"history.*meta.*cpu"),
    "narrow history": (lambda a: {"history": a["history"][:, 1:]}, ValueError, r"history.*5.*target.*6"),
    "history 1-D": (lambda a: {"history": a["history"][:, 0]}, ValueError, r"history.*\[9\].*\[N, D\]"),
    "unknown activation": (lambda a: {"activation": "mish"}, ValueError, r"activation was 'mish'.*'relu', 'prelu'"),
    "unknown normalize": (lambda a: {"normalize": "sum"}, ValueError, r"normalize was 'sum'.*'none', 'softmax'"),
    "output layer only": (
        lambda a: {"weights": a["weights"][:1], "biases": a["biases"][:1]}, ValueError, r"weights has 1.*one to three",
    ),
    "four hidden layers": (
        lambda a: {"weights": a["weights"] * 2, "biases": a["biases"] * 2}, ValueError, r"weights has 6.*one to three",
    ),
    "bias missing": (lambda a: {"biases": a["biases"][:-1]}, ValueError, r"biases has 2.*weights 3"),
    "slope missing": (lambda a: {"slopes": a["slopes"][:-1]}, ValueError, r"slopes has 1.*'prelu'.*2"),
    "slopes with relu": (lambda a: {"activation": "relu"}, ValueError, r"slopes has 2.*'relu'.*0"),
    "first layer inputs": (entry("weights", 0, lambda t: t[:, 1:]), ValueError, r"weights\[0\].*\[8, 23\].*24.*4 D"),
    "second layer inputs": (entry("weights", 1, lambda t: t[:, 1:]), ValueError, r"weights\[1\].*\[5, 7\].*8"),
    "two outputs": (
        entry("weights", 2, lambda t: t.repeat(2, 1)), ValueError, r"weights\[2\].*\[2, 5\].*\[1, 5\]",
    ),
    "flat output layer": (entry("weights", 2, lambda t: t[0]), ValueError, r"weights\[2\].*\[5\].*\[1, 5\]"),
    "bias shape": (entry("biases", 0, lambda t: t[1:]), ValueError, r"biases\[0\].*\[7\].*\[8\]"),
    "output bias shape": (entry("biases", 2, lambda t: t[0]), ValueError, r"biases\[2\].*\[\].*\[1\]"),
    "slope shape": (entry("slopes", 1, lambda t: t[:1]), ValueError, r"slopes\[1\].*\[1\].*\[5\]"),
    "weight dtype": (entry("weights", 1, lambda t: t.half()), TypeError, r"weights\[1\].*float16.*float32"),
    "bias dtype": (entry("biases", 2, lambda t: t.double()), TypeError, r"biases\[2\].*float64.*float32"),
    "slope dtype": (entry("slopes", 0, lambda t: t.double()), TypeError, r"slopes\[0\].*float64.*float32"),
    "weight elsewhere": (entry("weights", 0, lambda t: t.to("meta")), ValueError, r"weights\[0\].*meta.*cpu"),
    "bias elsewhere": (entry("biases", 0, lambda t: t.to("meta")), ValueError, r"biases\[0\].*meta.*cpu"),
}  # fmt: skip


@pytest.mark.parametrize("label", BAD)
def test_bad_arguments(label: str, backend: str, refuses: Callable[..., None]) -> None:
    change, error, pattern = BAD[label]

    def detached(arguments: dict[str, Any]) -> None:
        changed = change(arguments)
        arguments.update({k: v.detach() if torch.is_tensor(v) else v for k, v in changed.items()})

    refuses(JAGGED, detached, error, pattern, backend)


@pytest.mark.parametrize("normalize", ["none", "softmax"])
def test_weights_pool_the_history(normalize: str, backend: str, generator: torch.Generator) -> None:
    """pooled = sum of weight times token, and softmax weights of a user sum to 1."""
    config = Config(op="target_attention", layout="lengths", normalize=normalize, candidates=3)
    case = make(config, generator)
    arguments = case.arguments(case.place(generator))
    pooled, weights = case.call(arguments, backend, return_weights=True)
    history = arguments["history"].nan_to_num()
    torch.testing.assert_close(torch.einsum("blm,bld->bmd", weights, history), pooled, rtol=1e-4, atol=1e-5)
    if normalize == "softmax":
        filled = torch.tensor([[float(n > 0)] * 3 for n in case.counts])
        torch.testing.assert_close(weights.sum(1), filled)


def test_weights_have_the_shape_of_the_history(backend: str, generator: torch.Generator) -> None:
    for candidates in (None, 1, 2):
        for layout in ("jagged", "lengths"):
            case = make(Config(op="target_attention", layout=layout, candidates=candidates), generator)
            where = case.place(generator)
            _, weights = case.call(case.arguments(where), backend, return_weights=True)
            assert weights.shape == (*where.shape, *([] if candidates is None else [candidates]))


def test_sequences_of_any_kind(backend: str) -> None:
    """Tuples and ParameterLists serve as well as lists."""
    target, history = torch.randn(2, 4), torch.randn(2, 3, 4)
    weights, biases = (torch.randn(8, 16), torch.randn(1, 8)), (torch.zeros(8), torch.zeros(1))
    expected = mixpol_kernels.target_attention(target, history, list(weights), list(biases), backend=backend)
    parameters = [torch.nn.ParameterList(map(torch.nn.Parameter, tensors)) for tensors in (weights, biases)]
    for given in ((weights, biases), parameters):
        out = mixpol_kernels.target_attention(target, history, *given, backend=backend)
        assert torch.equal(out, expected)
