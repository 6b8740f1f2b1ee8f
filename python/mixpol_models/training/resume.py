"""Settings of the run that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixpol_models.configuration import read
from mixpol_models.training.config import CONFIG, checkpoint_of


def saved_settings(resume: str | Path) -> dict[str, Any]:
    """The settings of the run that a checkpoint or a run's folder is of, but for its place.

    Raises:
        ValueError: there is no checkpoint, or what is there is not readable.
    """
    file = checkpoint_of(resume)
    if (file.parent / CONFIG).is_file():
        settings = read(file.parent / CONFIG)
    else:  # a checkpoint that was moved
        from mixpol_models.training.checkpoints import read_checkpoint

        settings = read_checkpoint(file)["hyper_parameters"]["config"]
    if not settings:
        raise ValueError(f"{file.parent / CONFIG} is empty, expected the settings of the run: give them with --config")
    return settings | {"output": None}
