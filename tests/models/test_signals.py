"""Ctrl-C and SIGTERM: the status, the one line, and that what it says goes on to the same numbers."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from mixpol_models import stopping
from mixpol_models.__main__ import main
from mixpol_models.data import store_build, synthetic_log
from mixpol_models.experiments.grid import ResultStore, outcome, pool
from mixpol_models.pnfrec import comparison
from mixpol_models.pnfrec.store import Store
from mixpol_models.training import run as training_run
from mixpol_models.training.checkpoints import read_checkpoint
from mixpol_models.training.progress import StopsBetweenSteps

TRAIN = ["train", "--data", "synthetic", "--epochs", "3", "--batch-size", "64", "--budget", "5", "--dropout", "0.1"]
TINY = """
name: tiny
planted: {n_users: 30, length: 10}
grid: {variant: [positive-only, mixed], seed: [0, 1]}
train: {budget: 4, epochs: 1, batch_size: 128, embedding_dim: 4, attention_units: [4]}
resamples: 20
strata_resamples: 20
"""
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Command]:
    """Runs `mixpol` in this process, in a folder of the test; gives its status and what it said on stderr."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    log = synthetic_log(n_users=60, n_items=30, n_groups=3, mean_length=10.0)
    monkeypatch.setattr("mixpol_models.data.synthetic.synthetic_log", lambda: log)
    monkeypatch.chdir(tmp_path)
    for name in ("GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE"):  # else the first command of a process says that it is late
        monkeypatch.setenv(name, "1")

    def call(*arguments: str) -> tuple[int, str]:
        for number in before:
            signal.signal(number, signal.default_int_handler)
        for name, value in (("process", 0), ("number", 0), ("since", 0.0), ("kept", ""), ("command", "")):
            monkeypatch.setattr(stopping._Watch, name, value)
        monkeypatch.setattr(sys, "argv", ["mixpol", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capfd.readouterr().err

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


def kill_at(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, when: Callable[..., bool], number: int) -> None:
    """Sends this process a signal before a call, the first time that `when` says so."""
    real, sent = getattr(target, name), []

    def call(*arguments: Any, **options: Any) -> Any:
        if not sent and when(*arguments):
            sent.append(number)
            os.kill(os.getpid(), number)
        return real(*arguments, **options)

    monkeypatch.setattr(target, name, call)


def going_on(line: str) -> list[str]:
    """The arguments of the command that the line ends with."""
    return shlex.split(line.strip().partition("go on with: mixpol ")[2])


def assert_same_run(first: Path, second: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        a, b = (read_checkpoint(folder / name)["state_dict"] for folder in (first, second))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (first, second))
    assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")], ids=["sigterm", "sigint"]
)
def test_a_stopped_training_says_how_to_go_on(
    command: Command, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    with monkeypatch.context() as patch:
        at = lambda _, trainer, *__: trainer.current_epoch == 1 and trainer.fit_loop.batch_idx > 0  # noqa: E731
        kill_at(patch, StopsBetweenSteps, "on_train_batch_start", at, number)
        status, line = command(*TRAIN, "--output", "stopped")
    assert status == 128 + number
    assert line == (
        f"Stopped by {name}: stopped/ has the end of epoch 1 of 3; go on with: mixpol train --resume stopped\n"
    )
    assert not Path("stopped/metrics.json").exists()
    assert command(*going_on(line))[0] == 0
    assert command(*TRAIN, "--output", "whole")[0] == 0
    assert_same_run(Path("stopped"), Path("whole"))


def test_stopped_before_there_is_something_to_keep(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, training_run, "prepare", lambda *_: True, signal.SIGTERM)
        status, line = command(*TRAIN, "--output", "run")
    assert (status, line) == (
        143,
        f"Stopped by SIGTERM: nothing is kept; start again with: {shlex.join(['mixpol', *TRAIN, '--output', 'run'])}\n",
    )
    with monkeypatch.context() as patch:
        kill_at(patch, StopsBetweenSteps, "on_train_batch_start", lambda *_: True, signal.SIGTERM)
        assert command(*TRAIN, "--output", "run")[0] == 143
        assert command(*TRAIN)[0] == 0  # the patch has sent its one signal
    assert [path.name for path in Path().iterdir()] == ["mixpol_runs"]


def test_stopped_while_the_test_rows_are_evaluated(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, training_run, "predict", lambda *_: True, signal.SIGTERM)
        status, line = command(*TRAIN, "--output", "stopped")
    assert status == 143
    assert "the end of epoch 3 of 3" in line
    assert command(*going_on(line))[0] == 0
    assert command(*TRAIN, "--output", "whole")[0] == 0
    assert_same_run(Path("stopped"), Path("whole"))
    status, line = command("train", "--resume", "stopped")
    assert status == 2
    assert "expected fewer than epochs=3" in line


def test_a_swallowed_signal_ends_the_run_at_the_next_step(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def swallow(*_: object) -> bool:
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGINT)
        return False

    kill_at(monkeypatch, StopsBetweenSteps, "on_train_batch_start", swallow, signal.SIGINT)
    assert command(*TRAIN, "--output", "run")[0] == 130
    assert not Path("run").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_stopped_experiment_leaves_no_worker(command: Command, monkeypatch: pytest.MonkeyPatch, workers: str) -> None:
    Path("tiny.yaml").write_text(TINY)
    arguments = ["experiment", "run", "tiny.yaml", "--workers", workers, "--output", "store"]
    with monkeypatch.context() as patch:
        if workers == "0":
            kill_at(patch, outcome, "run_row", lambda _, run, __: run.config.seed == 1, signal.SIGTERM)
        else:
            waits: list[int] = []
            kill_at(patch, pool, "wait", lambda *_: len(waits) == 1 or bool(waits.append(1)), signal.SIGTERM)
        status, line = command(*arguments)
    assert (status, line) == (
        143,
        f"Stopped by SIGTERM: store/ has 1 of 4 runs; go on with: {shlex.join(['mixpol', *arguments])}\n",
    )
    assert not active_children()
    if workers == "0":
        assert command(*going_on(line))[0] == 0
        assert command(*arguments[:-1], "whole")[0] == 0
        rows = [
            ResultStore.read(folder).drop("seconds", "examples_per_second").sort("key") for folder in ("store", "whole")
        ]
        assert rows[0].filter(pl.col("kind") == "run").height == 4
        assert rows[0].equals(rows[1])


def test_a_stopped_pnfrec_goes_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three models of a made-up log; the signal comes in the second one's training."""
    rng = random.Random(0)
    rows = [(u, rng.randrange(1, 40), rng.randrange(1, 6), 100 * i + u % 97) for i in range(60) for u in range(1, 80)]
    Path("ratings.dat").write_text("".join("::".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    Path("p.yaml").write_text("{data: ratings.dat, epochs: 1, width: 8, max_length: 5, mixed_length: 5}")
    arguments = ["pnfrec", "run", "p.yaml", "--models", "sasrec,pnfrec", "--output", "store"]
    with monkeypatch.context() as patch:
        kill_at(patch, comparison, "train", lambda *given: given[2] == "pnfrec", signal.SIGTERM)
        status, line = command(*arguments)
    assert (status, line) == (
        143,
        f"Stopped by SIGTERM: store/ has 1 of 2 runs; go on with: {shlex.join(['mixpol', *arguments])}\n",
    )
    assert command(*going_on(line))[0] == 0
    assert command(*arguments[:-1], "whole")[0] == 0
    stopped, whole = Store(Path("store")).read(), Store(Path("whole")).read()
    assert [(r.model, r.seed, r.rank, r.positive) for r in stopped] == [
        (r.model, r.seed, r.rank, r.positive) for r in whole
    ]


def test_stopped_while_data_are_prepared(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("log.csv").write_text("u,i,t,y\n" + "".join(f"{n % 7},{n % 5},{n},{n % 2}\n" for n in range(70)))
    Path("log.yaml").write_text(
        "{name: mine, files: log.csv, columns: {user: u, item: i, time: t}, polarity: 'y < 1: negative'}"
    )
    arguments = ["data", "prepare", "log.yaml", "store"]
    with monkeypatch.context() as patch:
        kill_at(patch, store_build.Build, "_write", lambda *_: True, signal.SIGINT)
        status, line = command(*arguments)
    assert (status, line) == (
        130,
        "Stopped by Ctrl-C: nothing is kept; start again with: mixpol data prepare log.yaml store\n",
    )
    assert {path.name for path in Path().iterdir()} >= {"log.csv", "log.yaml"}
    assert not Path("store").exists()
    assert not list(Path().glob("store.part*"))
    assert command(*arguments)[0] == 0


def ended(code: str) -> tuple[int, str]:
    """Status and stderr of a Python process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stderr


def test_a_signal_during_the_imports() -> None:
    code = (
        "import os, signal, sys\n"
        "class Killer:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Killer())\n"
        "sys.argv = ['mixpol', 'train']\n"
        "from mixpol_models.__main__ import main\n"
        "main()"
    )
    assert ended(code) == (143, "Stopped by SIGTERM: nothing is kept; start again with: mixpol train\n")


def test_later_signals_change_nothing() -> None:
    code = (
        "import os, signal, sys\n"
        "from mixpol_models.stopping import in_words\n"
        "sys.argv = ['mixpol', 'x']\n"
        "with in_words():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        print('cleaned up', file=sys.stderr)\n"
    )
    status, said = ended(code)
    assert status == 143
    assert said.splitlines() == ["cleaned up", "Stopped by SIGTERM: nothing is kept; start again with: mixpol x"]


def test_an_ignored_signal_stays_ignored() -> None:
    code = (
        "import os, signal, sys\n"
        "from mixpol_models.stopping import in_words\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with in_words():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
    )
    assert ended(code) == (0, "")


def test_processes_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import multiprocessing, os, sys, time\n"
        "from mixpol_models.stopping import end_with_parent\n"
        "def work():\n"
        "    end_with_parent()\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=work)\n"
        "    process.start()\n"
        "    process.join()\n"
    )
    with subprocess.Popen([sys.executable, tmp_path / "program.py"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().strip().isdigit()
        parent.kill()
        # The child holds the other end of the pipe for as long as it lives.
        assert parent.stdout.read() == ""


def test_workers_of_an_experiment_watch_their_parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Watched(Exception):
        pass

    def watched() -> None:
        raise Watched

    monkeypatch.setattr(pool, "end_with_parent", watched)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(Watched):
            pool._work(None, None, tmp_path, 1)
    finally:
        signal.signal(signal.SIGINT, before)
