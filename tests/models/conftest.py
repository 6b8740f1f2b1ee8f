"""`mixpol` run in this process, and the folder of a small run, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from mixpol_models import cli, stopping
from mixpol_models.data import synthetic_log
from mixpol_models.training import train
from mixpol_models.training.config import TrainConfig

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def log() -> Any:
    return synthetic_log(n_users=60, n_items=30, n_groups=3, mean_length=10.0)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: Any) -> Command:
    """Runs `mixpol` in this process, in a folder of the test."""
    monkeypatch.setattr("mixpol_models.data.synthetic.synthetic_log", lambda: log)
    monkeypatch.chdir(tmp_path)
    for name in ("kept", "command"):
        monkeypatch.setattr(stopping._Watch, name, "")

    def call(*arguments: str, status: int = 0) -> Result:
        # Wide, so that no message is wrapped.
        done = CliRunner(env={"COLUMNS": "400", "NO_COLOR": "1", "TERM": "dumb"}).invoke(cli.app, list(arguments))
        assert done.exit_code == status, (done.output, done.exception)
        return done

    return call


@pytest.fixture(scope="module")
def trained(log: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs: copy it to write to it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(TrainConfig(epochs=2, batch_size=64, budget=5, output=str(folder)), log=log, callbacks=[])
    return folder
