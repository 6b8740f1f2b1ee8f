"""The CUDA library builds and links against a CUDA build of torch, and registers its ops; no GPU is needed.

It sets up an environment of its own, gigabytes, so only when asked: `make test-cuda-link CUDA_TORCH=2.14.1`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from emulation import ROOT

VERSION = os.environ.get("MIXPOL_CUDA_TORCH", "")
FOLDER = ROOT / "build" / "cuda"
OPS = (
    "interleave", "mixed_polarity_attention_fwd", "polarity_embedding_fwd", "polarity_fusion_fwd", "table_grad_dense",
    "table_grad_sparse", "target_attention_fwd",
)  # fmt: skip
SCRIPT = """
import json, torch, mixpol_kernels
from mixpol_kernels.library import library
has = torch._C._dispatch_has_kernel_for_dispatch_key
names = sorted(n.removeprefix("mixpol::") for n in torch._C._dispatch_get_all_op_names() if n.startswith("mixpol::"))
print(json.dumps({
    "cuda": torch.version.cuda, "reason": library.reason, "cuda_reason": library.cuda_reason,
    "registered": [n for n in names if has("mixpol::" + n, "CUDA")],
}))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VERSION, reason="needs a CUDA build of torch, gigabytes: make test-cuda-link"),
]


def output(*command: str | Path, **environment: str) -> str:
    run = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert run.returncode == 0, f"{' '.join(map(str, command))}\n{run.stdout}{run.stderr}"
    return run.stdout


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with that torch, set up on first use."""
    folder = FOLDER / "venv"
    ready = folder / "ready"
    if not ready.exists() or ready.read_text() != VERSION:
        output(sys.executable, "-m", "venv", "--clear", folder)
        output(folder / "bin" / "python", "-m", "pip", "install", "--quiet", f"torch=={VERSION}", "numpy")
        ready.write_text(VERSION)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def library(python: Path) -> Path:
    """The CUDA library, beside _C.so; one architecture is enough to link."""
    tools = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    output(
        "cmake", "-S", ROOT, "-B", FOLDER / "link", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={python}", "-DCMAKE_CUDA_ARCHITECTURES=90", **tools,
    )  # fmt: skip
    output("cmake", "--build", FOLDER / "link", **tools)
    path = FOLDER / "link" / "_cuda.so"
    assert path.is_file(), "not built: is nvcc there?"
    return path


def test_ops_are_registered(python: Path, library: Path, tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "mixpol_kernels", tmp_path / "mixpol_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    there = {"PYTHONPATH": str(tmp_path), "MIXPOL_LIBRARY": str(library.with_name("_C.so"))}
    found = json.loads(output(python, "-c", SCRIPT, **there))
    assert found["cuda"]
    assert (found["reason"], found["cuda_reason"]) == ("", "")
    assert found["registered"] == list(OPS)
    assert "ready: forwards" in output(python, "-m", "mixpol_kernels.info", **there)
    # The CPU kernels work beside them.
    output(python, "-m", "mixpol_kernels.testing.selfcheck", "--seed", "11", "--cases", "4", **there)


def test_only_the_stable_abi_is_used(library: Path) -> None:
    """No C++ symbol of torch, as in the CPU library."""
    nm = shutil.which("nm")
    assert nm, "binutils are part of the toolchain"
    wanted = output(nm, "-D", "--undefined-only", library)
    assert "aoti_torch_get_current_cuda_stream" in wanted
    assert not re.findall(r"_ZNK?(?:2at|3c10|5torch)\w*", wanted)
