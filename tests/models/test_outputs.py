"""What commands refuse before they start, and what they leave on disk."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from run_folders import PLANTED, RUN, Command, contents, copy
from typer.testing import CliRunner

from mixpol_models import cli, files
from mixpol_models.backbones import BACKBONES, build_backbone
from mixpol_models.experiments.grid import ExperimentConfig, run_experiment
from mixpol_models.progress import TimeLeft
from mixpol_models.training import train
from mixpol_models.training.config import TrainConfig, load_config


def test_a_run_takes_no_folder_that_another_one_has(command: Command) -> None:
    for _ in range(2):
        command(*RUN)
    assert {path.name for path in Path("mixpol_runs").iterdir()} == {"din-mixed-tapf-seed0", "din-mixed-tapf-seed0-2"}
    command(*RUN, "--output", "mine")
    before = contents(Path("mine"))
    said = command(*RUN, "--learning-rate", "0.01", "--output", "mine", status=2).output
    assert "holds earlier results" in said
    assert "--resume mine, replace it with --force, or give another folder" in said
    assert contents(Path("mine")) == before
    Path("mine/logs/notes.txt").write_text("mine")
    command(*RUN, "--learning-rate", "0.01", "--output", "mine", "--force")
    assert "learning_rate: 0.01" in Path("mine/config.yaml").read_text()
    assert Path("mine/logs/notes.txt").read_text() == "mine"
    assert "without output" in command(*RUN, "--force", status=2).output
    assert "with resume" in command("train", "--resume", "mine", "--force", status=2).output


def test_a_failed_run_leaves_what_was_in_its_folder(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")

    def fail(*_: object) -> None:
        raise OSError("the ninth wave")

    monkeypatch.setattr("mixpol_models.training.module.CTRModule.training_step", fail)
    command(*RUN, "--output", "mine", status=1)
    command(*RUN, "--output", "new", status=1)
    command(*RUN, status=1)
    assert [path.name for path in Path("mine").iterdir() if path.name != ".lock"] == ["notes.txt"]
    assert not Path("new").exists()
    assert not any(Path("mixpol_runs").iterdir())


def test_resume_alone_takes_the_settings_of_the_run(command: Command) -> None:
    settings = ("--fusion", "bias", "--learning-rate", "0.01", "--dropout", "0.2", "--patience", "9")
    command(*RUN, *settings, "--epochs", "3", "--output", "whole")
    command(*RUN, *settings, "--output", "parts")
    assert "expected fewer than epochs=1" in command("train", "--resume", "parts", status=2).output
    assert (
        "fusion 'bias' there and 'tapf' here"
        in command("train", "--resume", "parts", "--fusion", "tapf", "--epochs", "3", status=2).output
    )
    assert Path("parts/metrics.json").exists()
    command("train", "--resume", "parts", "--epochs", "3")
    whole, parts = (json.loads(Path(name, "metrics.json").read_text()) for name in ("whole", "parts"))
    assert {**whole, "seconds": 0} == {**parts, "seconds": 0}
    shown = command("train", "--resume", "parts", "--print-config").output
    assert "fusion: bias" in shown
    assert "epochs: 3" in shown


def test_a_run_that_goes_on_has_no_result_of_before(
    log: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(trained, tmp_path)

    def fail(*_: object) -> None:
        raise OSError("the ninth wave")

    monkeypatch.setattr("mixpol_models.training.module.CTRModule.training_step", fail)
    settings = TrainConfig(epochs=3, batch_size=64, budget=5)
    with pytest.raises(OSError, match="ninth"):
        train(settings, log=log, resume=folder, callbacks=[])
    assert not (folder / "metrics.json").exists()
    assert (folder / "last.ckpt").read_bytes() == (trained / "last.ckpt").read_bytes()


def test_a_resumed_run_has_the_patience_it_was_given(log: Any, tmp_path: Path) -> None:
    harm = {"learning_rate": 0.5, "batch_size": 64, "budget": 5}
    folder = str(tmp_path / "run")
    first = train(TrainConfig(**harm, epochs=9, patience=1, output=folder), log=log, callbacks=[])
    assert first.epochs < 9
    with pytest.raises(ValueError, match=r"expected fewer than patience=1: ask for more, e\.g\. --patience 2"):
        train(TrainConfig(**harm, epochs=9, patience=1), log=log, resume=folder, callbacks=[])
    (Path(folder) / "metrics.json").unlink()
    again = train(TrainConfig(**harm, epochs=9, patience=1), log=log, resume=folder, callbacks=[])
    assert (again.epochs, again.test) == (first.epochs, first.test)
    whole = train(TrainConfig(**harm, epochs=9, patience=3, output=str(tmp_path / "b")), log=log, callbacks=[])
    more = train(TrainConfig(**harm, epochs=9, patience=3), log=log, resume=folder, callbacks=[])
    assert (more.epochs, more.test) == (whole.epochs, whole.test)


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--accelerator", "gpu"), "accelerator was 'gpu', and torch finds no GPU here"),
        (("--precision", "fp16"), "precision was 'fp16', which needs a GPU"),
        (("--workers", "-1"), "workers is -1"),
        (("--batch-size", "0"), "batch_size is 0"),
        (("--no-sparse-tables", "--table-learning-rate", "0.1"), "table_learning_rate is 0.1 with sparse_tables false"),
    ],
)
def test_what_cannot_be_trained_makes_nothing(command: Command, flags: tuple[str, ...], words: str) -> None:
    said = command(*RUN, *flags, status=2).output
    assert words in said
    assert len(said.strip().splitlines()) == 1
    assert not any(Path().iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_siblings_without_a_gpu_make_nothing(command: Command) -> None:
    Path("e.yaml").write_text(json.dumps(PLANTED | {"train": PLANTED["train"] | {"accelerator": "gpu"}}))
    Path("p.yaml").write_text("device: cuda\n")
    assert "accelerator was 'gpu'" in command("experiment", "run", "e.yaml", status=2).output
    assert "device was 'cuda'" in command("pnfrec", "run", "p.yaml", status=2).output
    assert {path.name for path in Path().iterdir()} == {"e.yaml", "p.yaml"}


@pytest.mark.parametrize(
    "arguments",
    [
        (*RUN, "--output", "file"),
        (*RUN, "--output", "file/below"),
        (*RUN, "--output", "dangling"),
        ("demo", "--data", "synthetic", "--output", "file"),
        ("bench", "--quick", "--output", "file"),
        ("gpu-report", "--output", "file"),
        ("tune", "--output", "file"),
        ("experiment", "run", "planted", "--output", "file"),
        ("experiment", "throughput", "planted", "--output", "file/below.md"),
        ("experiment", "report", "store", "--output", "file"),
        ("experiment", "analyse", "activity", "store", "--output", "file"),
        ("pnfrec", "run", "ml1m_cpu", "--output", "file"),
    ],
    ids=lambda arguments: " ".join(word for word in arguments if word not in RUN[1:]),
)
def test_an_output_that_cannot_be_is_refused_first(
    command: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("work has started")

    for name in (
        "data.sources.resolve", "training.run.resolve", "experiments.demo.resolve", "bench.suite.run",
        "experiments.grid.runner.experiment_log", "experiments.grid.source.experiment_log",
        "experiments.report.read_report", "experiments.analyses.read_report", "pnfrec.comparison.load_split",
    ):  # fmt: skip
        monkeypatch.setattr(f"mixpol_models.{name}", start)
    Path("file").write_text("mine")
    Path("dangling").symlink_to("nowhere")
    said = command(*arguments, status=2).output
    assert "output was" in said
    assert "expected a folder" in said
    assert Path("file").read_text() == "mine"
    assert {path.name for path in Path().iterdir()} == {"file", "dangling"}


def test_bench_looks_at_its_outputs_first(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpol_models.bench.suite.run", lambda *_: pytest.fail("measured"))
    Path("plain.md").write_text("no markers")
    Path("old").mkdir()
    Path("old/bench.json").write_text("{}")
    for arguments, words in (
        (("--readme", "plain.md"), "expected a file with one line"),
        (("--readme", "nowhere.md"), "expected a file with one line"),
        (("--output", "old"), "holds earlier results (bench.json)"),
        (("--tolerance", "0.1"), "tolerance was 0.1 without compare"),
        (("--rounds", "3"), "rounds was 3 without compare"),
        (("--force",), "force was given without output"),
    ):
        assert words in command("bench", "--quick", *arguments, status=2).output


def test_the_ladder_s_own_command_looks_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixpol_models.bench import __main__ as ladder

    monkeypatch.setattr(ladder, "run_ladder", lambda *_, **__: pytest.fail("measured"))
    for name in ("json", "markdown", "plot"):
        with pytest.raises(SystemExit):
            ladder.main([f"--{name}={tmp_path}"])


def test_a_demo_that_ends_early_leaves_nothing(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        Path("demo_output/auc.png").write_text("half")
        raise OSError("the ninth wave")

    monkeypatch.setattr("mixpol_models.experiments.demo._Demo.accuracy", fail)
    command("demo", "--data", "synthetic", "--quick", status=1)
    assert not any(Path().iterdir())


def test_a_demo_replaces_no_earlier_one(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(ValueError):
        pass

    def stop(*_: object, **__: object) -> None:
        raise Enough

    monkeypatch.setattr("mixpol_models.experiments.demo.resolve", stop)
    Path("demo_output").mkdir()
    Path("demo_output/results.md").write_text("mine")
    said = command("demo", "--output", "demo_output", status=2).output
    assert "holds earlier results (results.md)" in said
    for arguments in ((), ("--output", "demo_output", "--force")):
        assert isinstance(CliRunner().invoke(cli.app, ["demo", *arguments]).exception, Enough)
    assert files.results_folder(None, "demo_output", ("results.md",)) == Path("demo_output-2")


@contextmanager
def small_disk(most: int) -> Iterator[None]:
    """Files may have so many bytes: a write fails half way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_checkpoints_of_before(command: Command) -> None:
    command(*RUN, "--output", "run")
    before = {name: Path("run", name).read_bytes() for name in ("best.ckpt", "last.ckpt")}
    limit = len(before["last.ckpt"]) // 2
    with small_disk(limit):
        said = command("train", "--resume", "run", "--epochs", "2", status=1).output
    assert "File too large" in said
    assert "run/ has the end of epoch 1 of 2; go on with: mixpol train --resume run" in said
    assert {name: Path("run", name).read_bytes() for name in before} == before
    assert not [path for path in Path("run").iterdir() if path.name.startswith((".last", ".best"))]
    command("train", "--resume", "run")


def test_checkpoints_are_written_beside_and_renamed(log: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, renamed = os.replace, {}

    def replace(source: Path, target: Path) -> None:
        renamed[Path(target).name] = Path(source).parent == Path(target).parent
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    train(TrainConfig(epochs=1, batch_size=64, budget=5, output=str(tmp_path / "run")), log=log, callbacks=[])
    assert renamed == dict.fromkeys(("config.yaml", "best.ckpt", "last.ckpt", "metrics.json"), True)


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    target, link = tmp_path / "there" / "a.json", tmp_path / "link.json"
    files.write_atomically(target, "before")
    link.symlink_to(target)
    target.chmod(0o640)
    with small_disk(1000), pytest.raises(OSError, match="too large"):
        files.write_atomically(target, b"x" * 2000)
    with suppress(KeyError), files.replacing(target) as fresh:
        fresh.write_text("half")
        raise KeyError
    assert target.read_text() == "before"
    files.write_atomically(link, "after")
    assert link.is_symlink()
    assert target.read_text() == "after"
    assert target.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


def test_an_experiment_tells_a_line_a_run(command: Command) -> None:
    Path("tiny.yaml").write_text(json.dumps(PLANTED | {"grid": {"seed": [0, 1]}}))
    lines = command("experiment", "run", "tiny.yaml", "--workers", "0").output.splitlines()
    told = [line for line in lines if " of 2: din, mixed + TAPF, budget 4, seed " in line]
    assert len(told) == 2
    assert told[0].startswith("1 of 2: ")
    assert "seed 0: AUC 0." in told[0]
    assert told[0].endswith(" left")
    assert told[1].startswith("2 of 2: ")
    assert told[1].endswith(" so far")


def test_flags_that_an_experiment_would_ignore_are_refused(command: Command) -> None:
    for name in ("run", "throughput"):
        said = command("experiment", name, "planted", "--data", "synthetic", status=2).output
        assert "data was 'synthetic', and the experiment 'planted" in said
    assert "workers is -1" in command("experiment", "run", "planted", "--workers", "-1", status=2).output
    assert not any(Path().iterdir())


def test_a_finished_bar_has_nothing_left() -> None:
    now = 0.0
    bar = Progress(get_time=lambda: now, console=Console(file=io.StringIO()))
    bar.add_task("", total=3)
    (task,) = bar.tasks
    shown = [TimeLeft().render(task).plain]
    for done in range(4):
        now = 20.0 * done
        bar.update(task.id, completed=done)
        shown.append(TimeLeft().render(task).plain)
    assert shown == ["", "", "", "left 0:20", ""]


def test_print_config_is_light_and_looks_for_the_data(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from mixpol_models import cli\n"
        "for data, status in (('synthetic', 0), ('nowhere', 2)):\n"
        "    done = CliRunner().invoke(cli.app, ['train', '--print-config', '--data', data, '--fusion', 'bias'])\n"
        "    assert done.exit_code == status, done.output\n"
        "    assert data in done.output\n"
        "heavy = {'torch', 'lightning', 'polars', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_print_config_says_which_data(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXPOL_DATA", "synthetic")
    assert "# data: synthetic, drawn when it is used (from MIXPOL_DATA)" in command("train", "--print-config").output
    Path("empty").mkdir()
    for wish, words in (
        ("empty", "expected a folder with data or one of"),
        ("kuairec:empty", "expected in that folder"),
        ("log.yaml", "where there is nothing"),
        ("kuairec:nowhere", "where there is nothing"),
    ):
        said = command("train", "--print-config", "--data", wish, status=2).output
        assert wish in said
        assert words in said


def test_what_is_not_built_for_print_config_can_be_built() -> None:
    """Settings of the shipped files pass without the constructors, with any value of the others."""
    for name in BACKBONES:
        for fusion in ("none", "bias", "tapf"):
            for changes in ({}, {"budget": 1, "dropout": 0.5, "sparse_tables": False}):
                config = load_config(name, {"fusion": fusion, **changes})
                with torch.device("meta"):
                    build_backbone(name, n_items=1, n_users=1, n_contexts=1, **config.backbone_options())


def test_version(command: Command) -> None:
    said = command("--version").output
    assert said.startswith("mixpol ")
    assert f"torch {torch.__version__}" in said
    assert "CPU kernels" in said


def test_outputs_are_looked_at_by_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.check_output_folder(tmp_path / "new" / "below")
    files.check_output_file(tmp_path / "new" / "a.md")
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="which is a folder; expected a file"):
        files.check_output_file(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(ValueError, match=r"cannot be written to \(Read-only file system\): give another path"):
        files.check_output_folder(tmp_path / "new")


def test_an_experiment_is_kept_whole(tmp_path: Path) -> None:
    config, console = ExperimentConfig(**PLANTED), Console(file=io.StringIO())
    run_experiment(config, tmp_path, workers=0, console=console)
    before = (tmp_path / "experiment.yaml").read_text()
    with small_disk(100), pytest.raises(OSError, match="too large"):
        run_experiment(config, tmp_path, workers=0, console=console)
    assert (tmp_path / "experiment.yaml").read_text() == before
