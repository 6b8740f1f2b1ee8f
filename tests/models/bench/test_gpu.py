"""The GPU report, run on the CPU: its checks, its files, and that one failure hides nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mixpol_kernels
from mixpol_models.bench import gpu, gpu_problems
from mixpol_models.bench.gpu import Size, run_report
from mixpol_models.cli import app

CPU = torch.device("cpu")
SMALL = Size(users=8, length=20, width=16, units=16)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "seconds_of", lambda call, device: (call(), 0.001)[1])
    monkeypatch.setattr(torch, "compile", lambda form: form)  # tests of the ladder compile


@pytest.mark.usefixtures("_quick")
def test_report(tmp_path: Path) -> None:
    checks = run_report(CPU, tmp_path, SMALL, backend="cpu")
    assert [c.name for c in checks if c.passed is False] == []
    assert [c.name for c in checks if c.passed is None] == ["graph capture", "memory bandwidth"]
    saved = json.loads((tmp_path / "gpu_report.json").read_text())
    assert len(saved["checks"]) == len(checks) == 21
    text = (tmp_path / "gpu_report.md").read_text()
    assert "| fused |" in text
    assert "| refactored+compile |" in text
    assert "| correct: relu, none, float32 | passed |" in text
    assert "| correct: mixed_polarity_attention, float32 | passed |" in text
    assert '| correct: interleave | passed | {"backend": "cpu"} |' in text


@pytest.mark.usefixtures("_quick")
def test_a_failure_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(gpu, "_deterministic", broken)
    checks = {c.name: c for c in run_report(CPU, tmp_path, SMALL, backend="cpu")}
    assert checks["deterministic"].passed is False
    assert checks["ladder: bfloat16"].passed
    assert "| deterministic | FAILED | RuntimeError: out of luck |" in (tmp_path / "gpu_report.md").read_text()


@pytest.mark.usefixtures("_quick")
def test_wrong_numbers_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = gpu._results

    def off(layer: torch.nn.Module, *more: torch.Tensor) -> dict[str, torch.Tensor]:
        found = results(layer, *more)
        return found if layer.backend == "reference" else found | {"out": found["out"] + 1e-3}

    monkeypatch.setattr(gpu, "_results", off)
    checks = run_report(CPU, tmp_path, SMALL, backend="cpu")
    mended = {c.name for c in checks if c.name.startswith("correct") and c.passed}
    assert not any(name.endswith("float32") and "_" not in name for name in mended)


@pytest.mark.usefixtures("_quick")
def test_wrong_numbers_of_another_op_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, merge = gpu_problems.Problem.run, mixpol_kernels.interleave

    def off(problem: gpu_problems.Problem, backend: str, *more: Any) -> dict[str, torch.Tensor]:
        found = run(problem, backend, *more)
        return found if backend == "reference" else {name: 1.001 * value for name, value in found.items()}

    def shifted(*given: Any, backend: str = "auto", **options: Any) -> Any:
        found = merge(*given, backend=backend, **options)
        return found if backend == "reference" else found._replace(source=found.source.flip(0))

    monkeypatch.setattr(gpu_problems.Problem, "run", off)
    monkeypatch.setattr(mixpol_kernels, "interleave", shifted)
    failed = {c.name for c in run_report(CPU, tmp_path, SMALL, backend="cpu") if c.passed is False}
    assert failed == {f"correct: {op}, float32" for op in gpu._OTHERS} | {"correct: interleave"}


def test_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(app, ["gpu-report", "--output", str(tmp_path / "report")])
    assert done.exit_code == 0
    assert "No GPU that torch can use" in done.output
    assert not (tmp_path / "report").exists()
