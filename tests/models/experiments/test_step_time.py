"""The eager layer is the fused layer, and nothing is timed when it is not."""

from __future__ import annotations

import pytest
import torch

from mixpol_kernels.nn import MixedPolarityAttention
from mixpol_models.data import Batch, InteractionLog
from mixpol_models.experiments.eager_layer import EagerAttention
from mixpol_models.experiments.step_time import StepMismatch, step_time
from mixpol_models.training import TrainConfig, prepare

CONFIG = TrainConfig(batch_size=64, budget=10)


@pytest.fixture
def batch(log: InteractionLog) -> Batch:
    return next(iter(prepare(log, CONFIG).test.loader(64)))


@pytest.fixture
def sizes(log: InteractionLog) -> dict[str, int]:
    return {name: getattr(log, name) for name in ("n_items", "n_users", "n_contexts")}


@pytest.mark.parametrize("fusion", ["none", "bias", "tapf"])
@pytest.mark.parametrize("units", [(8,), (8, 4)])
def test_eager_layer(batch: Batch, log: InteractionLog, fusion: str, units: tuple[int, ...]) -> None:
    layer = MixedPolarityAttention(log.n_items, 6, units, fusion, backend="reference").double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    eager = EagerAttention(layer, batch, length=13)
    eager.padding = eager.padding._replace(mask=eager.padding.mask.double())
    target = torch.randn(len(batch), 6, dtype=torch.float64)
    polarity = None if fusion == "none" else batch.polarity
    expected = layer(target, batch.item_ids, polarity, offsets=batch.offsets)
    found = eager(target, batch.item_ids, polarity, offsets=batch.offsets)
    torch.testing.assert_close(found, expected)


def test_padding() -> None:
    empty = torch.zeros(2, dtype=torch.int64)
    batch = Batch(
        empty, empty, empty, torch.zeros(2), torch.tensor([5, 6, 7]),
        torch.tensor([1, 0, 1], dtype=torch.uint8), torch.tensor([0, 1, 3]),
    )  # fmt: skip
    eager = EagerAttention(MixedPolarityAttention(8, 6), batch)
    assert eager.item_ids.tolist() == [[5, 0], [6, 7]]
    assert eager.polarity.tolist() == [[1, 0], [0, 1]]
    assert eager.padding.mask.tolist() == [[1, 0], [1, 1]]


def test_eager_layer_says_what_it_is_written_for(batch: Batch) -> None:
    with pytest.raises(ValueError, match="activation 'tanh' and normalize 'none'; expected one of relu, sigmoid"):
        EagerAttention(MixedPolarityAttention(5, 6, activation="tanh"), batch)
    with pytest.raises(ValueError, match="expected no extra table"):
        EagerAttention(MixedPolarityAttention(5, 6, num_extra=3), batch)


def test_rows(batch: Batch, sizes: dict[str, int]) -> None:
    said: list[str] = []
    rows = step_time(
        batch, sizes, CONFIG, backend="reference", fusions=("tapf",), rounds=3, seconds=0.01, progress=said.append
    )
    assert [(row.fusion, row.sparse_tables) for row in rows] == [("tapf", True), ("tapf", False)]
    assert all(row.ratio_low <= row.ratio <= row.ratio_high for row in rows)
    assert all(row.loss_gap <= 1e-4 for row in rows)
    assert said == ["whole step: fusion tapf, sparse tables", "whole step: fusion tapf, dense tables"]


def test_a_wrong_layer_is_not_timed(batch: Batch, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    right = EagerAttention.forward
    monkeypatch.setattr(EagerAttention, "forward", lambda self, *a, **k: 1.01 * right(self, *a, **k))
    with pytest.raises(StepMismatch):
        step_time(batch, sizes, CONFIG, backend="reference", fusions=("bias",), rounds=3, seconds=0.01)
