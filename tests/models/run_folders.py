"""Arguments of small runs, and their folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

RUN = ["train", "--data", "synthetic", "--epochs", "1", "--batch-size", "64", "--budget", "5"]
PLANTED: dict[str, Any] = {
    "name": "tiny",
    "planted": {"n_users": 30, "length": 10},
    "grid": {"seed": [0]},
    "train": {"budget": 4, "epochs": 1, "batch_size": 128, "embedding_dim": 4, "attention_units": [4]},
    "resamples": 20,
    "strata_resamples": 20,
}
Command = Callable[..., Result]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def copy(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))
