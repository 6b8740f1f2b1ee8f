"""`make test-fresh`: rounds, seeds, and what it says of a failure; the runs are made up."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import fresh
import pytest


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], list[tuple[str, list[str]]]]:
    """Replaces pytest by these exit statuses, one a run; what was run is the seed and the arguments."""

    def plan(statuses: list[int]) -> list[tuple[str, list[str]]]:
        ran: list[tuple[str, list[str]]] = []

        def run(command: list[str], env: dict[str, str], check: bool) -> subprocess.CompletedProcess[str]:
            ran.append((env["MIXPOL_TEST_SEED"], command[3:]))
            return subprocess.CompletedProcess(command, statuses[len(ran) - 1])

        monkeypatch.setattr(subprocess, "run", run)
        return ran

    return plan


def test_every_round_runs_both_parts(runs: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    ran = runs([0, 0, 0, 5])
    assert fresh.main(2, ["-k", "softmax"]) == 0
    seeds = [seed for seed, _ in ran]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    assert [arguments[-3:] == [fresh.TRITON, "-k", "softmax"] for _, arguments in ran] == [False, True, False, True]
    assert all("--drawn" in arguments for _, arguments in ran)
    assert "2 rounds: all passed" in capsys.readouterr().out


def test_a_failure_ends_no_round_and_is_repeated_by_its_command(
    runs: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = runs([1, 0, 0, 2])
    assert fresh.main(2, []) == 1
    assert len(ran) == 4
    *_, head, first, second = capsys.readouterr().out.splitlines()
    assert head == "2 rounds: 2 parts failed; repeat with"
    assert first.startswith(f"  MIXPOL_TEST_SEED={ran[0][0]} ")
    assert second.startswith(f"  MIXPOL_TEST_SEED={ran[3][0]} ")
    assert second.endswith(f" {fresh.TRITON}")


def test_a_file_is_one_part(runs: Callable) -> None:
    ran = runs([0])
    assert fresh.main(1, [str(Path(__file__)), "-x"]) == 0
    assert ran[0][1][-2:] == [str(Path(__file__)), "-x"]


def test_no_rounds() -> None:
    with pytest.raises(SystemExit, match="N was 0; expected at least 1 round"):
        fresh.main(0, [])
