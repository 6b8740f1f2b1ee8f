"""Drop-ins on a GPU that is faked: the chooser says which layers run fused there, in which dtype, and why not."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import faked
import pytest
import torch
from torch import nn

from mixpol_kernels import backend as backends
from mixpol_kernels import drop_in, explain


def fuxictr(activation: str = "ReLU") -> nn.Module:
    return framework("fuxictr.pytorch.layers").DIN_Attention(8, [16], activation)


def framework(module: str) -> Any:
    pytest.importorskip(module)
    return importlib.import_module(module)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "fuxictr": fuxictr,
    "fuxictr heads": lambda: framework("fuxictr.pytorch.layers").MultiHeadTargetAttention(8, 8, 2),
    "deepctr_torch": lambda: framework("deepctr_torch.layers.sequence").AttentionSequencePoolingLayer(
        (16,), "relu", embedding_dim=8
    ),
    "recbole": lambda: framework("recbole.model.layers").SequenceAttLayer(torch.arange(60)[None], (32, 16)),
    "torch_rechub": lambda: framework("torch_rechub.models.ranking.din").ActivationUnit(8, [16], "relu"),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def moved(layer: nn.Module) -> nn.Module:
    """In evaluation: a norm there trains on statistics, which are an op of their own. Autograd has no GPU to ask."""
    return faked.moved(layer.eval().requires_grad_(False))


@pytest.mark.filterwarnings("ignore")
@every_layer
def test_accelerated(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make()
    faked.with_triton(monkeypatch)
    with faked.gpu():
        report = drop_in.accelerate(moved(layer))
    (replaced,) = report.replaced
    assert (replaced.backend, replaced.note) == ("triton", "")
    assert ", by triton" in str(report)


@pytest.mark.filterwarnings("ignore")
@every_layer
def test_left_where_no_kernel_takes_it(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make()
    faked.with_triton(monkeypatch, refuses=lambda *_, **__: "it takes smaller ones")
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    with faked.gpu():
        report = drop_in.accelerate(moved(layer))
    assert not report.replaced
    (left,) = report.left
    assert "by triton: it takes smaller ones" in left.reason


def only(*dtypes: torch.dtype) -> Callable[..., str]:
    return lambda like, *_, **__: "" if like.dtype in dtypes else f"it has none for {like.dtype}"


def test_low_precisions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that kernels take under autocast is accelerated for that; else its own forward runs."""
    layer = fuxictr().eval()
    faked.with_triton(monkeypatch, refuses=only(torch.bfloat16))
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    with faked.gpu():
        report = drop_in.accelerate(moved(layer))
    (replaced,) = report.replaced
    assert replaced.note.startswith(
        "under autocast to bfloat16; in float32 its own forward runs, since target_attention"
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["fuxictr", "fuxictr heads", "deepctr_torch", "recbole", "torch_rechub"])
def test_half_kernels_under_autocast(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LAYERS[name]()
    faked.with_triton(monkeypatch)
    with faked.gpu():
        drop_in.accelerate(moved(layer))
    with faked.gpu(dtype):
        faked.moved(layer)
        target, history = torch.empty(2, 8, device="cuda"), torch.empty(2, 5, 8, device="cuda")
        calls: dict[str, tuple[Any, ...]] = {
            "deepctr_torch": (target.unsqueeze(1), history, torch.empty(2, 1, dtype=torch.int64, device="cuda")),
            "recbole": (target, history, torch.empty(2, dtype=torch.int64, device="cuda")),
            "torch_rechub": (history, target),
        }
        found = explain(layer, *calls.get(name, (target, history)))
    words = str(dtype).removeprefix("torch.")
    assert found.backend == "triton"
    assert found.products == f"{words} operands, summed in float32"
    assert f"computed in {words}, since the triton kernels multiply in it" in found.autocast


def test_dice_says_what_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the statistics have kernels the layer is fused in training too; where not, its own forward trains."""
    layer = fuxictr("Dice")
    faked.with_triton(monkeypatch)
    there = "triton" in backends.KERNELS["dice_attention"]
    with faked.gpu():
        (replaced,) = drop_in.accelerate(faked.moved(layer)).replaced
    assert replaced.backend == "triton"
    if there:
        assert replaced.note == ""
    else:
        assert replaced.note.startswith("in training its own forward runs, since dice_attention by triton: ")


def test_the_own_forward_runs_where_no_kernel_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, generator: torch.Generator
) -> None:
    """A layer that was moved after it was accelerated: the framework's numbers, one warning, and the way back."""
    layer = fuxictr()
    inputs = torch.randn(3, 8, generator=generator), torch.randn(3, 5, 8, generator=generator)
    want = layer(*inputs)
    drop_in.accelerate(layer)
    monkeypatch.setattr(backends, "_said", set())
    with monkeypatch.context() as gone:
        gone.setattr(backends.library, "reason", "not built")
        with caplog.at_level("WARNING", logger="mixpol_kernels"):
            for _ in range(2):
                assert torch.equal(layer(*inputs), want)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert (
        "in this FusedDINAttention target_attention by cpu: the compiled library is not loaded" in record.getMessage()
    )
    fused = layer(*inputs)
    assert not torch.equal(fused, want)
    torch.testing.assert_close(fused, want)


def test_moved_after_it_was_accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the CPU to a GPU: what runs there is chosen there."""
    layer = fuxictr()
    assert drop_in.accelerate(layer).replaced[0].backend == "cpu"
    faked.with_triton(monkeypatch)
    with faked.gpu():
        faked.moved(layer)
        found = explain(layer, torch.empty(2, 8, device="cuda"), torch.empty(2, 5, 8, device="cuda"))
    assert found.backend == "triton"
