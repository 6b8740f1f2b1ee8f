"""TorchEasyRec's `DINEncoder`: not on PyPI, so that its formula is written out here, in modules of its names."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from parity import Case, check, check_training, histories
from torch import Tensor, nn

from mixpol_kernels import drop_in
from mixpol_kernels.drop_in import registry

pytestmark = pytest.mark.filterwarnings("ignore:tzrec unknown was not tested with:UserWarning")


class Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Dice(nn.Module):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(units)
        self.alpha = nn.Parameter(torch.zeros(units))

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.bn(x.transpose(1, 2)).transpose(1, 2))
        return x * (p + self.alpha * (1 - p))


class Perceptron(nn.Module):
    def __init__(self, inputs: int, units: int, activation: str, norm: str, dropout: float) -> None:
        super().__init__()
        self.perceptron = nn.Sequential(nn.Linear(inputs, units, bias=norm != "batch"))
        if norm == "batch":
            self.perceptron.extend([Transpose(), nn.BatchNorm1d(units), Transpose()])
        if norm == "layer":
            self.perceptron.append(nn.LayerNorm(units))
        self.perceptron.append(Dice(units) if activation == "Dice" else getattr(nn, activation)())
        if dropout:
            self.perceptron.append(nn.Dropout(dropout))


class MLP(nn.Module):
    def __init__(self, inputs: int, hidden: list[int], activation: str, norm: str, dropout: float) -> None:
        super().__init__()
        self.return_hidden_layer_feature = False
        widths = [inputs, *hidden]
        self.mlp = nn.ModuleList(
            Perceptron(i, o, activation, norm, dropout) for i, o in zip(widths, hidden, strict=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.mlp:
            x = layer.perceptron(x)
        return x


class DINEncoder(nn.Module):
    """softmax(MLP([q ; k ; q - k ; q * k])) over the first `sequence_length` positions; a narrow query is padded."""

    def __init__(
        self,
        width: int,
        query: int,
        hidden: list[int],
        activation: str = "ReLU",
        norm: str = "",
        dropout: float = 0.0,
        longest: int = 0,
    ) -> None:
        super().__init__()
        self._sequence_dim, self._query_dim, self._max_seq_length = width, query, longest
        self._query_name, self._sequence_name = "x.query", "x.sequence"
        self._sequence_length_name = "x.sequence_length"
        self.mlp = MLP(4 * width, hidden, activation, norm, dropout)
        self.linear = nn.Linear(hidden[-1], 1)

    def forward(self, sequence_embedded: dict[str, Tensor]) -> Tensor:
        query, keys = sequence_embedded["x.query"], sequence_embedded["x.sequence"]
        lengths = sequence_embedded["x.sequence_length"]
        if self._max_seq_length:
            keys, lengths = keys[:, : self._max_seq_length], lengths.clamp(max=self._max_seq_length)
        query = nn.functional.pad(query, (0, self._sequence_dim - self._query_dim))
        q = query[:, None].expand_as(keys)
        scores = self.linear(self.mlp(torch.cat([q, keys, q - keys, q * keys], dim=-1))).squeeze(-1)
        kept = torch.arange(keys.shape[1]) < lengths[:, None]
        weights = torch.where(kept, scores, torch.full_like(scores, -(2.0**31) + 1)).softmax(-1)
        return (weights[..., None] * keys).sum(1)


@pytest.fixture(autouse=True)
def _package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, members in {
        "tzrec": {},
        "tzrec.modules": {},
        "tzrec.modules.activation": {"Dice": Dice},
        "tzrec.modules.sequence": {"DINEncoder": DINEncoder},
        "tzrec.modules.utils": {"Transpose": Transpose},
    }.items():
        module: Any = types.ModuleType(name)
        for key, value in members.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)
    yield
    registry._adapters.pop("tzrec", None)
    sys.modules.pop("mixpol_kernels.drop_in.tzrec", None)


def case(generator: torch.Generator, query: int = 8) -> Case:
    given = histories(generator)

    def call(layer: nn.Module, x: tuple[Tensor, ...]) -> Tensor:
        return layer({"x.query": x[0], "x.sequence": x[1], "x.sequence_length": given["lengths"]})

    return Case((given["target"][:, :query], given["history"]), call, (None, given["mask"]))


OPTIONS: list[dict[str, Any]] = [{}, {"hidden": [12, 5]}, {"query": 5}, {"longest": 20}, {"norm": "batch"}]
# Two norms in a row stay as they are.
FUSED = [(a, o) for a in ("ReLU", "Dice", "Sigmoid") for o in OPTIONS if (a, o) != ("Dice", {"norm": "batch"})]


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("activation", "options"), FUSED, ids=str)
def test_options(activation: str, options: dict[str, Any], train: bool, generator: torch.Generator) -> None:
    layer = DINEncoder(**{"width": 8, "query": 8, "hidden": [16], "activation": activation, **options})
    draw = case
    if "longest" in options:  # the padded positions behind it reach nothing

        def draw(generator: torch.Generator, query: int) -> Case:
            whole = case(generator, query)
            mask = whole.compared[1]
            assert mask is not None
            return Case(whole.inputs, whole.call, (None, mask & (torch.arange(60) < 20)))

    zero = {"linear.bias"}
    check(layer, lambda: draw(generator, options.get("query", 8)), train, zero)


def test_training(generator: torch.Generator) -> None:
    check_training(DINEncoder(8, 8, [16], "Dice"), case(generator), ["linear.bias"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"norm": "layer"}, "LayerNorm"),
        ({"dropout": 0.1}, "drops out"),
        ({"activation": "Dice", "norm": "batch"}, "norm in"),
    ],
)
def test_what_the_op_lacks_stays(options: dict[str, Any], reason: str) -> None:
    report = drop_in.accelerate(DINEncoder(8, 8, [16], **options))
    assert reason in report.left[0].reason
