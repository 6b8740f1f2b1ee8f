"""The H200 as the replay sees it: what each instruction occupies and for how long, and the replay of one SM."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpu_replay.emulate import GLOBAL, SHARED, Basic, Run
from gpu_replay.sass import Instruction, Kernel

SOURCE = Path(__file__).parent / "replay.cpp"
BUILD = Path(__file__).parents[2] / "build" / "gpu_replay"
UNITS = (
    "fma", "alu", "wide integer", "special", "uniform", "tensor", "tensor group", "shared", "load", "store",
    "async copy", "constant", "barrier", "commit copies", "wait copies", "wait tensor", "control",
)  # fmt: skip
SMS, CLOCK = 132, 1.98e9  # the clock that H200s hold in kernels of this size
SHARED_OF_SM, SHARED_RESERVED, L1_OF_SM = 228 << 10, 1 << 10, 256 << 10
REGISTERS_OF_SM, WARPS_OF_SM, BLOCKS_OF_SM = 65536, 64, 32


@dataclass(frozen=True)
class Machine:
    """Latencies in cycles and bytes a cycle and SM, one set, fitted to the rows of docs/results/h200.md."""

    shared_latency: float = 23
    l1_latency: float = 37
    l2_latency: float = 290
    dram_latency: float = 800
    special_latency: float = 18
    barrier_latency: float = 25
    tensor_latency: float = 24
    group_latency: float = 40
    alu_latency: float = 6
    constant_latency: float = 30
    start_latency: float = 200
    l2_bytes: float = 21
    dram_bytes: float = 14.5
    queue: float = 24  # cycles of requests that wait for L1 before schedulers hold further ones back


H200 = Machine()


def blocks_of_sm(registers: int, warps: int, shared: int) -> int:
    """Blocks that one SM holds at a time.

    Args:
        registers: of a thread.
        warps: of a block.
        shared: bytes of a block.
    """
    per_warp = -(-max(registers, 1) * 32 // 256) * 256
    by_registers = REGISTERS_OF_SM // per_warp // warps
    return min(by_registers, WARPS_OF_SM // warps, SHARED_OF_SM // (shared + SHARED_RESERVED), BLOCKS_OF_SM)


_FLOAT = ("FFMA", "FMUL", "FADD", "HFMA2", "HADD2", "HMUL2", "HSETP2", "HMNMX2", "HSET2")
_CONTROL = (
    "BRA", "EXIT", "BSSY", "BSYNC", "NOP", "WARPSYNC", "FENCE", "BREAK", "CALL", "RET", "YIELD", "MEMBAR", "ERRBAR",
    "BMOV", "CCTL", "NANOSLEEP",
)  # fmt: skip


def unit(i: Instruction) -> tuple[str, float, int]:
    """Where an instruction runs, for how many cycles of its scheduler's share of it, and an argument."""
    b = i.base
    if b in _FLOAT:
        return "fma", 1, 0
    if b in ("F2FP", "I2FP"):
        return "alu", 2, 0
    if b in ("F2F", "I2F", "F2I", "MUFU", "FRND"):
        return "special", 8, 0
    if b == "IMAD":
        return "wide integer", 2, 0
    if b in ("LDS", "STS", "LDSM", "STSM", "ATOMS"):
        return "shared", 1, 0
    if b == "SHFL":
        return "shared", 1, 0
    if b == "LDGSTS":
        return "async copy", 1, 0
    if b in ("LDG", "LD", "ATOM", "ATOMG"):
        return "load", 1, 0
    if b in ("STG", "ST", "RED"):
        return "store", 1, 0
    if b in ("LDL", "STL"):
        return ("load" if b == "LDL" else "store"), i.width / 4, 0
    if b == "LDGDEPBAR":
        return "commit copies", 1, 0
    if b == "DEPBAR":
        return "wait copies", 1, int(i.operands[1], 0)
    if b in ("LDC", "S2R", "S2UR"):
        return "constant", 1, 0
    if b in ("HMMA", "IMMA"):
        return "tensor", _tensor_cycles(i), 0
    if b in ("HGMMA", "QGMMA", "IGMMA"):
        m, n, k = map(int, i.name.split(".")[1].split("x"))
        rate = 256 if "TF32" in i.modifiers else 512 if b == "HGMMA" else 1024
        return "tensor group", m // 4 * n * k / rate, int(any("gsb" in o for o in i.operands))
    if b == "WARPGROUP":
        waits = "DEPBAR" in i.modifiers
        return ("wait tensor", 1, int(i.operands[-1], 0)) if waits else ("control", 1, 0)
    if b == "BAR":
        return "barrier", 1, 0
    if b in _CONTROL:
        return "control", 1, 0
    return ("uniform", 2, 0) if b.startswith("U") or b == "R2UR" else ("alu", 2, 0)


def _tensor_cycles(i: Instruction) -> float:
    """Of a warp's matrix instruction, which reaches about 0.62 of what those of warp groups do."""
    shape = re.fullmatch(r"(\d\d)(\d+)", i.name.split(".")[1])
    k = int(shape[2]) % 100 if shape else 8
    k = k if k in (4, 8, 16, 32) else 8
    rate = 256 if "TF32" in i.modifiers else 512
    return 16 * 8 * k / rate / 0.62


_TYPE = np.dtype(
    [(n, np.int32) for n in ("unit", "stall", "sets", "reads", "waits", "argument", "access")]
    + [("cycles", np.float32)]
)


def _table(code: Sequence[Instruction]) -> np.ndarray:
    rows = np.zeros(len(code), _TYPE)
    for row, i in zip(rows, code, strict=True):
        name, cycles, argument = unit(i)
        access = i.base in GLOBAL + SHARED and not i.never
        values = (UNITS.index(name), i.stall, i.sets, i.reads, i.waits, argument, access, cycles)
        for field, value in zip(_TYPE.names or (), values, strict=True):
            row[field] = value
    return rows


@dataclass(frozen=True)
class Replayed:
    """One SM.

    Attributes:
        cycles, instructions: of the whole; instructions of warps.
        l1, l2, dram: shares of the time in which these were busy.
        units: the same by unit, of one scheduler on average.
    """

    cycles: float
    instructions: float
    l1: float
    l2: float
    dram: float
    units: dict[str, float]


def replay(
    kernel: Kernel, basics: Sequence[Basic], runs: Sequence[Run], warps: int, slots: int, machine: Machine = H200
) -> Replayed:
    """Replays blocks on one SM, `slots` at a time, in this order.

    Raises:
        RuntimeError: the warps wait for each other, so that the code was not understood.
    """
    accesses = [
        (t.wavefronts / warps, t.l2 / warps, t.dram / warps) for run in runs for t in run.traffic
    ]  # an access is the same for all warps of a block
    lengths = np.array([len(run.blocks) for run in runs])
    ends = lengths.cumsum()
    first_access = np.cumsum([0, *(len(run.traffic) for run in runs)])[:-1]
    code = _table(kernel.code)
    first = np.array([b.first for b in basics], np.int32)
    end = np.array([b.end for b in basics], np.int32)
    trace = np.array([b for run in runs for b in run.blocks], np.int32)
    blocks = np.ascontiguousarray(np.stack([ends - lengths, ends, first_access], 1), np.int64)
    costs = np.array(accesses, np.float32).reshape(-1, 3)
    parameters = np.array(dataclasses.astuple(machine), np.float32)
    result = np.zeros(5 + len(UNITS), np.float64)

    def at(array: np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    stuck = _library().replay(
        at(code), at(first), at(end), at(trace), at(blocks), ctypes.c_int64(len(runs)), at(costs),
        ctypes.c_int32(warps), ctypes.c_int32(min(slots, len(runs))), at(parameters), at(result),
    )  # fmt: skip
    if stuck:
        raise RuntimeError(f"{kernel.name}: every warp waits for another one; the machine code was not understood")
    cycles, instructions, l1, l2, dram, *busy = result.tolist()
    shares = {name: round(b / cycles / 4, 4) for name, b in zip(UNITS, busy, strict=True)}
    return Replayed(cycles, instructions, l1 / cycles, l2 / cycles, dram / cycles, shares)


@functools.cache
def _library() -> ctypes.CDLL:
    """`replay.cpp`, compiled once for each content into build/."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    path = BUILD / f"replay-{digest}.so"
    if not path.exists():
        compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
        if not compiler:
            raise RuntimeError("the replay needs a C++ compiler, as the package does: install one, or set CXX")
        BUILD.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, "-O2", "-std=c++17", "-shared", "-fPIC", "-o", fresh, SOURCE], check=True)
        fresh.replace(path)
    return ctypes.CDLL(str(path))
