"""Modules that change after `accelerate`: the framework's own forward computes what the fused form would leave out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import histories
from torch import Tensor, nn

import mixpol_kernels
from mixpol_kernels import drop_in

pytestmark = pytest.mark.filterwarnings("ignore")
Call = Callable[[nn.Module], Tensor]


def fuxictr(generator: torch.Generator) -> tuple[nn.Module, Call, str]:
    layers = pytest.importorskip("fuxictr.pytorch.layers")
    given = histories(generator)
    layer = layers.DIN_Attention(8, [16, 5], "Dice", use_softmax=True)
    return layer, lambda m: m(given["target"], given["history"], given["mask"]), "attention_layer.mlp.0"


def fuxictr_batch_norm(generator: torch.Generator) -> tuple[nn.Module, Call, str]:
    layers = pytest.importorskip("fuxictr.pytorch.layers")
    given = histories(generator)
    layer = layers.DIN_Attention(8, [16], "ReLU", batch_norm=True)
    return layer, lambda m: m(given["target"], given["history"], given["mask"]), "attention_layer.mlp.3"


def fuxictr_heads(generator: torch.Generator) -> tuple[nn.Module, Call, str]:
    layers = pytest.importorskip("fuxictr.pytorch.layers")
    given = histories(generator)
    layer = layers.MultiHeadTargetAttention(8, 12, 2)
    return layer, lambda m: m(given["target"], given["history"], given["mask"]), "W_k"


def deepctr(generator: torch.Generator) -> tuple[nn.Module, Call, str]:
    sequence = pytest.importorskip("deepctr_torch.layers.sequence")
    given = histories(generator)
    layer = sequence.AttentionSequencePoolingLayer((16, 5), "dice", embedding_dim=8)
    with torch.no_grad():
        for p in layer.parameters():
            p.uniform_(-0.5, 0.5)
    lengths = given["lengths"][:, None]
    return layer, lambda m: m(given["target"][:, None], given["history"], lengths), "local_att.dnn.linears.1"


def recbole(generator: torch.Generator) -> tuple[nn.Module, Call, str]:
    layers = pytest.importorskip("recbole.model.layers")
    given = histories(generator)
    layer = layers.SequenceAttLayer(torch.arange(60)[None], (32, 16), "sigmoid", False, False)
    return layer, lambda m: m(given["target"], given["history"], given["lengths"]), "dense"


def rechub(generator: torch.Generator) -> tuple[nn.Module, Call, str]:
    din = pytest.importorskip("torch_rechub.models.ranking.din")
    given = histories(generator)
    return din.ActivationUnit(8, [16]), lambda m: m(given["history"], given["target"]), "attention.mlp.0"


LAYERS = [fuxictr, fuxictr_batch_norm, fuxictr_heads, deepctr, recbole, rechub]
NORMED = [fuxictr, fuxictr_batch_norm, deepctr, rechub]
every_layer = pytest.mark.parametrize("make", LAYERS)


class Adapter(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean(-1, keepdim=True)


def adapt(model: nn.Module, name: str) -> None:
    old = model.get_submodule(name)
    new = Adapter(old.in_features, old.out_features, bias=old.bias is not None)  # type: ignore[arg-type]
    new.load_state_dict(old.state_dict())
    model.set_submodule(name, new)


def hook(model: nn.Module, name: str) -> None:
    model.get_submodule(name).register_forward_hook(lambda m, x, y: y * 2)


def hook_on_a_container(model: nn.Module, name: str) -> None:
    parent = name.rpartition(".")[0] or name
    parent = parent if parent != "local_att.dnn.linears" else "local_att.dnn"
    model.get_submodule(parent).register_forward_pre_hook(lambda m, x: (x[0] * 2, *x[1:]))


def weight_norm(model: nn.Module, name: str) -> None:
    linear = model.get_submodule(name)
    nn.utils.weight_norm(linear)
    with torch.no_grad():
        linear.weight_g.mul_(3)  # type: ignore[operator, union-attr]


def parametrize(model: nn.Module, name: str) -> None:
    nn.utils.parametrizations.weight_norm(model.get_submodule(name))


def quantize(model: nn.Module, name: str) -> None:
    torch.ao.quantization.quantize_dynamic(model, inplace=True)


CHANGES = [adapt, hook, hook_on_a_container, weight_norm, parametrize, quantize]


def gradients(model: nn.Module, out: Tensor) -> list[Tensor | None]:
    if not out.requires_grad:
        return []
    weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return list(torch.autograd.grad((out * weight).sum(), [*model.parameters()], allow_unused=True))


@pytest.mark.parametrize("change", CHANGES)
@every_layer
def test_is_the_stock_layer_with_the_same_change(make: Any, change: Any, generator: torch.Generator) -> None:
    stock, call, name = make(generator)
    fused = copy.deepcopy(stock)
    assert drop_in.accelerate(fused).replaced
    for model in (stock, fused):
        model.eval()
        before = call(model)
        change(model, name)
    got, want = call(fused), call(stock)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    if change not in (parametrize, quantize):
        assert float((want - before).detach().abs().max()) > 1e-3
    for g, w in zip(gradients(fused, got), gradients(stock, want), strict=True):
        if w is not None:
            torch.testing.assert_close(g, w, rtol=1e-3, atol=1e-4 * max(1.0, float(w.abs().max())))


@every_layer
def test_before_accelerate_it_is_left_and_said(make: Any, generator: torch.Generator) -> None:
    for change, words in ((adapt, "Adapter"), (hook, "forward hooks"), (hook_on_a_container, "pre hooks")):
        model, _, name = make(generator)
        change(model, name)
        (left,) = drop_in.accelerate(model).left
        assert words in left.reason


@pytest.mark.parametrize("make", NORMED)
def test_update_bn(make: Any, generator: torch.Generator) -> None:
    """`update_bn` sets momentum to None between forwards."""
    stock, call, _ = make(generator)
    fused = copy.deepcopy(stock)
    drop_in.accelerate(fused)

    class Fed(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, _: Tensor) -> Tensor:
            return call(self.model)

    for model in (stock, fused):
        torch.optim.swa_utils.update_bn([torch.zeros(1)] * 3, Fed(model))
    norms = 0
    for (name, got), want in zip(fused.named_buffers(), stock.buffers(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
        norms += "num_batches" in name and int(got) == 3
    assert norms
    stock.eval(), fused.eval()
    torch.testing.assert_close(call(fused), call(stock), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", NORMED)
def test_synchronised_norms_run_fused_in_one_process(make: Any, generator: torch.Generator) -> None:
    stock, call, _ = make(generator)
    fused = copy.deepcopy(stock)
    drop_in.accelerate(fused)
    fused = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    torch.testing.assert_close(call(fused), call(stock), rtol=1e-4, atol=1e-5)
    assert mixpol_kernels.explain(fused, *_inputs(fused, call)).backend == "cpu"


def _inputs(model: nn.Module, call: Call) -> tuple[Any, ...]:
    seen: list[tuple[Any, ...]] = []
    handle = model.register_forward_pre_hook(lambda m, x: seen.append(x))
    call(model)
    handle.remove()
    return seen[0]


def test_attention_of_another_class_in_the_heads(generator: torch.Generator) -> None:
    layer, call, _ = fuxictr_heads(generator)
    drop_in.accelerate(layer)

    class Mean(nn.Module):
        dropout = None

        def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: Any = None, mask: Any = None) -> tuple[Tensor, None]:
            return v.mean(2, keepdim=True), None

    layer.dot_attention = Mean()
    given = _inputs(layer, call)
    want = layer.W_o(layer.W_v(given[1]).mean(1))
    torch.testing.assert_close(call(layer), want)


def test_is_explained_said_once_and_refused_by_name(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    layer, call, name = fuxictr(generator)
    drop_in.accelerate(layer)
    hook(layer, name)
    explained = mixpol_kernels.explain(layer, *_inputs(layer, call))
    assert explained.backend == "reference"
    assert f"{name} has forward hooks" in explained.reason
    mixpol_kernels.backend._said.clear()
    with caplog.at_level("WARNING", logger="mixpol_kernels"):
        call(layer), call(layer)
    (record,) = caplog.records
    assert f"in this FusedDINAttention {name} has forward hooks" in record.getMessage()
    monkeypatch.setenv("MIXPOL_BACKEND", "cpu")
    with pytest.raises(ValueError, match="backend='cpu' was requested, but in this FusedDINAttention"):
        call(layer)
