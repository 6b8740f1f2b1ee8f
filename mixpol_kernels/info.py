"""`python -m mixpol_kernels.info`: what is there, what is not, and how to mend it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys

import torch

import mixpol_kernels
from mixpol_kernels import autocast
from mixpol_kernels.backend import KERNELS
from mixpol_kernels.library import INTERPRETING, ISA_LEVELS, library
from mixpol_kernels.ops.triton import devices

PUBLIC_OPS = [op for op in KERNELS if op in mixpol_kernels.__all__]
WITH_TRITON = ", ".join(op for op in PUBLIC_OPS if "triton" in KERNELS[op])

ENVIRONMENT = {
    "MIXPOL_BACKEND": "what 'auto' stands for: cpu, cuda, triton or reference (default: the first that can run)",
    "MIXPOL_CPU_ISA": f"highest instruction set of the CPU kernels: {', '.join(ISA_LEVELS)} (default: the best)",
    "MIXPOL_LIBRARY": "path of the compiled library (default: the one in the package)",
    "MIXPOL_SKIP_EXT": "1: do not load the compiled library",
    "MIXPOL_TRITON_CONFIGS": "folder with launch configurations that `mixpol tune` wrote (default: the shipped ones)",
}


def report() -> str:
    """The text that the command prints."""
    lines = [
        f"mixpol_kernels {mixpol_kernels.__version__}",
        f"  python      {platform.python_version()} on {platform.machine()} {platform.system()}",
        f"  torch       {torch.__version__}, {torch.get_num_threads()} threads",
    ]
    if library.loaded:
        lines.append(f"  cpu         ready, instruction set {library.isa()} (of {', '.join(ISA_LEVELS)})")
    else:
        lines.append(f"  cpu         not ready: {library.reason}")
    lines.append(f"  cuda        {f'not ready: {library.cuda_reason}' if library.cuda_reason else 'ready: forwards'}")
    lines.append(f"  gpu         {_gpu()}")
    lines.append(f"  triton      {_triton()}")
    lines.append("  reference   ready (plain PyTorch, any device and float dtype)")
    lines.append(f"  autocast    {_autocast()}")
    lines += [f"  waiting     {_waiting()}", f"  pages       {_pages()}"]
    lines += ["kernels", *(f"  {line}" for line in coverage().splitlines())]
    lines.append("environment")
    for name, meaning in ENVIRONMENT.items():
        lines.append(f"  {name}={os.environ.get(name, '')}".ljust(32) + meaning)
    return "\n".join(lines)


def coverage() -> str:
    """Which kernels run which op, as a Markdown table; the reference runs all."""
    lines = ['| op | `"cpu"` | `"triton"` | `"cuda"` |', "|---|---|---|---|"]
    for op in PUBLIC_OPS:
        cells = []
        for backend in ("cpu", "triton", "cuda"):
            kernels = KERNELS[op].get(backend)
            words = "-"
            if kernels is not None:
                dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in kernels.dtypes)
                words = dtypes if kernels.backward or op == "interleave" else f"{dtypes}; forward"
            cells.append(words)
        lines.append(f"| `{op}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none found by torch"
    if reason := devices.refusal(torch.cuda.current_device()):
        return f"{torch.cuda.get_device_name()}; the PyTorch reference runs every op: of kernels in Triton, {reason}"
    return f"{torch.cuda.get_device_name()}; in Triton: {WITH_TRITON}"


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed; needed on a GPU only (`pip install triton`)"
    version = importlib.metadata.version("triton")
    if INTERPRETING:
        return f"{version}; TRITON_INTERPRET=1: backend='triton' interprets its kernels on the CPU, for tests"
    return f"{version}, kernels for {WITH_TRITON}" + ("" if torch.cuda.is_available() else "; not used without a GPU")


def _autocast() -> str:
    """In which dtype attention computes under it; `explain` says it of one call."""
    words = []
    for device, dtype in (("cpu", torch.bfloat16), ("cuda", torch.bfloat16)):
        found, why = autocast.computed_in("target_attention", "auto", device, low=dtype)
        words.append(f"{device}: {str(found).removeprefix('torch.')}, since {why}")
    return f"to bfloat16, attention computes on {'; on '.join(words)}"


def _waiting() -> str:
    """How the threads of torch's OpenMP wait for one another, and what that costs."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        if value := os.environ.get(name):
            return f"{name}={value}"
    return (
        "threads that wait keep their cores: beside another busy process a step of several threads takes up to ten "
        "times as long; GOMP_SPINCOUNT=10000, set before torch is imported, bounds it"
    )


def _pages() -> str:
    """In which pages torch takes memory, and what that costs."""
    if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1":
        return "THP_MEM_ALLOC_ENABLE=1: large tensors in huge pages"
    return (
        "large tensors in small pages: long histories may train more slowly; THP_MEM_ALLOC_ENABLE=1, set before "
        "torch is imported, takes huge ones"
    )


if __name__ == "__main__":
    print(report())
    sys.exit(0 if library.loaded else 1)
