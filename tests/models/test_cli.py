"""The `mixpol` command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from mixpol_models import cli
from mixpol_models.training import TrainConfig, load_config

QUICK = ["--data", "synthetic", "--epochs", "1", "--batch-size", "4096", "--budget", "5"]


def run(*arguments: str) -> Result:
    # Wide, so that no message is wrapped.
    return CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}).invoke(cli.app, list(arguments))


def test_help_is_quick_and_needs_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from mixpol_models import cli\n"
        "heavy = {'torch', 'lightning', 'polars', 'matplotlib', 'pydantic'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [(), ("train",), ("demo",), ("data",), ("data", "get"), ("data", "show")])
def test_help(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_fits_100_columns() -> None:
    result = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(cli.app, ["train", "--help"])
    assert max(map(len, result.output.splitlines())) <= 100
    assert "…" not in result.output


def test_a_backbone_brings_the_settings_of_its_file() -> None:
    named = run("train", "--print-config", "--backbone", "din_action")
    assert named.output == run("train", "--print-config", "--config", "din_action").output
    assert "fusion: none" in named.output
    assert "fusion: bias" in run("train", "--print-config", "--backbone", "din_action", "--fusion", "bias").output


def test_print_config_round_trip(tmp_path: Path) -> None:
    result = run("train", "--print-config", "--fusion", "bias", "--budget", "9", "--no-user-embedding")
    assert result.exit_code == 0
    file = tmp_path / "a.yaml"
    file.write_text(result.output)
    assert load_config(file) == TrainConfig(fusion="bias", budget=9, user_embedding=False)
    again = run("train", "--print-config", "--config", str(file), "--budget", "8")
    file.write_text(again.output)
    assert load_config(file) == TrainConfig(fusion="bias", budget=8, user_embedding=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budget", "0"), "budget is 0, expected greater than or equal to 1"),
        (("--config", "nowhere.yaml"), "config is 'nowhere.yaml', where there is no file"),
        (("--sequence", "positive", "--negative-share", "0.5"), "negative_share is 0.5"),
        (("--precision", "fp16", "--accelerator", "cpu"), "take 'bf16'"),
        (("--data", "nowhere"), "nowhere"),
        ((*QUICK, "--resume", "nowhere"), "resume is 'nowhere', where there is no checkpoint"),
    ],
)
def test_mistakes_get_a_message_and_no_traceback(arguments: tuple[str, ...], words: str) -> None:
    result = run("train", *arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


def test_unknown_yaml_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("fusoin: bias\n")
    result = run("train", "--config", str(file))
    assert result.exit_code == 2
    assert "'fusoin' is no setting: did you mean 'fusion'?" in result.output


def test_errors_of_others_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        torch.zeros(2).view(3)

    monkeypatch.setattr("mixpol_models.data.resolve", broken)
    assert isinstance(run("data", "show").exception, RuntimeError)


def test_missing_packages_are_named() -> None:
    """In a Python where `typer`, and then a package that a command needs, cannot be imported."""
    for blocked, arguments in (("typer", []), ("polars", ["data", "show"])):
        code = (
            f"import sys; sys.modules[{blocked!r}] = None\n"
            f"from mixpol_models.cli import main\nsys.argv = ['mixpol', *{arguments!r}]\nmain()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "pip install 'mixpol-kernels[models]'" in done.stderr
        assert blocked in done.stderr
        assert "Traceback" not in done.stderr


def test_train_and_resume(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run("train", *QUICK, "--fusion", "bias", "--output", str(folder))
    assert result.exit_code == 0, result.output
    assert "test" in result.output
    assert {"best.ckpt", "last.ckpt", "config.yaml", "metrics.json"} <= {p.name for p in folder.iterdir()}
    again = run("train", "--config", str(folder / "config.yaml"), "--epochs", "2", "--resume", str(folder))
    assert again.exit_code == 0, again.output
    assert "of 2 epochs" in again.output


def test_data_show() -> None:
    result = run("data", "show", "--data", "synthetic")
    assert result.exit_code == 0
    assert "synthetic: 116,699 events" in result.output


def test_the_console_script_points_here() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["scripts"]["mixpol"] == "mixpol_models.__main__:main"
    assert callable(cli.main)
