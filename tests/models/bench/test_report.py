"""Tables, picture and command say what the rows say."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from mixpol_models.bench import (
    IMPLEMENTATIONS,
    LadderRow,
    ladder_markdown,
    ladder_table,
    machine_facts,
    noise,
    plot_ladder,
    sentences,
    summarize,
    summary_table,
)
from mixpol_models.bench.__main__ import main


@pytest.fixture
def ladder(rows: list[LadderRow]) -> list[LadderRow]:
    """A full ladder of made-up times: concat 8 ms a step, then 7, 6, 5, 2 (fused) and 1."""
    made = []
    for length in (50, 200):
        for implementation, total in zip(IMPLEMENTATIONS.values(), (8.0, 7.0, 6.0, 5.0, 2.0, 1.0), strict=True):
            ratio = {"total_ratio": total / 2, "total_ratio_low": total / 2, "total_ratio_high": total / 2}
            ratio |= {"forward_ratio": total / 4}
            made.append(
                replace(
                    rows[0],
                    length=length,
                    implementation=implementation.name,
                    variant="per target" if "per target" in implementation.variants else "",
                    total_ms=total,
                    saved_mib=total * 3,
                    compile_s=9.0 * implementation.compiled,
                    **ratio,
                )
            )
    return made


def test_headline(ladder: list[LadderRow]) -> None:
    for line in summarize(ladder):
        assert (line.total_eager, line.total_strongest, line.forward_eager) == (4.0, 2.5, 2.0)
        assert (line.eager, line.saved_eager) == ("concat", 4.0)
        assert line.strongest == "refactored+compile, per target"
        assert (line.fused_ms, line.floor_ms) == (2.0, 1.0)
    said = "\n".join(sentences(ladder))
    assert "L = 200, forward alone, in times of fused: concat eager 2.00" in said
    assert "concat eager 4.00, strongest baseline (refactored+compile, per target) 2.50" in said


def test_headline_without_fused_claims_nothing(rows: list[LadderRow]) -> None:
    assert sentences(rows) == []
    assert [line.total_eager for line in summarize(rows)] == [None, None]


def test_markdown(ladder: list[LadderRow]) -> None:
    text = ladder_markdown(ladder)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(ladder)
    assert len({line.count("|") for line in table}) == 1
    assert "| **200** | **fused** |" in text
    assert "lengths uniform in 1..L" in text


def test_scattered_ratios_are_called_noisy(ladder: list[LadderRow]) -> None:
    assert noise(ladder) == ""
    ladder[1] = replace(ladder[1], total_ratio_low=2.0, total_ratio_high=5.0)
    assert "concat+compile at L = 50 anywhere from 2.00 to 5.00" in noise(ladder)
    assert noise(ladder) in ladder_markdown(ladder)


def test_tables_fit_eighty_columns(ladder: list[LadderRow]) -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(ladder_table(ladder), summary_table(ladder))
    text = console.export_text()
    assert "…" not in text
    assert "refactored+compile, per target" in text


def test_picture(ladder: list[LadderRow], tmp_path: Path) -> None:
    path = tmp_path / "ladder.png"
    plot_ladder(ladder, path)
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(header[16:20], "big") == 1400


def test_machine_facts_name_no_host_and_no_folder() -> None:
    facts = machine_facts()
    assert {"cpu", "threads", "kernel_isa", "torch", "python", "mixpol_kernels"} <= facts.keys()
    text = " ".join(map(str, facts.values()))
    assert socket.gethostname() not in text
    assert str(Path.cwd()) not in text


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    shape = ["--lengths=3,5", "--batch=4", "--width=8", "--hidden=4"]
    effort = ["--rounds=3", "--seconds-per-form=0.01", "--implementations=concat,refactored"]
    assert main([*shape, *effort, f"--json={path}"]) == 0
    document = json.loads(path.read_text())
    assert [row["length"] for row in document["rows"]] == [3, 3, 5, 5]
    assert document["machine"] == machine_facts()
    assert "L = 5" in capsys.readouterr().out
