"""What is released installs into an empty environment and runs the quick start there, without a compiler.

The compiled wheel is packed from the build that `make setup` left in build/Release: that takes seconds, compiling takes
minutes, and `make wheel` compiles where nothing is built. The pure wheel comes from the unpacked source archive.
"""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from pages import ROOT
from wheels import PURE, build, installed, quick_start

import mixpol_kernels

pytestmark = pytest.mark.slow
NAME = f"mixpol_kernels-{mixpol_kernels.__version__}"
BUILT = ROOT / "build" / "Release" / "_C.so"


def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_source_archive_and_pure_wheel(tmp_path: Path) -> None:
    archive = build(tmp_path / "sdist", "--sdist")
    assert archive.name == f"{NAME}.tar.gz"
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    sources = tmp_path / NAME
    needed = [p.relative_to(ROOT) for p in ROOT.glob("csrc/**/*") if p.is_file()]
    assert not [path for path in (*needed, "CMakeLists.txt", "LICENSE") if not (sources / path).exists()]

    wheel = build(tmp_path / "wheel", "--wheel", PURE, source=sources)
    assert wheel.name == f"{NAME}-py3-none-any.whl"
    assert not [name for name in names(wheel) if name.endswith(".so")]
    python = installed(wheel, tmp_path / "environment")
    assert "cpu         not ready: no compiled library" in quick_start(python, tmp_path, backend="reference")


@pytest.mark.skipif(not BUILT.exists(), reason="nothing is compiled in build/Release; make setup does it")
def test_compiled_wheel(tmp_path: Path) -> None:
    wheel = build(tmp_path / "wheel", "--wheel")
    assert wheel.name.startswith(f"{NAME}-py3-none-linux_"), "one for every Python: torch loads the library"
    inside = names(wheel)
    assert {"mixpol_kernels/_C.so", "mixpol_kernels/lib/libmixpol.so", "mixpol_kernels/py.typed"} <= inside
    assert {"mixpol_models/configs/din.yaml", "mixpol_kernels/ops/target_attention/triton/configs/sm_90.json"} <= inside
    assert {name.partition("/")[0] for name in inside} == {"mixpol_kernels", "mixpol_models", f"{NAME}.dist-info"}
    quick_start(installed(wheel, tmp_path / "environment"), tmp_path, backend="cpu")


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == mixpol_kernels.__version__
    assert f'version = "{mixpol_kernels.__version__}"' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_commit_hooks_do_what_lint_does() -> None:
    """The same tools, of the development environment and so of the pinned versions."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    lint = makefile[makefile.index("\nlint:") : makefile.index("\nformat:")]
    entries = [hook["entry"] for hook in hooks[0]["hooks"]]
    for entry in entries:
        assert entry.replace(".venv/", "").replace(" --force-exclude", "").split()[0].partition("/")[2] in lint
    for command in lint.strip().splitlines()[1:]:
        tool, _, rest = command.strip().removeprefix("$(BIN)/").partition(" ")
        flags = [word for word in rest.split() if word.startswith("--") or word in ("check", "format")]
        assert any(f"/{tool}" in entry and all(flag in entry.split() for flag in flags) for entry in entries), command
    pins = (ROOT / "constraints.txt").read_text("utf-8")
    assert all(f"\n{tool}==" in pins for tool in ("ruff", "mypy", "clang-format"))
