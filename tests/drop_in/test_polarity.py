"""Polarity in a model that was written without: what its layers compute, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from parity import histories
from torch import Tensor, nn

from mixpol_kernels import drop_in

pytest.importorskip("fuxictr")
from fuxictr.pytorch.layers import DIN_Attention, MultiHeadTargetAttention


def model() -> nn.ModuleDict:
    return nn.ModuleDict({"attention": DIN_Attention(8, [16], "Dice"), "out": nn.Linear(8, 1)})


def polarities(given: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    ids = torch.randint(2, given["mask"].shape, generator=generator)
    return torch.where(given["mask"], ids, 99)  # what stands in pads is not read


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("fusion", ["bias", "tapf", "none"])
def test_is_the_stock_layer_on_fused_tokens(fusion: str, train: bool, generator: torch.Generator) -> None:
    given, polar = histories(generator), model().train(train)
    stock = copy.deepcopy(polar["attention"])
    if train:  # accelerated before or not
        drop_in.accelerate(polar)
    report = drop_in.with_polarity(polar, fusion)
    assert [r.names for r in report.replaced] == [("attention",)]
    layer, ids = polar["attention"], polarities(given, generator)
    if fusion == "tapf":
        nn.init.normal_(layer.polarity_fusion.target_projection.weight)
    with drop_in.given_polarity(polar, ids):
        got = layer(given["target"], given["history"], given["mask"])
    fusing = copy.deepcopy(layer.polarity_fusion)
    fusing.backend = "reference"
    tokens = given["history"]
    if fusion != "none":
        tokens = fusing(given["target"], tokens, ids.where(given["mask"], torch.tensor(0)), mask=given["mask"])
        tokens = tokens * given["mask"][..., None]
    torch.testing.assert_close(got, stock(given["target"], tokens, given["mask"]), rtol=2e-5, atol=2e-5)


def test_every_new_parameter_learns(generator: torch.Generator) -> None:
    given, polar = histories(generator), model()
    drop_in.with_polarity(polar)
    fusing = polar["attention"].polarity_fusion
    nn.init.normal_(fusing.target_projection.weight)
    with drop_in.given_polarity(polar, polarities(given, generator)):
        polar["out"](polar["attention"](given["target"], given["history"], given["mask"])).sum().backward()
    assert {name for name, _ in fusing.named_parameters()} == {
        "polarity_table", "gate.weight", "gate.bias", "target_projection.weight",
    }  # fmt: skip
    assert all(p.grad is not None and p.grad.any() for p in fusing.parameters())


def test_old_weights_load_but_for_the_new_ones() -> None:
    old, polar = model(), model()
    drop_in.with_polarity(polar)
    missing = polar.load_state_dict(old.state_dict(), strict=False).missing_keys
    assert all(name.startswith("attention.polarity_fusion.") for name in missing)
    assert len(missing) == 4


def test_restore_leaves_it(generator: torch.Generator) -> None:
    polar = model()
    drop_in.with_polarity(polar)
    assert drop_in.restore(polar) == 0
    assert "attention.polarity_fusion.polarity_table" in polar.state_dict()


def test_refusals(generator: torch.Generator) -> None:
    given, polar = histories(generator), model()
    arguments = given["target"], given["history"], given["mask"]
    with pytest.raises(ValueError, match="no layer that reads polarity"), drop_in.given_polarity(polar, given["mask"]):
        pass
    drop_in.with_polarity(polar)
    with pytest.raises(RuntimeError, match="no polarity was given"):
        polar["attention"](*arguments)
    with (
        pytest.raises(ValueError, match=r"polarity has shape \[9, 3\]; expected \[9, 60\]"),
        drop_in.given_polarity(polar, torch.zeros(9, 3, dtype=torch.long)),
    ):
        polar["attention"](*arguments)
    with pytest.raises(RuntimeError, match="no polarity was given"):  # an error leaves nothing behind
        polar["attention"](*arguments)
    with pytest.raises(ValueError, match="attention has a polarity already"):
        drop_in.with_polarity(polar)
    other, unknown = nn.Sequential(MultiHeadTargetAttention(8, 8)), model()
    with pytest.raises(ValueError, match="no layer that can take a polarity"):
        drop_in.with_polarity(other)
    with pytest.raises(ValueError, match="fusion was 'gate'"):
        drop_in.with_polarity(unknown, "gate")
    assert type(other[0]) is MultiHeadTargetAttention  # nothing was changed
    assert type(unknown["attention"]) is DIN_Attention
