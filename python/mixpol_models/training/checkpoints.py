"""Finding, checking and reading checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from mixpol_models.training.config import TrainConfig
from mixpol_models.training.module import CTRModule

BEST, LAST = "best.ckpt", "last.ckpt"
# What may differ between the run that stopped and the one that goes on.
_FREE = {"data", "epochs", "patience", "accelerator", "backend", "workers", "output"}


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
    """last.ckpt: the end of every epoch."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, LAST)


def find_resume(path: str | Path, config: TrainConfig, sizes: dict[str, int]) -> tuple[Path, int]:
    """The checkpoint to go on from, and how many epochs it has seen.

    Args:
        path: a checkpoint, or the folder of a run (its last checkpoint).
        config, sizes: of the run that goes on.

    Raises:
        ValueError: not a checkpoint of ours, of another model or setting, or already trained that far.
    """
    file = Path(path) / LAST if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"resume is {str(path)!r}, where there is no checkpoint; expected a file or a run's folder")
    if config.output and Path(config.output).resolve() != file.parent.resolve():
        raise ValueError(
            f"output is {config.output!r} and resume {str(path)!r}, expected one folder: leave output out, since a run "
            "goes on where it is, beside its best checkpoint"
        )
    checkpoint = read_checkpoint(file)
    before = TrainConfig(**checkpoint["hyper_parameters"]["config"])
    changed = [
        f"{name} {getattr(before, name)!r} there and {getattr(config, name)!r} here"
        for name in TrainConfig.model_fields
        if name not in _FREE and getattr(before, name) != getattr(config, name)
    ]
    if checkpoint["hyper_parameters"]["sizes"] != sizes:
        changed.append(f"table sizes {checkpoint['hyper_parameters']['sizes']} there and {sizes} here")
    if changed:
        raise ValueError(f"resume is {str(path)!r}, a run with {', '.join(changed)}: give the same settings")
    done = checkpoint["epoch"] + 1
    if done >= config.epochs:
        raise ValueError(
            f"resume is {str(path)!r}, which has {done} epochs, expected fewer than epochs={config.epochs}: "
            f"ask for more, e.g. --epochs {done + 1}"
        )
    return file, done


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint as it is on disk, tensors and plain values only.

    Raises:
        ValueError: it is not one, or not of this package.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        checkpoint["hyper_parameters"]["config"], checkpoint["state_dict"]
    except Exception as error:
        raise ValueError(
            f"{file} is not readable as a checkpoint of `mixpol train` ({type(error).__name__}): give another file"
        ) from error
    return checkpoint


def load_model(file: Path) -> tuple[CTRModule, int]:
    """The trained module of a checkpoint, on the CPU in evaluation mode, and how many epochs it has seen."""
    checkpoint = read_checkpoint(file)
    module = CTRModule(**checkpoint["hyper_parameters"])
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval(), checkpoint["epoch"] + 1
