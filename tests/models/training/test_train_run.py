"""Whole runs on a small log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from mixpol_models.data import InteractionLog, synthetic_log
from mixpol_models.data.locks import locked
from mixpol_models.training import TrainConfig, train
from mixpol_models.training.checkpoints import load_model, read_checkpoint
from mixpol_models.training.preparation import prepare

Make = Callable[..., TrainConfig]


def parameters(file: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(file)["state_dict"]


def assert_same(first: Path, second: Path) -> None:
    a, b = parameters(first), parameters(second)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_a_run_leaves_what_it_promises(log: InteractionLog, config: Make) -> None:
    settings = config(fusion="tapf")
    result = train(settings, log=log, callbacks=[])
    assert {"best.ckpt", "last.ckpt", "config.yaml", "logs"} <= {p.name for p in settings.folder.iterdir()}
    assert result.test.examples == len(result.test_logit)
    assert 0 < result.test.auc < 1
    assert result.epochs == 2
    assert 1 <= result.best_epoch <= 2
    model, epochs = load_model(result.checkpoint)
    assert epochs == result.best_epoch
    assert not model.training


def test_a_second_run_into_a_folder_is_refused(log: InteractionLog, config: Make, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked(folder, "mixpol train"), pytest.raises(RuntimeError, match="written by another `mixpol train`"):
        train(config(), log=log, callbacks=[])
    assert not (folder / "config.yaml").exists()


def test_the_best_epoch_is_kept(log: InteractionLog, config: Make, tmp_path: Path) -> None:
    """At a learning rate that only does damage, the first epoch is the best, and patience ends the run."""
    settings = config(epochs=6, learning_rate=0.5, patience=1)
    result = train(settings, log=log, callbacks=[])
    assert result.epochs < 6
    assert result.best_epoch == result.epochs - 1
    assert read_checkpoint(settings.folder / "last.ckpt")["epoch"] + 1 == result.epochs


def test_same_seed_same_bits(log: InteractionLog, config: Make, tmp_path: Path) -> None:
    results = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        settings = config(fusion="tapf", dropout=0.2, seed=seed, epochs=1, output=str(tmp_path / name))
        torch.manual_seed(len(results))
        results.append(train(settings, log=log, callbacks=[]))
    assert np.array_equal(results[0].test_logit, results[1].test_logit)
    assert not np.array_equal(results[0].test_logit, results[2].test_logit)
    assert_same(tmp_path / "a" / "last.ckpt", tmp_path / "b" / "last.ckpt")


@pytest.mark.parametrize("sparse", [True, False])
def test_resume_is_exact(log: InteractionLog, config: Make, tmp_path: Path, sparse: bool) -> None:
    common = {"fusion": "tapf", "dropout": 0.2, "sparse_tables": sparse, "patience": 9}
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    once = train(config(**common, epochs=3, output=whole), log=log, callbacks=[])
    train(config(**common, epochs=1, output=parts), log=log, callbacks=[])
    again = train(config(**common, epochs=3, output=parts), log=log, resume=parts, callbacks=[])
    assert_same(Path(whole, "last.ckpt"), Path(parts, "last.ckpt"))
    assert np.array_equal(once.test_logit, again.test_logit)
    assert again.epochs == 3


def test_the_best_epoch_survives_a_resume_in_a_moved_folder(log: InteractionLog, config: Make, tmp_path: Path) -> None:
    """Epochs that only do damage leave the best of before the move."""
    before, after = tmp_path / "before", tmp_path / "after"
    harm = {"learning_rate": 0.5, "patience": 9}
    first = train(config(**harm, epochs=2, output=str(before)), log=log, callbacks=[])
    best = parameters(before / "best.ckpt")
    before.rename(after)
    second = train(config(**harm, epochs=3, output=None), log=log, resume=after, callbacks=[])
    assert second.checkpoint.parent == after
    if second.valid.auc == first.valid.auc:
        assert all(torch.equal(best[k], v) for k, v in parameters(after / "best.ckpt").items())
    assert second.valid.auc >= first.valid.auc


def test_resume_refuses_what_does_not_fit(log: InteractionLog, config: Make, tmp_path: Path) -> None:
    settings = config(epochs=1)
    train(settings, log=log, callbacks=[])
    folder = settings.folder
    with pytest.raises(ValueError, match=r"which has 1 epochs, expected fewer than epochs=1"):
        train(settings, log=log, resume=folder, callbacks=[])
    with pytest.raises(ValueError, match="expected one folder: leave output out"):
        train(config(epochs=2, output=str(tmp_path / "other")), log=log, resume=folder, callbacks=[])
    with pytest.raises(ValueError, match=r"budget 10 there and 9 here: give the same settings"):
        train(config(epochs=2, budget=9), log=log, resume=folder, callbacks=[])
    with pytest.raises(ValueError, match="table sizes"):
        train(config(epochs=2), log=synthetic_log(n_users=90), resume=folder, callbacks=[])
    with pytest.raises(ValueError, match="there is no checkpoint"):
        train(config(epochs=2, output=None), log=log, resume=tmp_path / "nowhere", callbacks=[])
    other = tmp_path / "other.ckpt"
    torch.save({"weights": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match="not readable as a checkpoint"):
        train(config(epochs=2, output=None), log=log, resume=other, callbacks=[])


def test_bf16(log: InteractionLog, config: Make) -> None:
    result = train(config(fusion="tapf", precision="bf16", accelerator="cpu"), log=log, callbacks=[])
    assert np.isfinite(result.test_logit).all()
    assert all(p.dtype == torch.float32 for p in parameters(result.checkpoint).values())


def test_an_empty_split_is_told(log: InteractionLog, config: Make) -> None:
    frame = log.frame.filter(pl.col("split") != "test")
    with pytest.raises(ValueError, match="the test split has no examples"):
        train(config(), log=replace(log, frame=frame), callbacks=[])


@pytest.mark.slow
def test_the_planted_polarity_effect_is_learned(config: Make) -> None:
    """A skip lowers the odds of its whole group: marked negatives help, unmarked ones mislead."""
    log = synthetic_log(seed=1, n_users=1500, n_items=60, n_groups=6, mean_length=30.0)
    found = {
        (sequence, fusion): train(
            config(sequence=sequence, fusion=fusion, epochs=4, batch_size=256, budget=50),
            log=log,
            callbacks=[],
            force=True,
        ).test.auc
        for sequence, fusion in (("positive", "none"), ("mixed", "none"), ("mixed", "bias"))
    }
    assert found["mixed", "bias"] > found["positive", "none"] + 0.015
    assert found["positive", "none"] > found["mixed", "none"] + 0.015


def test_without_validation_rows_the_last_epoch_is_kept(log: InteractionLog, config: Make) -> None:
    """Where epochs only do damage the best would be the first; nothing can tell it, so the last stays."""
    frame = log.frame.filter(pl.col("split") != "valid")
    settings = config(epochs=3, learning_rate=0.5, patience=1)
    result = train(settings, log=replace(log, frame=frame), callbacks=[])
    assert result.valid is None
    assert result.epochs == result.best_epoch == 3
    assert "no validation rows" in result.kept
    assert result.checkpoint.name == "last.ckpt"
    assert not (settings.folder / "best.ckpt").exists()


def test_prepared_examples_take_the_log_s_place(log: InteractionLog, config: Make, tmp_path: Path) -> None:
    settings = config(epochs=1)
    once = train(settings, log=log, callbacks=[])
    again = train(settings, examples=prepare(log, settings), callbacks=[], force=True)
    assert np.array_equal(once.test_logit, again.test_logit)
