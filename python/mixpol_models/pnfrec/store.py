"""Finished runs on disk, one JSON file each, so that a comparison goes on where it stopped.

A file has the rank of every test user's target under the user's number in the test part. It names no user and no item:
rows of the data cannot be had from it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixpol_models.files import write_atomically
from mixpol_models.pnfrec.config import PNFRecConfig
from mixpol_models.pnfrec.evaluation import Ranking, metrics
from mixpol_models.pnfrec.training import TrainedRun

_VERSION = 1


@dataclass(frozen=True)
class Record:
    """One finished run.

    Attributes:
        model, seed: which.
        config: settings as in the YAML file.
        digest: of the settings; runs are compared within one.
        rank: [users] of the test part, from 1; 0 where the target was seen before.
        positive: [users], 1 where the target is positive.
        coverage, best_epoch, epochs, seconds, cpu_seconds, seconds_per_epoch: see `TrainedRun` and `Ranking`.
        threads: of torch.
    """

    model: str
    seed: int
    config: dict[str, Any]
    digest: str
    rank: list[int]
    positive: list[int]
    coverage: float
    best_epoch: int
    epochs: int
    seconds: float
    cpu_seconds: float
    seconds_per_epoch: float
    threads: int

    @property
    def ranking(self) -> Ranking:
        """The ranks as arrays."""
        return Ranking(np.array(self.rank, np.int64), np.array(self.positive, bool), self.coverage)

    @property
    def metrics(self) -> dict[str, float]:
        """See `mixpol_models.pnfrec.evaluation.metrics`."""
        return metrics(self.ranking)

    @classmethod
    def of(cls, run: TrainedRun, model: str, seed: int, config: PNFRecConfig, threads: int) -> Record:
        """The record of a run."""
        return cls(
            model=model,
            seed=seed,
            config=config.model_dump(mode="json", exclude={"data"}),
            digest=config.digest(),
            rank=run.ranking.rank.tolist(),
            positive=run.ranking.positive.astype(int).tolist(),
            coverage=run.ranking.coverage,
            best_epoch=run.best_epoch,
            epochs=len(run.validation),
            seconds=round(run.seconds, 2),
            cpu_seconds=round(run.cpu_seconds, 2),
            seconds_per_epoch=round(run.seconds_per_epoch, 3),
            threads=threads,
        )


class Store:
    """A folder of records.

    Args:
        folder: made when the first record is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, model: str, seed: int, config: PNFRecConfig) -> Path:
        """Path of the run's record."""
        return self.folder / f"{model}-seed{seed}-{config.digest()}.json"

    def has(self, model: str, seed: int, config: PNFRecConfig) -> bool:
        """Whether the store has the run's record."""
        return self.path(model, seed, config).is_file()

    def write(self, record: Record, config: PNFRecConfig) -> Path:
        """Keeps a record; a file is there whole or not at all."""
        path = self.path(record.model, record.seed, config)
        text = json.dumps({"version": _VERSION, **asdict(record)}, separators=(",", ":"))
        write_atomically(path, text + "\n")
        return path

    def read(self) -> list[Record]:
        """All records, by model and seed.

        Raises:
            ValueError: there are none, or a file is of another version or not a record.
        """
        records = []
        for path in sorted(self.folder.glob("*-seed*-*.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(content, dict):
                    raise TypeError(f"holds a {type(content).__name__}")
                if content.pop("version") != _VERSION:
                    raise KeyError("version")
                records.append(Record(**content))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}: not a record of version {_VERSION} ({error}): delete it and run again"
                ) from None
        if not records:
            raise ValueError(
                f"{self.folder} has no records, expected some: run `mixpol pnfrec run` with --output first"
            )
        return records
