"""The walk over models: what is replaced, what stays, what is refused; and the way back."""

from __future__ import annotations

import copy
import io
import pickle
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixpol_kernels import drop_in
from mixpol_kernels.drop_in import registry

pytest.importorskip("fuxictr")
from fuxictr.pytorch.layers import DIN_Attention, MultiHeadTargetAttention

from mixpol_kernels.drop_in.fuxictr import FusedDINAttention


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleList([DIN_Attention(8, [16], "Dice"), DIN_Attention(8, [16], dropout_rate=0.5)])
        self.heads = MultiHeadTargetAttention(8, 8, 2)
        self.out = nn.Linear(24, 1)

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        parts = [layer(target, history, mask) for layer in (*self.attention, self.heads)]
        return self.out(torch.cat(parts, dim=1))


class Changed(DIN_Attention):
    def forward(self, target_item: Tensor, history_sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        return history_sequence.mean(1)


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    mask = torch.rand(4, 6, generator=generator) > 0.3
    history = torch.randn(4, 6, 8, generator=generator) * mask[..., None]
    return torch.randn(4, 8, generator=generator), history, mask


def test_report() -> None:
    report = drop_in.accelerate(Model())
    assert [r.names for r in report.replaced] == [("attention.0",), ("heads",)]
    assert [(x.names, x.layer) for x in report.left] == [(("attention.1",), "DIN_Attention")]
    text = str(report)
    assert text.splitlines()[0] == "2 replaced, 1 left as they were"
    assert "attention.0: fuxictr DIN_Attention" in text
    assert "since it drops out" in text


def test_parameters_are_the_same_objects() -> None:
    model = Model()
    before, keys = list(model.parameters()), list(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters())
    drop_in.accelerate(model)
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], model.parameters(), strict=True))
    assert isinstance(model.attention[0], DIN_Attention)


def test_checkpoints_go_both_ways(generator: torch.Generator) -> None:
    stock, fused = Model().eval(), Model().eval()
    drop_in.accelerate(fused)
    for a, b in ((stock, fused), (fused, stock)):
        file = io.BytesIO()
        torch.save(a.state_dict(), file)
        file.seek(0)
        b.load_state_dict(torch.load(file, weights_only=True))
        inputs = batch(generator)
        torch.testing.assert_close(b(*inputs), a(*inputs))
        with torch.no_grad():
            for p in fused.parameters():
                p.add_(0.1)


def test_restore(generator: torch.Generator) -> None:
    model, inputs = Model().eval(), batch(generator)
    want = model(*inputs)
    drop_in.accelerate(model)
    assert drop_in.restore(model) == 2
    assert type(model.attention[0]) is DIN_Attention
    assert torch.equal(model(*inputs), want)
    assert drop_in.restore(model) == 0


def test_twice_is_once() -> None:
    model = Model()
    drop_in.accelerate(model)
    again = drop_in.accelerate(model)
    assert not again.replaced
    assert type(model.attention[0]) is FusedDINAttention


def test_copies_and_pickles(generator: torch.Generator) -> None:
    model, inputs = Model().eval(), batch(generator)
    drop_in.accelerate(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.attention[0]) is FusedDINAttention
        assert torch.equal(other(*inputs), model(*inputs))


def test_hooks_stay(generator: torch.Generator) -> None:
    model, seen = Model(), []
    model.attention[0].register_forward_hook(lambda *_: seen.append(1))
    drop_in.accelerate(model)
    model(*batch(generator))
    assert seen == [1]


def test_a_layer_in_two_places_is_replaced_once(generator: torch.Generator) -> None:
    layer = DIN_Attention(8, [16])
    model = nn.ModuleDict({"a": layer, "b": layer})
    report = drop_in.accelerate(model)
    (replaced,) = report.replaced
    assert replaced.names == ("a", "b")
    assert "a and b" in str(report)


def test_trains_compiled(generator: torch.Generator) -> None:
    layer = DIN_Attention(8, [16])
    drop_in.accelerate(layer)
    inputs = batch(generator)
    want = layer(*inputs)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(*inputs), want)


def test_patched(generator: torch.Generator) -> None:
    init = DIN_Attention.__init__
    with drop_in.patched("fuxictr"):
        model = Model()
    assert DIN_Attention.__init__ is init
    assert type(model.attention[0]) is FusedDINAttention
    assert type(model.attention[1]) is DIN_Attention  # it drops out
    assert type(DIN_Attention(8)) is DIN_Attention
    assert drop_in.restore(model) == 2
    with pytest.raises(KeyError), drop_in.patched("fuxictr"):
        raise KeyError
    assert DIN_Attention.__init__ is init


def test_patched_by_an_unknown_name() -> None:
    with (
        pytest.raises(ValueError, match="framework was 'tensorflow'; expected one of 'fuxictr'"),
        drop_in.patched("tensorflow"),
    ):
        pass


def scripted() -> Any:
    return torch.jit.script(nn.Linear(2, 2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: nn.Linear(4, 4), ValueError, "no target-attention layer that is known .*fuxictr DIN_Attention"),
        (scripted, TypeError, "model is scripted"),
        (lambda: nn.Sequential(scripted()), TypeError, "0 in the model is scripted"),
        (lambda: torch.compile(Model()), TypeError, "model is compiled; accelerate it first"),
        (lambda: "model.pt", TypeError, "model is str; expected an nn.Module"),
    ],
    ids=["nothing", "scripted", "scripted part", "compiled", "not a module"],
)
def test_refused(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        drop_in.accelerate(make())


def test_compiled_in_place_is_refused() -> None:
    model = Model()
    model.compile()
    with pytest.raises(TypeError, match="model is compiled"):
        drop_in.accelerate(model)
    assert type(model.attention[0]) is DIN_Attention


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: Changed(8), "it is a subclass of DIN_Attention"),
        (lambda: half_on_meta(), "its parameters are on cpu and meta"),
        (lambda: DIN_Attention(8).to("meta"), "meta"),
        (lambda: DIN_Attention(8).double(), "float64"),
        (lambda: forward_replaced(), "its forward was replaced on the instance"),
        (lambda: mixed_types(), "its parameters have torch.bfloat16 and torch.float32"),
    ],
)
def test_left_alone(change: Any, words: str) -> None:
    layer = change()
    kind = type(layer)
    report = drop_in.accelerate(nn.Sequential(layer))
    assert not report.replaced
    assert re.search(words, report.left[0].reason), report.left[0].reason
    assert type(layer) is kind


def half_on_meta() -> nn.Module:
    layer = DIN_Attention(8)
    layer.attention_layer.mlp[0].to("meta")
    return layer


def mixed_types() -> nn.Module:
    layer = DIN_Attention(8)
    layer.attention_layer.mlp[0].to(torch.bfloat16)
    return layer


def forward_replaced() -> nn.Module:
    layer = DIN_Attention(8)
    layer.forward = lambda *_: None
    return layer


def test_an_unknown_version_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_adapters", {})
    monkeypatch.setattr("importlib.metadata.version", lambda _: "99.0")
    with pytest.warns(UserWarning, match=r"fuxictr 99\.0 was not tested with; its layers look as in 2\.3\.10"):
        registry.adapter("fuxictr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.adapter("fuxictr")  # once


def test_another_signature_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, target_item: Tensor, history_sequence: Tensor, mask: Any = None, bias: Any = None) -> None:
        """Another version's."""

    monkeypatch.setattr(registry, "_adapters", {})
    monkeypatch.setattr(DIN_Attention, "forward", forward)
    with pytest.raises(ImportError, match=r"takes \(self, target_item, history_sequence, mask=None, bias=None\)"):
        drop_in.accelerate(Model())
