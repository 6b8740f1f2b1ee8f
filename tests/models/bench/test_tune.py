"""`mixpol tune` without a GPU: the search, its file, and how the package reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mixpol_kernels.ops.triton import devices
from mixpol_kernels.ops.triton.devices import Config
from mixpol_models.bench import tune, tune_trial, tune_workers
from mixpol_models.bench.gate import GateError
from mixpol_models.bench.gpu_problems import Size
from mixpol_models.bench.tune import FOLDERS, Entry
from mixpol_models.cli import app

ARCHITECTURE = "sm_90"
FORWARD = Entry("target_attention", "forward/half/64:64")
BEST = Config(tile=32, warps=8, stages=2)
ONLY = "target_attention/forward/half/64:64"


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    devices.configured.cache_clear()
    yield
    devices.configured.cache_clear()


class FakeTrial:
    """Times by a rule instead of a clock, and keeps which configuration was in force."""

    def __init__(self, entry: Entry) -> None:
        self.entry, self.seen = entry, []

    def check(self) -> None:
        config = devices.configured(FOLDERS[self.entry.op], ARCHITECTURE)[self.entry.name]
        self.seen.append(config)
        if config.tile == 128:
            raise RuntimeError("out of resource: shared memory")
        if config.tile == 16:
            raise GateError("error of output is 1; allowed is 0.1")

    def seconds(self) -> float:
        return 1e-3 if self.seen[-1] == BEST else 2e-3


def test_the_fastest_right_candidate_wins() -> None:
    trial, ticks = FakeTrial(FORWARD), []
    found = tune.tune(FORWARD, ARCHITECTURE, trial, lambda: ticks.append(1))
    assert found.best == BEST
    assert (found.shipped_ms, found.best_ms) == (2.0, 1.0)
    assert set(tune.candidates(FORWARD)) <= set(trial.seen)
    assert found.tried == len(ticks) == len(trial.seen)
    assert found.refused == sum(config.tile in (16, 128) for config in trial.seen)
    assert found.reason == "RuntimeError: out of resource: shared memory"
    assert devices.configured(FOLDERS[FORWARD.op], ARCHITECTURE) == devices.shipped(FOLDERS[FORWARD.op], ARCHITECTURE)


def test_candidates_that_others_checked_are_only_timed() -> None:
    trial = FakeTrial(FORWARD)
    trial.seen.append(BEST)
    among = [BEST, Config(16, 4, 1)]
    found = tune.tune(
        FORWARD, ARCHITECTURE, trial, among=among, prepare=lambda every: ["", *["wrong"] * len(every[1:])]
    )
    assert len(trial.seen) == 1
    assert (found.refused, found.reason) == (found.tried - 1, "wrong")
    assert len(found.milliseconds) == 1


def _dies_at_128(entry: Entry, architecture: str, size: Size, device: torch.device, config: Config) -> str:
    if config.tile == 128:
        os._exit(1)
    return "" if config.tile == 64 else "refused"


def test_a_process_that_dies_refuses_its_candidate_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_workers, "_prepare", _dies_at_128)
    every = [Config(tile, 4, 1) for tile in (64, 128, 32, 128, 64)]
    with tune.Preparing(2) as preparing:
        for _ in range(2):
            reasons = preparing(FORWARD, ARCHITECTURE, Size(), torch.device("cpu"), every)
            assert reasons == ["", "its process died", "refused", "its process died", ""]


def test_an_entry_that_nothing_fits() -> None:
    entry = Entry("target_attention", "backward/float32/128:128")
    assert entry.name not in devices.shipped(FOLDERS[entry.op], ARCHITECTURE)
    found = tune.tune(entry, ARCHITECTURE, FakeTrial(entry), among=[Config(16, 4, 1), Config(128, 4, 1)])
    assert (found.best, found.shipped_ms, found.refused) == (None, None, 2)


def test_a_size_without_configurations_is_served_while_tried() -> None:
    entry = Entry("target_attention", "forward/float32/128:128")
    configs = tune_trial.attention
    assert (128, (128,)) not in configs.served(ARCHITECTURE, "float32", 1)
    with tune.configuration(entry, ARCHITECTURE, BEST):
        assert (128, (128,)) in configs.served(ARCHITECTURE, "float32", 1)
    assert (128, (128,)) not in configs.served(ARCHITECTURE, "float32", 1)


def test_what_was_tuned_before_is_served_while_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that only the user's folder has, in both directions."""
    names = [f"{direction}/float32/128:128" for direction in devices.DIRECTIONS]
    entry = Entry("target_attention", names[0])
    tune.write(dict.fromkeys(names, BEST), devices.tuned_file(FOLDERS[entry.op], ARCHITECTURE, tmp_path))
    monkeypatch.setenv(devices.TUNED, str(tmp_path))
    devices.configured.cache_clear()
    with tune.configuration(entry, ARCHITECTURE, Config(64, 4, 1)):
        assert (128, (128,)) in tune_trial.attention.served(ARCHITECTURE, "float32", 1)


def test_run_writes_what_the_package_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "architecture", lambda index: ARCHITECTURE)
    monkeypatch.setattr(tune, "Trial", lambda entry, *_: FakeTrial(entry))
    ticks: list[float] = []

    def again() -> tuple[int, int]:
        found, there = tune.run(
            tmp_path,
            torch.device("cpu"),
            Size(),
            "target_attention/forward/half/64:64",
            lambda _, done: ticks.append(done),
        )
        return len(found), there

    every = tune.entries(ARCHITECTURE, ONLY)
    assert again() == (len(every), 0)
    assert ticks[-1] == 1.0
    assert again() == (0, len(every)), "what is there stays"
    path = tmp_path / "target_attention" / f"{ARCHITECTURE}.json"
    assert json.loads(path.read_text())[FORWARD.name] == {"tile": 32, "warps": 8, "stages": 2, "flush": 0}
    monkeypatch.setenv(devices.TUNED, str(tmp_path))
    devices.configured.cache_clear()
    read = devices.configured(FOLDERS[FORWARD.op], ARCHITECTURE)
    shipped = devices.shipped(FOLDERS[FORWARD.op], ARCHITECTURE)
    assert read[FORWARD.name] == BEST
    assert {n: c for n, c in read.items() if "forward/half/64:64" not in n} == {
        n: c for n, c in shipped.items() if "forward/half/64:64" not in n
    }
    assert devices.configured(FOLDERS["polarity_fusion"], ARCHITECTURE) == devices.shipped(
        FOLDERS["polarity_fusion"], ARCHITECTURE
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "tune again"),
        ("[1]", "tune again"),
        ('{"forward/half/64:64": {"tile": 48, "warps": 4, "stages": 1}}', r"tile was 48; expected one of 16, 32"),
        ('{"forward/half/64:64": {"tiles": 64}}', "tiles"),
        (
            '{"forward/half/32:7": {"tile": 64, "warps": 4, "stages": 1}}',
            r"32:7.*no kernel of this release",
        ),
    ],
)
def test_a_bad_file_is_told(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "target_attention").mkdir()
    (tmp_path / "target_attention" / f"{ARCHITECTURE}.json").write_text(text)
    monkeypatch.setenv(devices.TUNED, str(tmp_path))
    with pytest.raises(ValueError, match=message):
        devices.configured(FOLDERS[FORWARD.op], ARCHITECTURE)


def test_a_missing_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(devices.TUNED, "nowhere")
    with pytest.raises(ValueError, match="MIXPOL_TRITON_CONFIGS was 'nowhere'; expected a folder"):
        devices.configured(FOLDERS[FORWARD.op], ARCHITECTURE)


def test_names_and_patterns() -> None:
    every = tune.entries("gfx942")
    assert {entry.op for entry in every} == set(FOLDERS)
    assert (FORWARD.width, FORWARD.units, FORWARD.dtype) == (64, (64,), torch.bfloat16)
    with pytest.raises(ValueError, match="only is 'f16', in none of: target_attention/"):
        tune.entries("sm_80", "f16")


def test_command_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(app, ["tune", "--output", str(tmp_path)])
    assert (result.exit_code, "nothing to tune" in result.output) == (0, True)
    assert not any(tmp_path.iterdir())
