"""Facts of the machine behind a measurement; no host or folder names."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

import mixpol_kernels
from mixpol_kernels.library import library


def machine_facts() -> dict[str, str | int]:
    """CPU, threads, instruction set of the kernels, versions, and the git revision if there is one."""
    facts: dict[str, str | int] = {
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "kernel_isa": library.isa(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "mixpol_kernels": mixpol_kernels.__version__,
    }
    revision = _git_revision()
    if revision:
        facts["revision"] = revision
    return facts


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_revision() -> str:
    """Short revision of the checkout that the package lies in, with a "+" if files differ; or ""."""
    package = Path(mixpol_kernels.__file__).resolve().parent
    # An installed package may lie within the checkout of another project, whose revision would be a lie.
    if not (package.parent / ".git").exists():
        return ""
    try:
        revision = _git(package, "rev-parse", "--short=10", "HEAD")
        changed = _git(package, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return revision + ("+" if changed else "")


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
