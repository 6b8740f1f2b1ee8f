"""The rules of `nn.BatchNorm1d` for running statistics, against that module on the same rows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixpol_kernels.nn import MixedPolarityAttention, TargetAttention

WIDTH, UNITS, LENGTH = 6, 5, 4
KINDS: list[dict[str, Any]] = [{"activation": "dice"}, {"batch_norm": True}, {"activation": "dice", "dropout": 0.3}]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def batches(generator: torch.Generator) -> list[tuple[Tensor, Tensor, Tensor]]:
    shapes = ((3, [4, 0, 2]), (2, [1, 3]), (2, [0, 0]), (4, [4, 4, 1, 0]))
    return [
        (torch.randn(n, WIDTH, generator=generator), torch.randn(n, LENGTH, WIDTH, generator=generator),
         torch.tensor(lengths))
        for n, lengths in shapes
    ]  # fmt: skip


def normed_rows(layer: TargetAttention, target: Tensor, history: Tensor, lengths: Tensor) -> Tensor:
    """What the first norm sees: [rows, UNITS]."""
    t = target[:, None].expand_as(history)
    h = layer.layers[0](torch.cat([t, history, t - history, t * history], dim=-1))
    return h[torch.arange(LENGTH) < lengths[:, None]]


def statistics(norm: nn.BatchNorm1d) -> list[Tensor]:
    return [norm.running_mean, norm.running_var, norm.num_batches_tracked]  # type: ignore[list-item]


@every_kind
@pytest.mark.parametrize("momentum", [None, 0.1, 0.0, 1.0])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_momentum(momentum: float | None, kind: dict[str, Any], backend: str, generator: torch.Generator) -> None:
    """None is the cumulative average. A batch without a token changes nothing."""
    layer = TargetAttention(WIDTH, [UNITS], backend=backend, norm_momentum=momentum, **kind)  # type: ignore[arg-type]
    expected = nn.BatchNorm1d(UNITS, momentum=momentum)
    for target, history, lengths in batches(generator):
        with torch.no_grad():
            seen = normed_rows(layer, target, history, lengths)
        layer(target, history, lengths=lengths)
        if len(seen):
            expected(seen)
    for got, want in zip(statistics(layer.norms[0]), statistics(expected), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@every_kind
@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.parametrize("momentum", [None, 0.1])
def test_fewer_than_two_tokens_leave_the_statistics(
    momentum: float | None, tokens: int, kind: dict[str, Any], generator: torch.Generator
) -> None:
    """They have no unbiased variance. The output is finite all the same."""
    layer = TargetAttention(WIDTH, [UNITS], norm_momentum=momentum, **kind)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.norms[0].running_var.fill_(3)
    before = copy.deepcopy(statistics(layer.norms[0]))
    target, history, _ = batches(generator)[0]
    for _ in range(100):
        assert layer(target, history, lengths=torch.tensor([0, tokens, 0])).isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(statistics(layer.norms[0]), before, strict=True))
    assert float(layer.norms[0].running_var[0]) == 3


@every_kind
def test_update_bn(kind: dict[str, Any], generator: torch.Generator) -> None:
    """`torch.optim.swa_utils.update_bn` is one pass over the data with momentum None."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = TargetAttention(WIDTH, [UNITS], **kind)

        def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            target, history, lengths = batch
            return self.attention(target, history, lengths=lengths)

    model, expected, data = Model(), nn.BatchNorm1d(UNITS, momentum=None), batches(generator)
    with torch.no_grad():
        for batch in data:
            if len(seen := normed_rows(model.attention, *batch)):
                expected(seen)
    model(data[0])
    torch.optim.swa_utils.update_bn([[batch] for batch in data], model)
    for got, want in zip(statistics(model.attention.norms[0]), statistics(expected), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert model.attention.norms[0].momentum == 0.01


@every_kind
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_without_running_statistics(kind: dict[str, Any], train: bool, generator: torch.Generator) -> None:
    """The batch's own, in evaluation too."""
    layer = TargetAttention(WIDTH, [UNITS], **kind)
    other = copy.deepcopy(layer)
    other.norms[0] = nn.BatchNorm1d(UNITS, 1e-9, affine=False, track_running_stats=False)
    target, history, lengths = batches(generator)[0]
    torch.manual_seed(5)
    want = layer(target, history, lengths=lengths) if train or not layer.dropout else None
    other.train(train)
    torch.manual_seed(5)
    got = other(target, history, lengths=lengths)
    if want is not None:
        torch.testing.assert_close(got, want)
    with torch.no_grad():
        torch.manual_seed(5)
        torch.testing.assert_close(other(target, history, lengths=lengths), got.detach())
    assert other.norms[0].running_mean is None


def test_a_norm_that_stopped_tracking(generator: torch.Generator) -> None:
    layer = TargetAttention(WIDTH, [UNITS], "dice")
    layer.norms[0].track_running_stats = False
    before = copy.deepcopy(statistics(layer.norms[0]))
    target, history, lengths = batches(generator)[0]
    layer(target, history, lengths=lengths)
    assert all(torch.equal(a, b) for a, b in zip(statistics(layer.norms[0]), before, strict=True))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_sync_batch_norm_in_one_process_is_batch_norm(train: bool, generator: torch.Generator) -> None:
    layer = MixedPolarityAttention(20, WIDTH, [UNITS], activation="dice", backend="cpu").train(train)
    other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    assert type(other.attention.norms[0]) is nn.SyncBatchNorm
    target, _, lengths = batches(generator)[0]
    ids, polarity = (torch.randint(n, (3, LENGTH), generator=generator) for n in (20, 2))
    found = [m(target, ids, polarity, lengths=lengths) for m in (layer, other)]
    assert torch.equal(*found)
    for got, want in zip(other.buffers(), layer.buffers(), strict=True):
        assert torch.equal(got, want)
