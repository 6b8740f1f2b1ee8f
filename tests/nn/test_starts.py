"""Built on the meta device: what `to_empty` leaves is garbage; a checkpoint or `reset_parameters` mends all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mixpol_kernels.nn import (
    MixedPolarityAttention,
    MultiHeadTargetAttention,
    PolarityEmbedding,
    PolarityFusion,
    TargetAttention,
)

MAKES: dict[str, Callable[[], nn.Module]] = {
    "TargetAttention, Dice": lambda: TargetAttention(8, [6, 4], "dice", norm_affine=True),
    "TargetAttention, PReLU": lambda: TargetAttention(8, [6], "prelu"),
    "TargetAttention, Dice of a row": lambda: TargetAttention(8, [6], "dice_row", batch_norm=True),
    "PolarityFusion": lambda: PolarityFusion(8, signs=(-2, 0.5), num_extra=3, gate_inputs="full"),
    "PolarityFusion, bias": lambda: PolarityFusion(8, "bias", signs=(-2, 0.5)),
    "PolarityEmbedding": lambda: PolarityEmbedding(50, 8, num_extra=3),
    "MultiHeadTargetAttention": lambda: MultiHeadTargetAttention(8, num_heads=2),
    "MixedPolarityAttention": lambda: MixedPolarityAttention(50, 8, [6], activation="dice", signs=(-3, 1)),
}
every_module = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


def on_meta_and_back(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        layer = make()
    repr(layer)
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            tensor.fill_(77)
    return layer


@every_module
def test_a_checkpoint_fills_everything(make: Callable[[], nn.Module]) -> None:
    saved, layer = make(), on_meta_and_back(make)
    layer.load_state_dict(saved.state_dict())
    for (name, got), want in zip(
        (*layer.named_parameters(), *layer.named_buffers()), (*saved.parameters(), *saved.buffers()), strict=True
    ):
        assert torch.equal(got, want), name


@pytest.mark.parametrize("whole", [True, False], ids=["at once", "each"])
@every_module
def test_reset_parameters_starts_again(make: Callable[[], nn.Module], whole: bool) -> None:
    """Called on the layer, or on each module that holds tensors, parents first, as FSDP does."""
    layer, fresh, another = on_meta_and_back(make), make(), make().state_dict()
    for module in [layer] if whole else layer.modules():
        if whole or [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            module.reset_parameters()
    for name, want in fresh.state_dict().items():
        got = layer.state_dict()[name]
        if torch.equal(want, another[name]):  # what starts as a constant, and signs
            assert torch.equal(got, want), name
        else:
            assert got.unique().numel() == got.numel(), name
            assert float(got.abs().max()) < 3, name


def test_what_starts_as_it_does_not_by_pytorch() -> None:
    layer = MixedPolarityAttention(2000, 16, [8], activation="prelu")
    nn.init.ones_(layer.fusion.target_projection.weight)  # type: ignore[union-attr]
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert not layer.fusion.target_projection.weight.any()  # type: ignore[union-attr]
    assert float(layer.item_embedding.weight.std()) == pytest.approx(0.25, rel=0.05)
    assert layer.attention.slopes[0].tolist() == [0.25] * 8
    assert isinstance(layer.item_embedding, nn.Embedding)
    assert isinstance(layer.fusion.target_projection, nn.Linear)


def test_signs_are_saved() -> None:
    saved, layer = PolarityFusion(4, n_polarity=3, signs=(-2, 0, 0.5)), PolarityFusion(4, n_polarity=3)
    layer.load_state_dict(saved.state_dict())
    assert layer.sign.tolist() == [-2, 0, 0.5]
    assert "sign" not in dict(layer.named_parameters())


@pytest.mark.parametrize("options", [{}, {"assign": True}, {"strict": False}], ids=str)
def test_a_checkpoint_without_signs_means_those_of_the_module(options: dict[str, Any]) -> None:
    for prefix, make in (
        ("sign", lambda: PolarityFusion(4, signs=(-2, 0.5))),
        ("fusion.sign", lambda: MixedPolarityAttention(9, 4, [3], signs=(-2, 0.5))),
    ):
        state = make().state_dict()
        del state[prefix]
        layer = on_meta_and_back(make)
        assert str(layer.load_state_dict(state, **options)) == "<All keys matched successfully>"
        assert layer.state_dict()[prefix].tolist() == [-2, 0.5]
        assert prefix not in state


@pytest.mark.parametrize("layout", ["lengths", "mask", "offsets", ""])
def test_forward_on_the_meta_device(layout: str) -> None:
    """Shapes, where there are any without values; batch statistics say that there are none."""
    where = {
        "lengths": torch.zeros(2, dtype=torch.int64, device="meta"),
        "mask": torch.zeros(2, 3, device="meta"),
        "offsets": torch.zeros(3, dtype=torch.int64, device="meta"),
    }
    given = {layout: where[layout]} if layout else {}
    target, history = (
        torch.zeros(2, 8, device="meta"),
        torch.zeros(*((6,) if layout == "offsets" else (2, 3)), 8, device="meta"),
    )
    for make in (MAKES["TargetAttention, Dice"], MAKES["TargetAttention, PReLU"], MAKES["MultiHeadTargetAttention"]):
        with torch.device("meta"):
            layer = make()
        assert layer.eval()(target, history, **given).shape == (2, 8)
    with torch.device("meta"):
        layer = TargetAttention(8, [6], "dice")
    with pytest.raises(NotImplementedError, match=r"target is on the meta device.*\.eval\(\) the layer"):
        layer(target, history, **given)
