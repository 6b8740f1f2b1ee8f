"""Blocks of a kernel, run as far as integers go: which way control flow takes, and the address of every access.

All threads of a block go together; a branch that they do not agree on is followed by those that take the longer way.
What floating-point arithmetic decides is not known: such a branch is not taken, and counted.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpu_replay import integers, registers
from gpu_replay.memory import Memory, Traffic, matrix_wavefronts, wavefronts
from gpu_replay.registers import M32, RZ, Registers, flag_reader, invert, reader, register
from gpu_replay.sass import Instruction, Kernel

GLOBAL = ("LDG", "LD", "STG", "ST", "LDGSTS", "RED", "ATOM", "ATOMG")
SHARED = ("LDS", "STS", "LDSM", "STSM", "ATOMS", "LDGSTS")
LOADS = ("LDG", "LD", "LDGSTS", "ATOM", "ATOMG")
PARAMETERS = 0x210  # where a kernel's arguments begin in constant bank 0, from sm_90 on
_SHARED_WORDS = (228 << 10) // 4
_ENDS = ("BRA", "EXIT", "RET")
_SAMPLES = 4  # executions of a shared-memory access whose wavefronts are counted; further ones cost their mean
_SIZES = {"i1": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "fp16": 2, "bf16": 2, "i32": 4, "u32": 4, "fp32": 4}


class NotUnderstood(RuntimeError):
    """Machine code that the emulation cannot follow."""


def constants(
    arguments: dict[str, tuple[str, Any]], memory: Memory, grid: tuple[int, int, int], threads: int
) -> dict[int, int]:
    """Constant bank 0 of a launch, by offset, in words of four bytes."""
    bank = {0x0: threads, 0x4: 1, 0x8: 1, 0xC: grid[0], 0x10: grid[1], 0x14: grid[2], 0x28: 0}
    at = PARAMETERS
    for kind, value in arguments.values():
        size = 8 if kind.startswith("*") else _SIZES.get(kind, 8)
        at = -(-at // size) * size
        bits = memory.pointer(value) if kind.startswith("*") else _bits(kind, value)
        for k in range(0, size, 4):
            bank[at - at % 4 + k] = bits >> (8 * k) & M32
        at += size
    return bank


def _bits(kind: str, value: Any) -> int:
    if kind.startswith(("fp", "bf")):
        return int(np.float32(value).view(np.uint32))
    return int(value) & (1 << 64) - 1


@dataclass
class Access:
    """What one memory instruction cost over its executions, of all warps of a block together.

    Attributes:
        executions: by a block.
        shared, ideal: wavefronts of the first executions, `counted` of them, with conflicts and without.
        unknown: executions at addresses that are not known.
    """

    executions: int = 0
    counted: int = 0
    shared: float = 0.0
    ideal: float = 0.0
    unknown: int = 0

    @property
    def wavefronts(self) -> float:
        """Of all executions."""
        return self.shared / self.counted * self.executions if self.counted else 0.0

    @property
    def conflict_free(self) -> float:
        """Of all executions, were there no conflicts."""
        return self.ideal / self.counted * self.executions if self.counted else 0.0


@dataclass
class Run:
    """One block.

    Attributes:
        blocks: basic blocks in the order in which they ran.
        traffic: of each execution of an instruction of GLOBAL or SHARED, in order.
        instructions: executed by a warp.
    """

    blocks: list[int] = field(default_factory=list)
    traffic: list[Traffic] = field(default_factory=list)
    instructions: int = 0


@dataclass(frozen=True)
class Basic:
    """A basic block: instructions first ... end - 1 of the kernel."""

    first: int
    end: int
    actions: tuple[Callable[[State], None], ...]
    branch: Instruction | None
    condition: Callable[[State], Any]


class State(Registers):
    """A block while it runs."""

    memory: Memory
    run: Run
    live: Any
    words: Any  # of shared memory, and which of them are known
    known: Any


class Emulator:
    """A kernel prepared for running blocks.

    Args:
        kernel: the machine code.
        threads: of a block; 1 follows control flow alone, by the first thread.
        memory, bank: of the launch.
    """

    def __init__(self, kernel: Kernel, threads: int, memory: Memory, bank: dict[int, int]) -> None:
        self.kernel, self.threads, self.memory, self.bank = kernel, threads, memory, bank
        self.accesses: dict[int, Access] = {}
        self.undecided: Counter[int] = Counter()
        self.diverged: Counter[int] = Counter()
        self.addresses = threads > 1
        self.spans, self.following = self._edges()
        self._wanted = self._slice()
        self.basics = self._basics()
        self._at = {self.kernel.code[b.first].address: n for n, b in enumerate(self.basics)}

    def _slice(self) -> set[int]:
        """Indices of the instructions on whose results a branch, an address or the mask of an access may depend.

        What is needed flows backwards over the basic blocks until nothing changes; sets are bits of an integer,
        registers first.
        """
        code = self.kernel.code
        written = [_bits_of(*registers.results(i)) for i in code]
        part = 1 << registers.SHARED_MEMORY  # a store leaves most of shared memory as it was
        kept = [w if i.guard or w == part else 0 for w, i in zip(written, code, strict=True)]
        read = [_bits_of(*registers.sources(i)) for i in code]
        seeds = [
            _bits_of(*_address_sources(i))
            if i.base in ("BRA", "EXIT") or (self.addresses and i.base in GLOBAL + SHARED) else 0
            for i in code
        ]  # fmt: skip
        wanted: set[int] = set()
        after = [0] * len(self.spans)  # what is needed behind each basic block
        at_start = [0] * len(self.spans)
        changed = True
        while changed:
            changed = False
            for block in reversed(range(len(self.spans))):
                needed = functools.reduce(lambda a, b: a | b, (at_start[n] for n in self.following[block]), 0)
                if needed == after[block] and needed:
                    continue
                after[block] = needed
                first, end = self.spans[block]
                for n in reversed(range(first, end)):
                    if written[n] & needed and not code[n].never:
                        wanted.add(n)
                        needed = (needed & ~written[n]) | kept[n] & needed | read[n]
                    needed |= seeds[n]
                changed |= needed != at_start[block]
                at_start[block] = needed
        return wanted

    def _edges(self) -> tuple[list[tuple[int, int]], list[list[int]]]:
        """Basic blocks as ranges of instructions, and which may follow each."""
        code = self.kernel.code
        starts = {0} | {n + 1 for n, i in enumerate(code) if i.base in _ENDS}
        index = {i.address: n for n, i in enumerate(code)}
        starts |= {index[i.target] for i in code if i.base == "BRA" and i.target in index}
        ordered = sorted(s for s in starts if s < len(code))
        spans = list(zip(ordered, [*ordered[1:], len(code)], strict=True))
        number = {code[first].address: n for n, (first, _) in enumerate(spans)}
        following = []
        for n, (_, end) in enumerate(spans):
            last = code[end - 1]
            goes = last.base in _ENDS and not last.guard and len(last.operands) < 2
            to = [] if goes or n + 1 == len(spans) else [n + 1]
            following.append(to + ([number[last.target]] if last.target in number and last.base == "BRA" else []))
        return spans, following

    def _basics(self) -> list[Basic]:
        code = self.kernel.code
        found = []
        for first, end in self.spans:
            branch = code[end - 1] if code[end - 1].base in _ENDS else None
            actions = [self._action(n) for n in range(first, end) if code[n] is not branch]
            condition = _condition(branch) if branch else lambda s: True
            found.append(Basic(first, end, tuple(a for a in actions if a), branch, condition))
        return found

    def _action(self, n: int) -> Callable[[State], None] | None:
        i = self.kernel.code[n]
        if i.never:
            return None
        if i.base in GLOBAL + SHARED and self.addresses:
            return self._access(i, n in self._wanted)
        if i.base in ("LDG", "LD", "LDS", "STS", "STSM", "LDGSTS") and n in self._wanted:
            moved = _moved(i)
            return lambda s: moved(s, np.ones(s.threads, bool))
        return integers.compiled(i) if n in self._wanted else None

    def _access(self, i: Instruction, wanted: bool) -> Callable[[State], None]:
        address_of = [_address(o) for o in i.operands if "[" in o]
        holds = flag_reader(("!" if i.negated else "") + i.guard) if i.guard else None
        value = _moved(i) if wanted else None
        cost = self.accesses.setdefault(i.address, Access())
        is_global, is_load = i.base in GLOBAL, i.base in LOADS
        shared = address_of[0] if i.base in SHARED else None
        outside = address_of[-1] if is_global else None
        keep = not (i.base == "LDGSTS" and "BYPASS" in i.modifiers)
        # An asynchronous copy fills with zeros, and reads nothing, where its last operand is false.
        fills = (
            flag_reader(i.operands[-1]) if i.base == "LDGSTS" and registers.flag(i.operands[-1]) is not None else None
        )

        def act(s: State) -> None:
            p = holds(s) if holds else True
            active = np.broadcast_to(np.asarray(s.live if p is None else s.live & p), (s.threads,))
            traffic = Traffic()
            s.run.traffic.append(traffic)
            cost.executions += 1
            if shared is not None:
                if cost.executions <= _SAMPLES:
                    _count(cost, i, shared(s), active)
                traffic.wavefronts += cost.shared / cost.counted
            if outside is not None:
                at = outside(s)
                if at is None:
                    cost.unknown += 1
                    size = int(active.sum()) * i.width
                    traffic.wavefronts += size / 128
                    traffic.l2 += size
                elif active.any():
                    q = fills(s) if fills else True
                    lanes = np.broadcast_to(np.asarray(at, np.uint64), (s.threads,))[
                        active & (True if q is None else q)
                    ]
                    more = s.memory.load(lanes, i.width, keep) if is_load else s.memory.store(lanes, i.width)
                    traffic.wavefronts += more.wavefronts if shared is None else 0
                    traffic.l2, traffic.dram = more.l2, more.dram
            if value is not None:
                value(s, active)

        return act

    def run(self, block: int, grid: tuple[int, int, int], limit: int = 2_000_000) -> Run:
        """Runs a block by its number in the grid.

        Raises:
            NotUnderstood: it does not end within `limit` instructions.
        """
        s = State(self.threads, (block % grid[0], block // grid[0] % grid[1], block // (grid[0] * grid[1])), self.bank)
        s.memory, s.run = self.memory, Run()
        s.words, s.known = np.zeros(_SHARED_WORDS, np.uint64), np.zeros(_SHARED_WORDS, bool)
        s.live = np.ones(self.threads, bool) if self.threads > 1 else True
        waiting: list[tuple[int, Any]] = []  # where threads that went another way come back
        at = 0
        while True:
            while waiting and waiting[-1][0] == at:
                s.live = s.live | waiting.pop()[1]
            basic = self.basics[at]
            s.run.blocks.append(at)
            s.run.instructions += basic.end - basic.first
            if s.run.instructions > limit:
                raise NotUnderstood(f"{self.kernel.name}: block {block} does not end within {limit} instructions")
            for action in basic.actions:
                action(s)
            branch = basic.branch
            if branch is None or branch.never:
                at += 1
                continue
            p = basic.condition(s)
            if p is None:
                self.undecided[branch.address] += 1
                p = False
            if p is False:
                at += 1
                continue
            if branch.base != "BRA":
                s.live = s.live & invert(p)
                if not np.any(s.live):
                    if not waiting:
                        return s.run
                    at, s.live = waiting.pop()
                    continue
                at += 1
                continue
            if branch.target not in self._at:
                raise NotUnderstood(f"{self.kernel.name}: no instruction where {branch} leads")
            to = self._at[branch.target]
            taken = p is True or (p & s.live).any()
            if taken and p is not True and (invert(p) & s.live).any():
                self.diverged[branch.address] += 1
                if to > at:
                    waiting.append((to, s.live & p))
                    s.live = s.live & invert(p)
                    at += 1
                else:
                    waiting.append((at + 1, s.live & invert(p)))
                    s.live = s.live & p
                    at = to
            else:
                at = to if taken else at + 1


def _condition(branch: Instruction) -> Callable[[State], Any]:
    """Which threads a branch takes: its guard, and a uniform predicate among the operands, as in BRA.U UP0."""
    uniform = [o for o in branch.operands[:-1] if registers.flag(o) is not None]
    reads = [flag_reader(o) for o in uniform]
    if branch.guard:
        reads.append(flag_reader(("!" if branch.negated else "") + branch.guard))
    if len(reads) == 1:
        return reads[0]

    def read(s: State) -> Any:
        p: Any = True
        for one in reads:
            q = one(s)
            p = None if p is None or q is None else p & q
        return p

    return read


def _bits_of(registers: Iterable[int], flags: Iterable[int]) -> int:
    """A set of registers and predicates as the bits of a number."""
    return sum(1 << r for r in registers) | sum(1 << (512 + f) for f in flags)


def _address_sources(i: Instruction) -> tuple[set[int], set[int]]:
    """Registers and predicates that decide where an access goes and who takes part, or where a branch leads."""
    text = tuple(o for o in i.operands if "[" in o or registers.flag(o) is not None)
    return registers.sources(Instruction(i.address, "NOP", text, i.guard, i.negated))


def _address(operand: str) -> Callable[[Registers], Any]:
    """Of the last bracket in an operand: "desc[UR4][R2.64+0x10]"."""
    inside = operand[operand.rindex("[") + 1 : operand.rindex("]")]
    terms = []
    for term in inside.replace("-", "+-").split("+"):
        if not term:
            continue
        plain = term.lstrip("-")
        scaled = plain.partition(".X")
        if plain.endswith((".64", ".U32")) or register(plain) is None:
            terms.append(registers.pair_reader(plain) if plain.endswith(".64") else _number(term))
        elif scaled[2].isdigit():
            factor = int(scaled[2])
            terms.append(registers.each(lambda x, factor=factor: x * factor, [reader(scaled[0])]))
        else:
            terms.append(reader(plain))
    mask = (1 << 64) - 1

    def read(s: Registers) -> Any:
        total: Any = 0
        for term in terms:
            x = term(s)
            if x is None:
                return None
            total = total + x
        return total & mask

    return read


def _number(text: str) -> Callable[[Registers], Any]:
    if register(text.lstrip("-")) is not None:
        return reader(text.removesuffix(".U32"))
    number = int(text, 0) & ((1 << 64) - 1)
    return lambda s: number


def _loaded(i: Instruction) -> Callable[[State], None]:
    """Values of integer tensors; others stay unknown."""
    address = _address(i.operands[-1] if "[" in i.operands[-1] else next(o for o in i.operands if "[" in o))
    targets, _ = registers.results(i)
    size = min(i.width, 4)
    signed = 1 << (8 * size - 1) if {"S8", "S16"} & i.modifiers else 0

    def act(s: Any) -> None:
        at = address(s)
        for k, target in enumerate(targets):
            x = None if at is None else s.memory.read(at + 4 * k, size)
            if x is not None and signed:
                x = (x ^ signed) + (M32 + 1 - signed) & M32
            s.values[target] = x

    return integers.guarded(i, act, targets, []) if i.guard else act


def _moved(i: Instruction) -> Callable[[State, Any], None]:
    """The values that a load, store or copy moves: integers go through shared memory on their way to other lanes."""
    if i.base in ("LDG", "LD"):
        load = _loaded(i)
        return lambda s, active: load(s)
    if i.base not in ("LDS", "STS", "LDGSTS", "STSM"):
        plain = integers.compiled(i)
        return lambda s, active: plain(s)
    brackets = [_address(o) for o in i.operands if "[" in o]
    count = max(i.width // 4, 1)

    def places(s: State, k: int) -> Any:
        """Indices of the words; None where they are not known."""
        at = brackets[0](s)
        if at is None:
            return None
        found = np.broadcast_to(np.asarray(at, np.uint64), (s.threads,)) // np.uint64(4) + np.uint64(k)
        return np.minimum(found, _SHARED_WORDS - 1).astype(np.int64)

    if i.base == "LDS":
        targets, _ = registers.results(i)

        def load_shared(s: State, active: Any) -> None:
            for k, target in enumerate(targets):
                at = places(s, k)
                complete = at is not None and i.width >= 4 and s.known[at[active]].all()
                s.values[target] = np.where(active, s.words[at], 0).astype(np.uint64) if complete else None

        return load_shared

    if i.base == "STSM":
        return lambda s, active: s.known.fill(False)
    source = register(i.operands[-1])

    def store_shared(s: State, active: Any) -> None:
        outside = brackets[-1](s) if i.base == "LDGSTS" else None
        for k in range(count):
            at = places(s, k)
            if at is None:
                s.known.fill(False)
                return
            if i.base == "LDGSTS":
                value = None if outside is None else s.memory.read(outside + 4 * k, 4)
            else:
                value = None if source is None or i.width < 4 else s.values[source if source == RZ else source + k]
            s.known[at[active]] = value is not None
            if value is not None:
                s.words[at[active]] = np.broadcast_to(np.asarray(value, np.uint64), (s.threads,))[active]

    return store_shared


def _count(cost: Access, i: Instruction, at: Any, active: Any) -> None:
    if i.base in ("LDSM", "STSM"):
        matrices = int(i.name[-1]) if i.name[-2:] in (".4", ".2") else 1
        ideal = matrices * len(active) / 32
        found = (ideal, ideal) if at is None else matrix_wavefronts(np.broadcast_to(at, active.shape), matrices)
    else:
        width = i.width
        ideal = max(width // 4, 1) * active.reshape(-1, 32).any(1).sum()
        found = (
            (ideal, ideal)
            if at is None
            else wavefronts(np.broadcast_to(np.asarray(at, np.uint64), active.shape), width, active)
        )
    cost.counted += 1
    cost.unknown += at is None
    cost.shared += found[0]
    cost.ideal += found[1]
