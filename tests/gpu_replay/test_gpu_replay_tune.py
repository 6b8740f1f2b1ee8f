"""The tuner: candidates by predicted time, without those that spill or lose what they ask for."""

from __future__ import annotations

import pytest
from gpu_replay import tune

from mixpol_kernels.ops.triton.devices import Config
from mixpol_models.bench.tune_trial import Entry

ENTRY = Entry("target_attention", "forward/half/64:64")


def test_candidates() -> None:
    """One warp for 128 tokens spills; what the op ships is predicted."""
    assert "spills in loops" in tune.attempt(ENTRY, Config(128, 1, 1), (20,), 132).refused
    (time,) = tune.attempt(ENTRY, Config(64, 4, 3), (20,), 132).microseconds
    assert 3 < time < 100


def test_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The fastest beside the present one; exit status 1 where nothing is left."""
    times = {Config(64, 4, 3): (30.0,), Config(32, 4, 1): (20.0,), Config(16, 4, 1): ()}
    monkeypatch.setattr(tune, "candidates", lambda entry: list(times))
    monkeypatch.setattr(tune, "alone", lambda work, entry, config, *more: tune.Tried(config, times[config], "spills"))
    assert tune.report("target_attention/forward/half/64:64", jobs=1) == 0
    printed = capsys.readouterr().out
    assert "fastest: 32 / 4 / 1 / 0: 20.0 µs" in printed
    assert "shipped: 64 / 4 / 3 / 0: 30.0 µs" in printed
    monkeypatch.setattr(tune, "alone", lambda work, entry, config, *more: "the process ended with -6")
    assert tune.report("target_attention/forward/half/64:64", jobs=1) == 1


def test_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.report("target_attention/forward/half/7:7", jobs=1) == 2
    assert "expected one of: target_attention/" in capsys.readouterr().out


def test_order() -> None:
    """By the product of the times, so that no length outweighs another; what is refused comes last."""
    fast, even = tune.Tried(Config(64, 4, 1), (10.0, 90.0)), tune.Tried(Config(32, 4, 1), (30.0, 40.0))
    refused = tune.Tried(Config(16, 4, 1), refused="8 spills in loops")
    assert sorted([refused, even, fast], key=tune._merit) == [fast, even, refused]
