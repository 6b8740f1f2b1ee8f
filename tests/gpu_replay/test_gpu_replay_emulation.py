"""Machine code is read and followed rightly: addresses, trip counts, wavefronts, caches, and one SM's time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gpu_replay import calibration, machine
from gpu_replay.emulate import Emulator, NotUnderstood, Run, constants
from gpu_replay.integers import compiled
from gpu_replay.memory import COMMON, Memory, matrix_wavefronts, wavefronts
from gpu_replay.predict import Subject
from gpu_replay.registers import Registers
from gpu_replay.sass import Instruction, Kernel, parse
from planted import granules_kernel, launched, scatter_kernel

LANES = np.arange(32, dtype=np.uint64)
ALL = np.ones(32, bool)


@pytest.mark.parametrize(
    ("stride", "width", "expected"),
    [(4, 4, 1), (8, 4, 2), (128, 4, 32), (132, 4, 1), (0, 4, 1), (8, 8, 2), (16, 16, 4), (128, 16, 32), (144, 16, 4)],
)
def test_wavefronts(stride: int, width: int, expected: int) -> None:
    found, ideal = wavefronts(LANES * np.uint64(stride), width, ALL)
    assert (found, ideal) == (expected, max(width // 4, 1))


def test_wavefronts_of_some_lanes() -> None:
    """Lanes that are not active ask for nothing; warps add up; neighbours with one address go together."""
    assert wavefronts(LANES * np.uint64(128), 4, LANES < 3) == (3, 1)
    assert wavefronts(LANES * np.uint64(128), 4, LANES < 0) == (0, 0)
    assert wavefronts(np.tile(LANES * np.uint64(4), 2), 4, np.ones(64, bool)) == (2, 2)
    assert wavefronts(LANES // 2 * np.uint64(16), 16, ALL)[0] == 2
    assert matrix_wavefronts(LANES * np.uint64(16), 4) == (4, 4)
    assert matrix_wavefronts(LANES * np.uint64(128), 4) == (32, 4)


def test_caches() -> None:
    """What a block reads first comes from memory, then from L1; what it wrote, or L1 had to drop, from L2."""
    large, small = torch.empty(COMMON), torch.empty(64)
    memory = Memory([large, small], l1=4 * 32)
    base = np.uint64(memory.pointer(large))
    first = memory.load(base + LANES * np.uint64(4), 4)
    assert (first.wavefronts, first.dram, first.l2) == (1, 128, 0)
    again = memory.load(base + LANES * np.uint64(4), 4)
    assert (again.dram, again.l2) == (0, 0)
    assert memory.load(base + np.uint64(4096) + LANES * np.uint64(4), 4).dram == 128
    assert memory.load(base + LANES * np.uint64(4), 4).l2 == 128
    assert memory.store(base + LANES * np.uint64(4), 4).l2 == 128
    assert memory.load(base + LANES * np.uint64(4), 4).l2 == 128
    assert memory.load(base + LANES * np.uint64(128), 4).wavefronts == 32
    shared = memory.load(np.uint64(memory.pointer(small)) + LANES * np.uint64(4), 4)
    assert (shared.dram, shared.l2) == (0, 128)


def test_values_of_integers() -> None:
    ids, flags = torch.tensor([7, -1, 1 << 40]), torch.tensor([True, False])
    memory = Memory([ids, flags, torch.empty(4)], 0)
    at = np.uint64(memory.pointer(ids))
    assert memory.read(at + np.array([0, 8, 16], np.uint64), 4).tolist() == [7, 0xFFFFFFFF, 0]
    assert memory.read(int(at) + 20, 4) == 1 << 8
    assert memory.read(memory.pointer(flags), 1) == 1
    assert memory.read(memory.pointer(ids[1:]), 4) == 0xFFFFFFFF
    assert Memory([torch.empty(4)], 0).read(1 << 36, 4) is None


def _after(*code: tuple[str, str], **values: Any) -> Registers:
    """Registers after instructions; R0 is the thread."""
    s = Registers(32)
    s.values[0] = s.thread
    for name, value in values.items():
        s.values[int(name[1:])] = value
    for name, operands in code:
        compiled(Instruction(0, name, tuple(operands.split(", "))))(s)
    return s


def test_integer_arithmetic() -> None:
    """Carries, signs and the shift of 64 bits, on numbers that need them."""
    s = _after(("IADD3", "R2, P0, R1, 0x1, RZ"), ("IADD3.X", "R3, RZ, RZ, RZ, P0, !PT"), R1=0xFFFFFFFF)
    assert (s.values[2], s.values[3]) == (0, 1)
    s = _after(("IADD3", "R2, P0, R1, -R4, RZ"), ("IADD3.X", "R3, R5, ~R6, RZ, P0, !PT"), R1=5, R4=7, R5=2, R6=0)
    assert s.values[2] | s.values[3] << 32 == (2 << 32) + 5 - 7
    s = _after(("IADD3", "R2, P0, R1, -0x80, RZ"), ("IADD3.X", "R3, R4, -0x1, RZ, P0, !PT"), R1=380, R4=0)
    assert (s.values[2], s.values[3]) == (252, 0)
    s = _after(("IMAD.WIDE", "R2, R1, R4, R6"), R1=0xFFFFFFFE, R4=3, R6=1, R7=0)
    assert s.values[2] | s.values[3] << 32 == (-6 + 1) % (1 << 64)
    s = _after(("LEA", "R2, P0, R1, R4, 0x3"), ("LEA.HI.X", "R3, R1, R5, RZ, 0x3, P0"), R1=1 << 30, R4=1, R5=9)
    assert s.values[2] | s.values[3] << 32 == (9 << 32) + 1 + (1 << 33)
    s = _after(("SHF.R.S32.HI", "R2, RZ, 0x1f, R1"), ("SHF.L.U64.HI", "R3, R1, 0x4, RZ"), R1=0x80000000)
    assert (s.values[2], s.values[3]) == (0xFFFFFFFF, 8)
    s = _after(("LOP3.LUT", "R2, R0, 0x1c, RZ, 0xc0, !PT"), ("PRMT", "R3, R1, 0x7632, R1"), R1=0xAABBCCDD)
    assert s.values[2].tolist() == [lane & 0x1C for lane in range(32)]
    assert s.values[3] == 0xAABBAABB
    s = _after(("SGXT", "R2, R1, 0x4"), ("IABS", "R3, R2"), R1=0x1C)
    assert (s.values[2], s.values[3]) == (0xFFFFFFFC, 4)


def test_comparisons() -> None:
    """Signed and not, of 64 bits by halves, and the other lanes' value."""
    s = _after(("ISETP.LT.AND", "P0, PT, R1, RZ, PT"), ("ISETP.LT.U32.AND", "P1, PT, R1, RZ, PT"), R1=0xFFFFFFFF)
    assert (s.flags[0], s.flags[1]) == (True, False)
    low, high = ("ISETP.GE.U32.AND", "P0, PT, R1, R3, PT"), ("ISETP.GE.AND.EX", "P0, PT, R2, R4, PT, P0")
    for a, b in ((5, 4), (4, 5), (1 << 33, 5), (5, 1 << 33), (-1, 0), (0, -1), (7, 7)):
        halves = {"R1": a & 0xFFFFFFFF, "R2": a >> 32 & 0xFFFFFFFF, "R3": b & 0xFFFFFFFF, "R4": b >> 32 & 0xFFFFFFFF}
        assert _after(low, high, **halves).flags[0] is (a >= b), (a, b)
    s = _after(("SHFL.BFLY", "PT, R2, R0, 0x4, 0x1f"), ("SHFL.IDX", "PT, R3, R0, RZ, 0x1f"))
    assert s.values[2].tolist() == [lane ^ 4 for lane in range(32)]
    assert set(s.values[3].tolist()) == {0}


def _emulated(launch: Any, blocks: list[int]) -> tuple[Emulator, list[int]]:
    """The emulator, and every address that was stored to, in order."""
    subject = Subject(launch)
    stored: list[int] = []
    memory = subject._memory()
    store = memory.store
    memory.store = lambda at, width: (stored.extend(np.asarray(at).tolist()), store(at, width))[1]  # type: ignore[method-assign]
    bank = constants(launch.arguments, memory, launch.grid, 32 * launch.warps)
    emulator = Emulator(subject.kernel, 32 * launch.warps, memory, bank)
    for block in blocks:
        emulator.run(block, launch.grid)
    return emulator, stored


def test_addresses_and_trip_counts() -> None:
    """Of a kernel with divisions, products of 64 bits, and loops whose ends are in memory."""
    ends = torch.tensor([0, 300, 300, 1100])
    out = torch.empty(1)
    first, columns, stride = 1000, 37, (1 << 33) + 8
    launch = launched(scatter_kernel, 3, out, first, ends, columns, stride, COUNT=128, num_warps=4)
    for block, (begin, end) in enumerate([(0, 300), (300, 300), (300, 1100)]):
        emulator, stored = _emulated(launch, [block])
        base = emulator.memory.pointer(out)
        at = np.arange(begin, end) + first
        assert sorted(stored) == sorted((base + 4 * (at // columns * stride + at % columns)).tolist())
        assert not emulator.undecided


def test_tiles_of_a_persistent_block() -> None:
    """A row's user comes from memory and is spread over lanes; every row is written where it says."""
    users = torch.randint(0, 1000, (4 * 32,))
    x, out = torch.empty(128, 64), torch.empty(1000, 64)
    launch = launched(granules_kernel, 2, x, users, out, 4, D=64, TILE=32, num_warps=4)
    emulator, stored = _emulated(launch, [0, 1])
    rows = {(at - emulator.memory.pointer(out)) // 256 for at in stored}
    assert rows == set(users.tolist())
    assert sum(a.unknown for a in emulator.accesses.values()) == 0


def test_one_thread_goes_the_same_way() -> None:
    launch = calibration.Measurement("backward", "tf32x3", 50, 472).launch()
    subject = Subject(launch)
    whole, thread = subject._emulator(32 * launch.warps), subject._emulator(1)
    assert whole.run(3, launch.grid).blocks == thread.run(3, launch.grid).blocks


def _code(*rows: tuple[str, str, dict[str, int]]) -> Kernel:
    made = [Instruction(16 * n, name, tuple(o.split(", ")), **more) for n, (name, o, more) in enumerate(rows)]
    return Kernel("made", (*made, Instruction(16 * len(made), "EXIT", ())))


def _cycles(kernel: Kernel, runs: list[Run] | None = None, warps: int = 1) -> machine.Replayed:
    emulator = Emulator(kernel, 32 * warps, Memory([], 0), {})
    return machine.replay(kernel, emulator.basics, runs or [emulator.run(0, (1, 1, 1))], warps, 1)


def test_one_sm_keeps_the_compilers_stalls() -> None:
    """A chain of products takes its stall counts, and four schedulers run four of them in the same time."""
    chain = _code(*[("FFMA", "R1, R1, R1, R1", {"stall": 4})] * 100)
    alone = _cycles(chain)
    assert 400 <= alone.cycles - machine.H200.start_latency <= 410
    assert alone.instructions == 101
    assert _cycles(chain, warps=4).cycles == alone.cycles
    assert _cycles(chain, warps=16).cycles == pytest.approx(alone.cycles, abs=8)
    dense = _code(*[("FFMA", "R1, R2, R3, R4", {"stall": 1})] * 400)
    assert _cycles(dense, warps=8).cycles - _cycles(dense, warps=4).cycles == pytest.approx(400, abs=8)


def test_one_sm_waits_for_barriers() -> None:
    """A result that a barrier guards is waited for; the same without the wait is not."""
    load = ("LDS", "R4, [R1]", {"sets": 0})
    use, free = ("FADD", "R5, R4, R4", {"waits": 1}), ("FADD", "R5, R4, R4", {"waits": 0})
    assert _cycles(_code(load, use)).cycles - _cycles(_code(load, free)).cycles > 20


def test_wavefronts_take_time() -> None:
    """Conflicts of 32 ways cost 32 times what none cost."""
    rows = [("S2R", "R1, SR_TID.X", {"stall": 2})]
    rows += [("IMAD.SHL.U32", "R2, R1, 0x4, RZ", {}), ("IMAD.SHL.U32", "R3, R1, 0x80, RZ", {})]
    apart, packed = (_cycles(_code(*rows, *[("LDS", f"R4, [{r}]", {})] * 300), warps=4) for r in ("R3", "R2"))
    assert packed.cycles < apart.cycles / 20
    assert apart.l1 > 0.9


def test_what_is_not_understood_is_said() -> None:
    endless = Kernel("endless", (Instruction(0, "NOP", ()), Instruction(16, "BRA", ("`(.L)",), target=0)))
    with pytest.raises(NotUnderstood, match="block 0 does not end within 1000 instructions"):
        Emulator(endless, 32, Memory([], 0), {}).run(0, (1, 1, 1), limit=1000)


def test_the_reader() -> None:
    """Guards, targets, operands and the scheduling bits, as the disassembler prints them."""
    text = """
        .section        .text.made,"ax",@progbits
.text.made:
        /*0000*/                   LDS.128 R4, [R2.X4+0x10] ;       /* 0x0000100002047984 */
                                                                    /* 0x000e280000000c00 */
.L_x_1:
        /*0010*/              @!P2 IADD3 R3, R3.reuse, -0x1, RZ ;   /* 0xffffffff03037810 */
                                                                    /* 0x001fca0007ffe0ff */
        /*0020*/               @P0 BRA `(.L_x_1) ;                  /* 0xfffffff000000947 */
                                                                    /* 0x000fea000383ffff */
    """
    (kernel,) = parse(text)
    load, add, branch = kernel.code
    assert (load.base, load.width, load.operands) == ("LDS", 16, ("R4", "[R2.X4+0x10]"))
    assert (load.sets, load.stall) == (0, 4)
    assert (add.guard, add.negated, add.operands[1], add.waits) == ("P2", True, "R3", 1)
    assert (branch.target, branch.guard) == (0x10, "P0")
    assert [(loop.first, loop.last) for loop in kernel.loops] == [(0x10, 0x20)]


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "blocks"),
    [(128, 4, 25600, 4), (106, 8, 34816, 2), (255, 8, 98304, 1), (32, 4, 0, 16), (16, 1, 0, 32), (40, 8, 100 << 10, 2)],
)
def test_occupancy(registers: int, warps: int, shared: int, blocks: int) -> None:
    assert machine.blocks_of_sm(registers, warps, shared) == blocks
