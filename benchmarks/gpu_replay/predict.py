"""From a captured launch to what is known of it: conflicts, spills, occupancy, stages, and a predicted time."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from gpu_replay import machine
from gpu_replay.capture import Launch
from gpu_replay.emulate import GLOBAL, SHARED, Emulator, constants
from gpu_replay.machine import CLOCK, H200, L1_OF_SM, SHARED_RESERVED, SMS, Machine
from gpu_replay.memory import Memory
from gpu_replay.sass import Instruction, Kernel, Loop, kernels

LAUNCH_SECONDS = 3e-6  # from the start of a grid to its first instructions, and from its last ones to its end
_SPILLS = ("LDL", "STL")


@dataclass(frozen=True)
class Scope:
    """A loop without the loops in it, or what is outside all loops, over one block's run.

    Attributes:
        name: where, in words.
        wavefronts, ideal: of shared-memory loads and stores, and what they take without bank conflicts; asynchronous
            copies, whose rows are whole, are not among them.
        times: how often its first access was executed.
        spills: instructions that load or store spilled registers.
    """

    name: str
    loop: bool
    wavefronts: float
    ideal: float
    times: int
    spills: int

    @property
    def ratio(self) -> float:
        """Wavefronts by the conflict-free ones."""
        return self.wavefronts / self.ideal if self.ideal else 1.0


@dataclass(frozen=True)
class Prediction:
    """What is known of one launch without a GPU.

    Attributes:
        registers, stack: of a thread; stack in bytes.
        blocks: that an SM holds at a time.
        stages: of the deepest software pipeline found: iterations whose loads are on their way, and the one at hand.
        scopes: by their place in the code.
        microseconds: predicted, GPU time of the launch; None where it was not replayed.
        shares: of the time of the SM that ends last: issue slots used, L1 with shared memory, L2, device memory.
        notes: what the emulation could not know.
        busy: cycles of the SM over the blocks looked at: replayed, or where nothing was the larger of what their
            instructions and their requests to L1 take.
    """

    registers: int
    stack: int
    blocks: int
    warps: int
    stages: int
    scopes: tuple[Scope, ...]
    microseconds: float | None = None
    shares: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    busy: float = 0.0

    @property
    def wavefronts(self) -> float:
        """Of one block."""
        return sum(s.wavefronts for s in self.scopes)

    @property
    def ideal(self) -> float:
        """Of one block without conflicts."""
        return sum(s.ideal for s in self.scopes)


class Subject:
    """A launch under study.

    Args:
        launch: as captured, or as recorded.
        chip: latencies and rates.
    """

    def __init__(self, launch: Launch, chip: Machine = H200) -> None:
        self.launch, self.chip = launch, chip
        self.kernel = next(k for k in kernels(launch.cubin) if k.code)
        self.blocks = machine.blocks_of_sm(self.kernel.registers, launch.warps, launch.shared)
        self.count = launch.grid[0] * launch.grid[1] * launch.grid[2]
        if not self.blocks:
            raise ValueError(f"{launch.kernel}: no block fits on an SM, with {launch.shared} bytes of shared memory")

    def _memory(self) -> Memory:
        tensors = [value for _, value in self.launch.arguments.values() if isinstance(value, Tensor)]
        return Memory(tensors, L1_OF_SM - self.blocks * (self.launch.shared + SHARED_RESERVED))

    def _emulator(self, threads: int) -> Emulator:
        memory = self._memory()
        bank = constants(self.launch.arguments, memory, self.launch.grid, 32 * self.launch.warps)
        return Emulator(self.kernel, threads, memory, bank)

    def schedule(self) -> list[list[int]]:
        """Blocks of those SMs that end last or have most to do, by the instructions of one thread.

        The next block goes to the place that is free first.
        """
        follow = self._emulator(1)
        slots = [(0, slot) for slot in range(SMS * self.blocks)]  # in order is a heap
        given: list[list[int]] = [[] for _ in range(SMS)]
        weights = [0] * SMS
        for block in range(self.count):
            weight = follow.run(block, self.launch.grid).instructions
            at, slot = heapq.heappop(slots)
            sm = slot % SMS
            given[sm].append(block)
            weights[sm] += weight
            heapq.heappush(slots, (at + weight, slot))
        return [given[sm] for sm in sorted({max(slots)[1] % SMS, int(np.argmax(weights))})]

    def predict(self, timed: bool = True) -> Prediction:
        """Everything; without `timed` one block is looked at, and no time is predicted."""
        microseconds, shares, busy = None, {}, 0.0
        if timed:
            for blocks in self.schedule():
                emulator = self._emulator(32 * self.launch.warps)
                runs = [emulator.run(block, self.launch.grid) for block in blocks]
                found = machine.replay(self.kernel, emulator.basics, runs, self.launch.warps, self.blocks, self.chip)
                time = (found.cycles / CLOCK + LAUNCH_SECONDS) * 1e6
                busy = found.cycles  # of the SM that was emulated last, as the scopes are
                if microseconds is None or time > microseconds:
                    issued = found.instructions / found.cycles / 4
                    microseconds = time
                    shares = {"issue": issued, "L1": found.l1, "L2": found.l2, "memory": found.dram}
        else:
            emulator = self._emulator(32 * self.launch.warps)
            run = emulator.run(self.count // 2, self.launch.grid)
            busy = max(run.instructions * self.launch.warps / 4, sum(t.wavefronts for t in run.traffic))
        return Prediction(
            self.kernel.registers, self.kernel.stack, self.blocks, self.launch.warps, stages(self.kernel),
            scopes(self.kernel, emulator), microseconds, {k: round(v, 3) for k, v in shares.items()}, _notes(emulator),
            busy,
        )  # fmt: skip


def scopes(kernel: Kernel, emulator: Emulator) -> tuple[Scope, ...]:
    """Those that have shared-memory accesses or spills."""
    found = []
    where: Sequence[Loop | None] = [None, *kernel.loops]
    for loop in where:
        inside = [i for i in kernel.code if kernel.innermost(i) == loop and not i.never]
        costs = [
            emulator.accesses[i.address] for i in inside
            if i.base in SHARED and i.base != "LDGSTS" and i.address in emulator.accesses
        ]  # fmt: skip
        costs = [c for c in costs if c.executions]
        spills = sum(i.base in _SPILLS for i in inside)
        if costs or spills:
            name = f"the loop at {loop.first:#x}" if loop else "the code outside loops"
            wavefronts, ideal = sum(c.wavefronts for c in costs), sum(c.conflict_free for c in costs)
            times = max((c.executions for c in costs), default=0)
            found.append(Scope(name, loop is not None, wavefronts, ideal, times, spills))
    return tuple(found)


def stages(kernel: Kernel) -> int:
    """Of the deepest software pipeline: groups of asynchronous copies that a loop finds on their way, and its own."""
    deepest = 1
    for loop in kernel.loops:
        inside = [i for i in kernel.code if i in loop]
        if any(other.first > loop.first and other.last < loop.last for other in kernel.loops):
            inside = [i for i in inside if kernel.innermost(i) == loop]
        groups = sum(i.base == "LDGDEPBAR" for i in inside)
        if groups:
            ahead = sum(i.base == "LDGDEPBAR" for i in _before(kernel, loop))
            deepest = max(deepest, 1 + ahead // groups)
    return deepest


def _before(kernel: Kernel, loop: Loop) -> list[Instruction]:
    """Between the end of what precedes a loop at its level, or the start of the loop around it, and the loop."""
    around = [o.first for o in kernel.loops if o.first < loop.first and o.last > loop.last]
    ended = [o.last for o in kernel.loops if o.last < loop.first]
    start = max([0, *around, *ended])
    return [i for i in kernel.code if start <= i.address < loop.first]


def _notes(emulator: Emulator) -> tuple[str, ...]:
    lines = []
    unknown = sum(a.unknown for a in emulator.accesses.values())
    if unknown:
        of = sum(i.base in GLOBAL + SHARED for i in emulator.kernel.code)
        lines.append(f"{unknown} accesses of {of} instructions at unknown addresses, taken as free of conflicts")
    if emulator.undecided:
        lines.append(f"{len(emulator.undecided)} branches decided by what is not known, taken as not taken")
    return tuple(lines)
