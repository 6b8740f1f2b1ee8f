"""FuxiCTR's layers, stock against fused: every option of the two layers."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
from parity import Case, check, check_training, histories
from torch import Tensor, nn

from mixpol_kernels import drop_in

pytest.importorskip("fuxictr")
from fuxictr.pytorch.layers import DIN_Attention, MultiHeadTargetAttention


def case_of(generator: torch.Generator, mask: str = "post") -> Case:
    given = histories(generator)
    history, keep = given["history"], given["mask"]
    if mask == "pre":
        history, keep = history.flip(1), keep.flip(1)
    if mask == "none":
        return Case((given["target"], given["given"]), lambda layer, x: layer(*x))
    if mask == "float":
        keep = keep.float()
    # The original gives the padded rows a gradient through its batch statistics; its tables drop it there.
    return Case(
        (given["target"], history), lambda layer, x: layer(*x, keep), (None, keep.bool())
    )  # fmt: skip


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("softmax", [False, True], ids=["raw", "softmax"])
@pytest.mark.parametrize("units", [[16], [12, 5]], ids=str)
@pytest.mark.parametrize("activation", ["ReLU", "Dice", "PReLU", "Sigmoid", "Tanh", "LeakyReLU"])
def test_activations(activation: str, units: list[int], softmax: bool, train: bool, generator: torch.Generator) -> None:
    layer = DIN_Attention(8, units, activation, use_softmax=softmax)
    spread(layer, generator)
    names = [name for name, _ in layer.named_parameters() if name.endswith("bias")]
    check(layer, lambda: case_of(generator), train, names[-1:] if softmax else ())


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("mask", ["pre", "none", "float"])
@pytest.mark.parametrize("activation", ["ReLU", "Dice"])
def test_masks(activation: str, mask: str, train: bool, generator: torch.Generator) -> None:
    layer = DIN_Attention(8, [16], activation)
    spread(layer, generator)
    check(layer, lambda: case_of(generator, mask), train)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "options",
    [{"batch_norm": True}, {"output_activation": "Sigmoid"}, {"batch_norm": True, "attention_units": [8, 8]}],
    ids=str,
)  # fmt: skip
def test_options(options: dict[str, Any], train: bool, generator: torch.Generator) -> None:
    layer = DIN_Attention(8, **{"attention_units": [16], **options})
    spread(layer, generator)
    biases = [name for name, _ in layer.named_parameters() if name.endswith("bias")]
    normalised = train and options.get("batch_norm")  # a batch norm takes the bias in front of it away
    check(layer, lambda: case_of(generator), train, biases[:-1:2] if normalised else ())


@pytest.mark.parametrize("activation", ["ReLU", "Dice"])
def test_training(activation: str, generator: torch.Generator) -> None:
    layer = DIN_Attention(8, [16], activation)
    check_training(layer, case_of(generator))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("options", [{}, {"use_scale": False}, {"use_qkvo": False}, {"attention_dim": 16}], ids=str)
def test_heads(options: dict[str, Any], heads: int, generator: torch.Generator) -> None:
    layer = MultiHeadTargetAttention(8, **{"attention_dim": 8, "num_heads": heads, **options})
    for mask in ("post", "pre", "none", "float"):
        check(layer, partial(case_of, generator, mask), True)
    if list(layer.parameters()):
        check_training(layer, case_of(generator))


def test_empty_history_under_a_softmax_is_the_mean_of_the_padded_rows(generator: torch.Generator) -> None:
    given = histories(generator)
    layer = DIN_Attention(8, [16], use_softmax=True)
    drop_in.accelerate(layer)
    out = layer(given["target"], given["given"], given["mask"])
    torch.testing.assert_close(out[2], given["given"][2].mean(0))


@pytest.mark.parametrize("masked", [True, False])
def test_low_precision_is_promoted_by_a_mask(masked: bool, generator: torch.Generator) -> None:
    given = histories(generator)
    layer = DIN_Attention(8, [16]).to(torch.bfloat16)
    arguments = [given["target"].bfloat16(), given["history"].bfloat16(), *([given["mask"]] if masked else [])]
    want = layer(*arguments)
    drop_in.accelerate(layer)
    got = layer(*arguments)
    assert got.dtype == want.dtype
    assert (got.float() - want.float()).abs().max() < 0.05 * want.abs().max()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dropout_rate": 0.2}, "drops out"),
        ({"hidden_activations": "Dice", "batch_norm": True}, "batch norm in front of a Dice"),
        ({"output_activation": "Sigmoid", "use_softmax": True}, "softmax behind it"),
        ({"output_activation": "ReLU"}, "one output"),
        ({"attention_units": [4, 4, 4, 4]}, "4 hidden layers"),
        ({"attention_units": [4, 4], "hidden_activations": ["ReLU", "Tanh"]}, "different activations"),
    ],
)
def test_what_the_op_lacks_stays(options: dict[str, Any], reason: str, generator: torch.Generator) -> None:
    layer = DIN_Attention(8, **options)
    report = drop_in.accelerate(layer)
    assert not report.replaced
    assert type(layer) is DIN_Attention
    (left,) = report.left
    assert re.search(reason, left.reason), left.reason


def test_different_leaks_stay() -> None:
    report = drop_in.accelerate(DIN_Attention(8, [4, 4], [nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)]))
    assert "different slopes (0.1, 0.2)" in report.left[0].reason


def test_one_leak_is_taken(generator: torch.Generator) -> None:
    check(DIN_Attention(8, [6, 4], [nn.LeakyReLU(0.3), nn.LeakyReLU(0.3)]), lambda: case_of(generator), True)


def test_attention_dropout_stays() -> None:
    report = drop_in.accelerate(MultiHeadTargetAttention(8, 8, 2, dropout_rate=0.1))
    assert "drops out attention weights" in report.left[0].reason


def spread(layer: nn.Module, generator: torch.Generator) -> None:
    """Parameters and running statistics away from their start, where much is 0 and errors would hide."""
    with torch.no_grad():
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if "alpha" in name or "running" in name or name.endswith("bias"):
                noise: Tensor = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(0.5 + noise)
