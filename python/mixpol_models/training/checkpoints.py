"""Writing, finding, checking and reading checkpoints."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import ModelCheckpoint
from pydantic import ValidationError

from mixpol_models import stopping
from mixpol_models.files import write_atomically
from mixpol_models.training.config import BEST, LAST, METRICS, TrainConfig, checkpoint_of
from mixpol_models.training.module import CTRModule

# What may differ between the run that stopped and the one that goes on.
_FREE = {"data", "epochs", "patience", "accelerator", "backend", "workers", "output"}
_SIZES = ("n_items", "n_users", "n_contexts")
# Of a checkpoint, and of what type: read by anyone, and in addition by a run that goes on.
_PARTS = {"epoch": int, "state_dict": dict, "hyper_parameters": dict}
_TO_RESUME = {"global_step": int, "loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list}


class WholeFiles(TorchCheckpointIO):
    """Writes beside the checkpoint and renames, so that a full disk or a kill leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See `CheckpointIO.save_checkpoint`."""
        buffer = io.BytesIO()  # into memory first: torch's own writer hides what the system said
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())


class _Keep(ModelCheckpoint):
    """Writes name.ckpt in a folder that may have moved before a resume."""

    def __init__(self, folder: Path, name: str, **options: Any) -> None:
        super().__init__(folder, name.removesuffix(".ckpt"), enable_version_counter=False, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved: dict[str, Any] = {name: here(state_dict[name]) for name in paths}
        moved["best_k_models"] = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | moved | {"dirpath": self.dirpath})


class KeepBest(_Keep):
    """best.ckpt: the end of the epoch with the highest validation AUC."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, BEST, monitor="valid/auc", mode="max")


class KeepLast(_Keep):
    """last.ckpt: the end of every epoch.

    Args:
        folder: of the run.
        note: tell `stopping` what is kept.
    """

    def __init__(self, folder: Path, note: bool = False) -> None:
        super().__init__(folder, LAST)
        self.run, self.note = folder, note

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if self.note:
            note_kept(self.run, trainer.current_epoch + 1, trainer.max_epochs)


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, but a resumed run has the patience that it was given. Its name is part of checkpoints."""

    def __init__(self, patience: int) -> None:
        super().__init__("valid/auc", mode="max", patience=patience)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})


def note_kept(folder: Path, done: int, epochs: int | None) -> None:
    """Tells `stopping` how to go on with the run in a folder."""
    stopping.note(f"{folder}/ has the end of epoch {done} of {epochs}", stopping.shell("train", "--resume", folder))


@dataclass(frozen=True)
class Resumption:
    """Where a run goes on.

    Attributes:
        file: the checkpoint.
        done: epochs that it has seen.
        ended: training is over, and only the evaluation is missing.
        checkpoint: what the file holds.
    """

    file: Path
    done: int
    ended: bool
    checkpoint: dict[str, Any]

    def check(self, module: CTRModule, sizes: dict[str, int]) -> None:
        """Whether a module of these table sizes, and its optimizer, can take the checkpoint's state.

        Raises:
            ValueError: they cannot.
        """
        there = self.checkpoint["hyper_parameters"]["sizes"]
        if there != sizes:
            raise ValueError(
                f"resume is {str(self.file)!r}, a run with table sizes {there} there and {sizes} here: give the same "
                "data"
            )
        _load(module, self.checkpoint, self.file)
        _check_optimizer(module, self.checkpoint, self.file)


def find_resume(path: str | Path, config: TrainConfig) -> Resumption:
    """The checkpoint to go on from.

    Args:
        path: a checkpoint, or the folder of a run (its last checkpoint).
        config: of the run that goes on.

    Raises:
        ValueError: not a checkpoint of ours, of another setting, or of a run that has ended.
    """
    file = checkpoint_of(path)
    if config.output and Path(config.output).resolve() != file.parent.resolve():
        raise ValueError(
            f"output is {config.output!r} and resume {str(path)!r}, expected one folder: leave output out, since a run "
            "goes on where it is, beside its best checkpoint"
        )
    checkpoint = read_checkpoint(file)
    _expect(file, checkpoint, _TO_RESUME)
    before = _config(file, checkpoint)
    changed = [
        f"{name} {getattr(before, name)!r} there and {getattr(config, name)!r} here"
        for name in TrainConfig.model_fields
        if name not in _FREE and getattr(before, name) != getattr(config, name)
    ]
    if changed:
        raise ValueError(f"resume is {str(path)!r}, a run with {', '.join(changed)}: give the same settings")
    done = checkpoint["epoch"] + 1
    waited = next((s.get("wait_count", 0) for k, s in checkpoint["callbacks"].items() if k.startswith("EarlyS")), 0)
    told = (file.parent / METRICS).is_file()
    if done > config.epochs or (done == config.epochs and told):
        raise ValueError(
            f"resume is {str(path)!r}, which has {done} epochs, expected fewer than epochs={config.epochs}: "
            f"ask for more, e.g. --epochs {done + 1}"
        )
    if waited >= config.patience and told:
        raise ValueError(
            f"resume is {str(path)!r}, which ended after {waited} epochs without a better validation AUC, expected "
            f"fewer than patience={config.patience}: ask for more, e.g. --patience {waited + 1}"
        )
    return Resumption(file, done, done == config.epochs or waited >= config.patience, checkpoint)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint as it is on disk, tensors and plain values only.

    Raises:
        ValueError: it is not one, not of this package, or not whole.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{file} is not readable as a checkpoint of `mixpol train` ({type(error).__name__}): give another file"
        ) from error
    _expect(file, checkpoint, _PARTS)
    given = checkpoint["hyper_parameters"]
    sizes = given.get("sizes")
    if not isinstance(given.get("config"), dict) or not isinstance(sizes, dict):
        raise _damaged(file, "its settings or table sizes are missing")
    if set(sizes) != set(_SIZES) or not all(isinstance(size, int) and size > 0 for size in sizes.values()):
        raise _damaged(file, f"its table sizes are {sizes}")
    return checkpoint


def load_model(file: Path) -> tuple[CTRModule, int]:
    """The trained module of a checkpoint, on the CPU in evaluation mode, and how many epochs it has seen.

    Raises:
        ValueError: it is not a checkpoint of ours, or its tensors do not fit its settings.
    """
    checkpoint = read_checkpoint(file)
    _config(file, checkpoint)
    try:
        module = CTRModule(**checkpoint["hyper_parameters"])
    except (TypeError, RuntimeError) as error:
        raise _damaged(file, f"no model can be built from its settings: {_line(error)}") from error
    _load(module, checkpoint, file)
    return module.eval(), checkpoint["epoch"] + 1


def _config(file: Path, checkpoint: dict[str, Any]) -> TrainConfig:
    try:
        return TrainConfig(**checkpoint["hyper_parameters"]["config"])
    except (ValidationError, TypeError) as error:
        raise _damaged(file, f"its settings are not those of this version: {_line(error)}") from None


def _load(module: CTRModule, checkpoint: dict[str, Any], file: Path) -> None:
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise _damaged(file, f"its tensors do not fit its settings: {_line(error)}") from None


def _check_optimizer(module: CTRModule, checkpoint: dict[str, Any], file: Path) -> None:
    states = checkpoint["optimizer_states"]
    try:
        optimizer = module.configure_optimizers()
        (state,) = states
        optimizer.load_state_dict(state)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(file, f"its optimizer does not fit its model: {_line(error)}") from None
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                raise _damaged(file, f"its optimizer has {name} {list(value.shape)} for {list(parameter.shape)}")


def _expect(file: Path, checkpoint: Any, parts: dict[str, type]) -> None:
    if not isinstance(checkpoint, dict):
        raise _damaged(file, f"it holds a {type(checkpoint).__name__}")
    for name, kind in parts.items():
        if not isinstance(checkpoint.get(name), kind):
            raise _damaged(file, f"{name!r} is missing or no {kind.__name__}")


def _damaged(file: Path, why: str) -> ValueError:
    return ValueError(f"{file} is not readable as a checkpoint of `mixpol train`: {why}; give another file")


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."
