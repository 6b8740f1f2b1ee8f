"""Two processes on the CPU must take the steps of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.environments import LightningEnvironment

from mixpol_models.data import InteractionLog
from mixpol_models.data.examples import EpochSampler
from mixpol_models.training import TrainConfig, train
from mixpol_models.training.distributed import PartSampler, SpawnedDDP, check_processes

Make = Callable[..., TrainConfig]


def losses(folder: Path) -> np.ndarray:
    return pl.read_csv(folder / "logs" / "version_0" / "metrics.csv")["train/loss"].drop_nulls().to_numpy()


@pytest.mark.slow
def test_two_processes_follow_the_loss_of_one(log: InteractionLog, config: Make, tmp_path: Path) -> None:
    """With sparse table gradients, which gloo adds up. A batch that does not divide loses one example."""
    common = {"fusion": "tapf", "batch_size": 16, "epochs": 1, "accelerator": "cpu", "sparse_tables": True}
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        found[processes] = (
            train(config(**common, output=str(folder)), log=log, callbacks=[], processes=processes),
            losses(folder),
        )
    (one, curve), (two, curve_of_two) = found[1], found[2]
    assert len(curve) >= 3
    assert curve_of_two == pytest.approx(curve, rel=2e-3)
    assert two.epochs == one.epochs == 1
    assert two.test_logit == pytest.approx(one.test_logit, abs=0.05)


@pytest.mark.parametrize("n", [32, 33, 37, 40])
def test_parts_make_the_batches(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    monkeypatch.setattr(dist, "is_initialized", lambda: True)

    def batches() -> EpochSampler:
        return EpochSampler(n, 8, shuffle=True, seed=4, drop_last=False)

    parts = []
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        sampler = PartSampler(batches(), 3)
        sampler.set_epoch(2)
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler)
    whole = batches()
    whole.set_epoch(2)
    wanted = [set(batch[: len(batch) // 3 * 3].tolist()) for batch in whole if len(batch) >= 3]
    for pieces, batch in zip(zip(*parts, strict=True), wanted, strict=True):
        assert len({len(piece) for piece in pieces}) == 1
        assert set(np.concatenate(pieces).tolist()) == batch


def test_what_cannot_work_is_refused(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="processes is 0, expected 1 to batch_size=128"):
        check_processes(config(), 0)
    with pytest.raises(ValueError, match="NCCL does not add sparse gradients up: set sparse_tables to false"):
        check_processes(config(accelerator="gpu"), 2)
    check_processes(config(accelerator="gpu", sparse_tables=False), 2)


def test_the_process_group_ends_with_the_training(tmp_path: Path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    strategy = SpawnedDDP(CPUAccelerator(), cluster_environment=LightningEnvironment(), process_group_backend="gloo")
    strategy.teardown()
    assert not dist.is_initialized()
    strategy.teardown()
