"""Damaged runs and experiments: refused in words, and left as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import Command, contents, copy

from mixpol_models.experiments.grid.runner import read_experiment
from mixpol_models.training import train
from mixpol_models.training.checkpoints import load_model, read_checkpoint
from mixpol_models.training.config import TrainConfig


def _without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda checkpoint: {key: value for key, value in checkpoint.items() if key != name}


def _changed(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda checkpoint: checkpoint | {name: value}


def _settings(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    def change(checkpoint: dict[str, Any]) -> Any:
        given = checkpoint["hyper_parameters"]
        return checkpoint | {"hyper_parameters": given | {"config": given["config"] | changes}}

    return change


def _shapes(checkpoint: dict[str, Any]) -> Any:
    state = checkpoint["state_dict"]
    return checkpoint | {"state_dict": {name: value[..., :1].clone() for name, value in state.items()}}


def _moments(checkpoint: dict[str, Any]) -> Any:
    (state,) = checkpoint["optimizer_states"]
    moments = {index: one | {"exp_avg": torch.zeros(7)} for index, one in state["state"].items()}
    return checkpoint | {"optimizer_states": [state | {"state": moments}]}


# Of each: whether it has weights that can still be read.
DAMAGED: dict[str, tuple[bool, Callable[[dict[str, Any]], Any]]] = {
    **{name: (False, _without(name)) for name in ("state_dict", "hyper_parameters", "epoch")},
    **{f"{name} of a list": (False, _changed(name, [])) for name in ("state_dict", "hyper_parameters", "epoch")},
    **{name: (True, _without(name)) for name in ("optimizer_states", "loops", "callbacks", "global_step")},
    "no optimizer": (True, _changed("optimizer_states", [])),
    "two optimizers": (True, _changed("optimizer_states", [{}, {}])),
    "empty loops": (True, _changed("loops", {})),
    "no weights": (False, _changed("state_dict", {})),
    "other shapes": (False, _shapes),
    "other moments": (True, _moments),
    "other widths": (False, _settings(embedding_dim=3)),
    "another class": (False, _settings(backbone="transformer", options={})),
    "unknown settings": (False, _settings(wings=2)),
    "a list": (False, lambda checkpoint: [1, 2]),
    "a tensor": (False, lambda checkpoint: torch.zeros(2)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_misshapen_checkpoint_is_told_in_words(log: Any, trained: Path, tmp_path: Path, name: str) -> None:
    readable, damage = DAMAGED[name]
    folder = copy(trained, tmp_path)
    file = folder / "last.ckpt"
    torch.save(damage(read_checkpoint(file)), file)
    before = contents(folder)
    if not readable:
        with pytest.raises(ValueError, match="is not readable as a checkpoint of `mixpol train`"):
            load_model(file)
    with pytest.raises(ValueError, match=r"last.ckpt is not readable|last.ckpt cannot be gone on from|resume is"):
        train(TrainConfig(epochs=3, batch_size=64, budget=5), log=log, resume=folder, callbacks=[])
    assert contents(folder)[str(file)] == before[str(file)]


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_told_in_words(command: Command, trained: Path, tmp_path: Path, keep: float) -> None:
    folder = copy(trained, tmp_path)
    whole = (folder / "last.ckpt").read_bytes()
    (folder / "last.ckpt").write_bytes(whole[: int(keep * len(whole))])
    said = command("train", "--resume", "copy", "--epochs", "3", status=2).output
    assert "not readable as a checkpoint" in said
    assert len([line for line in said.strip().splitlines() if not line.startswith("data: ")]) == 1


def test_settings_that_are_not_readable_are_told(command: Command, trained: Path, tmp_path: Path) -> None:
    folder = copy(trained, tmp_path)
    for content in (b"", b"- 1\n", b"\xff\xfe\x00", b"epochs: [1\n"):
        (folder / "config.yaml").write_bytes(content)
        assert "config.yaml" in command("train", "--resume", "copy", status=2).output


@pytest.mark.parametrize("content", ["", "name: tiny\n", "- 1\n", "a: [1\n", "fingerprint: x\nwings: 2\n", "\x00"])
def test_a_damaged_experiment_is_told_in_words(tmp_path: Path, content: str) -> None:
    (tmp_path / "experiment.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"experiment.yaml is not readable as the experiment of a store"):
        read_experiment(tmp_path)
