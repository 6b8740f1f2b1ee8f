"""Faults that are planted are found, each by name and figure; well-made kernels pass."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_replay import __main__, calibration, gate
from gpu_replay.cases import Case, cases, shipped
from gpu_replay.gate import Result, Row, alone, compare, judge
from gpu_replay.predict import Subject
from planted import launched, pipeline_kernel, product_kernel

ROW = Row("64 / 4 / 3 / 0", 100.0, 16, 3, 128, 1.0, 0)


def _judged(launch: Any) -> Result:
    return judge("planted", launch, Subject(launch).predict(timed=False))


def _product(conflicts: bool, **options: Any) -> Any:
    tensors = torch.empty(4096, 64), torch.empty(64, 64), torch.empty(64, 64)
    sizes = {"D": 64, "TILE": 64, "CONFLICTS": conflicts, "num_warps": 8, "num_stages": 2}
    return launched(product_kernel, 1, *tensors, 4096, **sizes, **options)


def _pipeline(lost: bool) -> Any:
    tensors = [torch.empty(rows, 64, dtype=torch.bfloat16) for rows in (4096, 64)]
    sizes = {"D": 64, "TILE": 64, "LOST": lost, "num_warps": 4, "num_stages": 3}
    return launched(pipeline_kernel, 1, *tensors, torch.empty(64, 64), 4096, **sizes)


def test_a_bank_conflict() -> None:
    assert _judged(_product(conflicts=False)).faults == ()
    result = _judged(_product(conflicts=True))
    (fault,) = result.faults
    assert "without bank conflicts" in fault
    assert "wavefronts a token in the loop at 0x" in fault
    assert result.row.wavefronts > 2


def test_a_spill() -> None:
    assert _judged(_product(conflicts=False)).row.spills == 0
    result = _judged(_product(conflicts=False, maxnreg=32))
    assert result.row.spills > 100
    assert any("spilled registers in the loop at 0x" in fault for fault in result.faults)


def test_a_lost_stage() -> None:
    whole = _judged(_pipeline(lost=False))
    assert whole.row.stages == 3
    assert whole.faults == ()
    lost = _judged(_pipeline(lost=True))
    assert lost.row.stages == 1
    assert lost.faults == ("a pipeline of 1 in machine code; the configuration asks for 3",)


def test_the_conflict_of_the_forward_that_ran_on_a_gpu() -> None:
    """IEEE float32: 291 wavefronts a token, where 68 do."""
    launch = calibration.Measurement("forward", "float32", 200, 692).launch()
    (fault,) = _judged(launch).faults
    assert "291 wavefronts a token in the loop at 0x1620, 68 without bank conflicts" in fault


def test_the_record() -> None:
    """Less of what is good or 5 % more time fails, more or the same does not; nor does what has no record."""
    recorded = dataclasses.asdict(ROW)

    def against(**changes: Any) -> list[str]:
        return compare(Result("planted", dataclasses.replace(ROW, **changes), ()), recorded)

    assert against() == []
    assert against(microseconds=104.9, warps=24, stages=4) == []
    assert against(microseconds=106.0) == ["106.0 µs predicted; the record has 100.0: 6% slower"]
    assert against(warps=8) == ["8 warps on an SM; the record has 16"]
    assert against(stages=2) == ["a pipeline of 2; the record has 3"]
    assert compare(Result("planted", ROW, ()), None) == []


def test_recording(tmp_path: Path) -> None:
    """Rows of other versions and other kernels stay."""
    path = tmp_path / "record.json"
    gate.record("3.6.0", [Result("a", ROW, ())], path)
    gate.record("3.8.0", [Result("a", ROW, ()), Result("b", ROW, ())], path)
    gate.record("3.8.0", [Result("b", dataclasses.replace(ROW, microseconds=90.0), ())], path)
    rows = gate.recorded("3.8.0", path)
    assert rows["b"]["microseconds"] == 90.0
    assert rows["a"] == dataclasses.asdict(ROW) == gate.recorded("3.6.0", path)["a"]
    assert gate.recorded("3.7.1", path) == gate.recorded("3.8.0", tmp_path / "none.json") == {}
    assert json.loads(path.read_text()).keys() == {"3.6.0", "3.8.0"}


def _dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fails() -> None:
    raise ValueError("too wide")


def test_a_compiler_that_dies_is_one_failure() -> None:
    assert alone(_dies) == "the process ended with -9"
    assert alone(_fails) == "ValueError: too wide"
    assert alone(max, 3, 5) == 5


def test_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """1 and the kernel, configuration and figure in words where something fails; 0 where nothing does."""
    good = Result("case: forward_kernel", ROW, (), (), "target_attention/forward/half/64:64")
    monkeypatch.setattr(gate, "RECORD", tmp_path / "none.json")

    def gating(result: Result | str) -> int:
        monkeypatch.setattr(gate, "results", lambda cases, jobs: [(case, [result]) for case in cases])
        return __main__._gate("3.8.0", "half, 64 : 64, relu, jagged", 1, False)

    assert gating(good) == 0
    assert gating(dataclasses.replace(good, faults=("9 wavefronts a token, 1 without bank conflicts",))) == 1
    printed = capsys.readouterr().out
    assert "FAILS  case: forward_kernel, configuration 64 / 4 / 3 / 0: 9 wavefronts a token" in printed
    assert __main__._gate("3.8.0", "no such case", 1, False) == 2


def test_cases_launch_what_is_shipped() -> None:
    """Every size that is on file for both directions has a case, in every variant of its op."""
    named = {(c.op, c.element, c.width, c.units) for c in cases()}
    for op, entries in shipped().items():
        sizes = [(op, e.element, e.width, e.units) for e in entries]
        assert {size for size in sizes if sizes.count(size) == 2} <= named


def test_a_case() -> None:
    """The launches of both directions, with the configurations that were looked up for them."""
    found = Case("target_attention", "half", 64, (64,), "relu", users=64, length=20).launches()
    names = [(launch.kernel, launch.configuration) for launch in found]
    assert names[0] == ("forward_kernel", "target_attention/forward/half/64:64")
    assert ("backward_kernel", "target_attention/backward/half/64:64") in names
    assert found[0].arguments["lengths"][1].max() <= 20
    assert all(launch.cubin.startswith(b"\x7fELF") for launch in found)
