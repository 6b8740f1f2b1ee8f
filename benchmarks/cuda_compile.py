"""Compiles every CUDA source ahead of time and reads what the compiler made: no GPU needed, but nvcc.

`python benchmarks/cuda_compile.py` writes benchmarks/CUDA_COMPILE.md; tests/cuda_host/test_cuda_compile.py gates it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mixpol_kernels.ops.unit import ACTIVATIONS

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "CUDA_COMPILE.md"
ARCHITECTURES = (80, 90, 100)
# Kernels that stream rows of tokens, of tables or of gradients: their loads must be 16 bytes wide.
STREAMS = ("attention_forward", "polarity_fusion_forward", "polarity_embedding_forward", "sum_runs<float4>")
# They print what they refuse, and printf's arguments lie on the stack.
PRINT = ("check_values", "count_events")


@dataclass(frozen=True)
class Compiled:
    """Result of compiling one kernel: bytes per thread, and the widest load from device memory."""

    kernel: str
    architecture: int
    registers: int
    spills: int
    stack: int
    load: int

    def faults(self) -> list[str]:
        """Violations of the gate."""
        name = f"{self.kernel} on sm_{self.architecture}"
        found = [f"{name} spills {self.spills} bytes"] if self.spills else []
        if self.stack and not self.kernel.startswith(PRINT):
            found.append(f"{name} has a stack of {self.stack} bytes")
        if self.kernel.startswith(STREAMS) and self.load < 16:
            found.append(f"{name} loads {self.load} bytes at most; expected 16")
        if self.registers > 128 and self.kernel.startswith(STREAMS):
            found.append(f"{name} takes {self.registers} registers; expected at most 128")
        return found


def nvcc() -> str | None:
    """The compiler, where CMake looks for it too."""
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [f"{home}/bin" for home in (*homes, "/usr/local/cuda") if home]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(folders))


def sources() -> list[Path]:
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def digest() -> str:
    """Digest of the kernels' sources: it tells whether a table is older than them."""
    files = [*ROOT.glob("csrc/cuda/*"), *ROOT.glob("csrc/math/*"), ROOT / "csrc" / "schemas.inc"]
    text = b"\0".join(path.name.encode() + b"\0" + path.read_bytes() for path in sorted(files))
    return hashlib.sha256(text).hexdigest()[:16]


def compile_all(architectures: Sequence[int] = ARCHITECTURES, jobs: int = 2) -> list[Compiled]:
    """Compiles every .cu with its launchers; a warning of the compiler is an error."""
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda source: compile_one(source, architectures), sources())
    # Kernels in headers that several files include are compiled in each, to the same.
    unique = {(c.kernel, c.architecture): c for compiled in found for c in compiled}
    return [unique[key] for key in sorted(unique)]


def compile_one(source: Path, architectures: Sequence[int]) -> list[Compiled]:
    compiler = nvcc()
    assert compiler, "nvcc was not found; set CUDA_HOME"
    spec = importlib.util.find_spec("torch")
    assert spec, "torch's headers are needed"
    assert spec.submodule_search_locations
    include = Path(spec.submodule_search_locations[0]) / "include"
    with tempfile.TemporaryDirectory(prefix="mixpol-cuda-") as scratch:
        command = [
            compiler, "-O3", "-std=c++20", "-c", str(source), "-o", f"{scratch}/out.o", f"-I{ROOT / 'csrc'}",
            "-isystem", str(include), "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-Werror=all-warnings",
            "-Xcompiler=-fPIC,-Wall,-Wextra,-Werror", "-Xptxas=-v,--warn-on-spills", "--keep", "--keep-dir", scratch,
        ]  # fmt: skip
        command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{run.stdout}{run.stderr}")
        found: list[Compiled] = []
        for architecture in architectures:
            files = list(Path(scratch).glob(f"*.compute_{architecture}.ptx")) or list(Path(scratch).glob("*.ptx"))
            found += read(run.stderr, "\n".join(path.read_text() for path in files), architecture)
        return found


def read(log: str, ptx: str, architecture: int) -> list[Compiled]:
    """Kernels of one architecture, from what ptxas says and from the PTX."""
    said = re.compile(
        rf"Compiling entry function '(\w+)' for 'sm_{architecture}'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    loads = {name: widest_load(body) for name, body in re.findall(r"\.entry (\w+)\((.*?)\n}", ptx, re.DOTALL)}
    return [
        Compiled(name_of(name), architecture, int(registers), int(stores) + int(reloads), int(stack), loads[name])
        for name, stack, stores, reloads, registers in said.findall(log)
    ]


def widest_load(body: str) -> int:
    """Bytes of the widest ld.global."""
    widths = re.findall(r"ld\.global(?:\.nc)?(?:\.(v[24]))?\.[a-z](\d+)", body)
    return max((int(bits) // 8 * int(vector[1:] or 1 if vector else 1) for vector, bits in widths), default=0)


def name_of(mangled: str) -> str:
    """A kernel's name as the sources write it."""
    filter_ = shutil.which("c++filt")
    assert filter_, "binutils are part of the toolchain"
    name = subprocess.run([filter_, mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"^void ", "", name).replace("mixpol::cuda::", "").replace("(anonymous namespace)::", "")
    name = re.sub(r"\(mixpol::Activation\)(\d)", lambda m: ACTIVATIONS[int(m[1])], name)
    return name.replace("<long>", "<int64_t>").partition("(")[0]


def table(compiled: Sequence[Compiled]) -> str:
    """The report: a row a kernel."""
    architectures = sorted({c.architecture for c in compiled})
    rows = []
    for kernel in sorted({c.kernel for c in compiled}):
        these = {c.architecture: c for c in compiled if c.kernel == kernel}
        registers = " | ".join(str(these[a].registers) for a in architectures)
        spills, stack = (max(getattr(c, field) for c in these.values()) for field in ("spills", "stack"))
        rows.append(f"| `{kernel}` | {registers} | {spills} | {stack} | {min(c.load for c in these.values())} |")
    compiler = nvcc()
    assert compiler
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"V(\d\S*)", version)
    heads = " | ".join(f"registers sm_{a}" for a in architectures)
    return "\n".join(
        [
            "# What nvcc makes of the CUDA kernels",
            "",
            f"Written by `make cuda-compile` with nvcc {release[1] if release else '?'}; sources {digest()}.",
            "Nothing here was run on a GPU. Bytes are per thread: the most of the architectures for spills and stack,",
            "the least for loads. The gate (tests/cuda_host/test_cuda_compile.py): no spills, no stack but where a",
            "kernel prints what it refuses, at most 128 registers and 16-byte loads in the kernels that stream rows.",
            "Shared memory is dynamic: planned for the shape within what a block of the device can have",
            "(csrc/cuda/shared_memory.cuh), or refused.",
            "",
            f"| kernel | {heads} | spilled | stack | widest load |",
            "|---|" + "---:|" * (len(architectures) + 3),
            *rows,
            "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    results = compile_all()
    TABLE.write_text(table(results))
    faults = [fault for c in results for fault in c.faults()]
    print("\n".join(faults) or f"{TABLE}: {len(results)} kernels, nothing refused")
    sys.exit(bool(faults))
