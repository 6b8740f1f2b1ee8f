"""Machine code of NVIDIA GPUs (SASS) as data: instructions with their scheduling bits, loops, resources.

From Volta on the compiler decides what a GPU once decided in hardware. The upper bits of each instruction's 128 hold
how many cycles the warp waits before its next one, which of six barriers the instruction sets when its result is there
or its operands are read, and which of them it waits for. A replay needs nothing else to know an order of events.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import triton

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
NO_BARRIER = 7
_TEXT = re.compile(r"\s*\.section\s+\.text\.([^,]+)")
_LABEL = re.compile(r"\s*(\.[\w$.]+):")
_FIRST = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(.*?)\s*;?\s*(?:\})?\s*/\* 0x([0-9a-f]{16}) \*/")
_SECOND = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")
_GUARD = re.compile(r"@(!?)(U?P(?:T|\d))\s+(.*)")
_TARGET = re.compile(r"`\((\.[\w$.]+)\)")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        address: in bytes from the kernel's start.
        name: with its modifiers, "LDS.128".
        operands: as the disassembler writes them, without hints of reuse.
        guard: the predicate without which nothing happens, "" for none; `negated`: it has to be false.
        target: where a branch goes.
        stall: cycles before the warp's next instruction.
        sets, reads: the barrier that opens when the result is written, and when the operands are read; 7: none.
        waits: mask of the barriers that have to be open.
    """

    address: int
    name: str
    operands: tuple[str, ...]
    guard: str = ""
    negated: bool = False
    target: int | None = None
    stall: int = 1
    sets: int = NO_BARRIER
    reads: int = NO_BARRIER
    waits: int = 0

    @cached_property
    def base(self) -> str:
        """The name without modifiers."""
        return self.name.partition(".")[0]

    @cached_property
    def modifiers(self) -> frozenset[str]:
        """What follows the name."""
        return frozenset(self.name.split(".")[1:])

    @property
    def never(self) -> bool:
        """Whether the guard is never fulfilled."""
        return self.guard in ("PT", "UPT") and self.negated

    @cached_property
    def width(self) -> int:
        """Bytes a lane of a load or store."""
        for modifier, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
            if modifier in self.modifiers:
                return size
        return 4

    def __str__(self) -> str:
        guard = f"@{'!' if self.negated else ''}{self.guard} " if self.guard else ""
        return f"{self.address:#x}: {guard}{self.name} {', '.join(self.operands)}"


@dataclass(frozen=True)
class Loop:
    """From the address of its first instruction to that of the branch back."""

    first: int
    last: int

    def __contains__(self, instruction: Instruction) -> bool:
        return self.first <= instruction.address <= self.last


@dataclass(frozen=True)
class Kernel:
    """One kernel of a cubin.

    Attributes:
        registers: of a thread. stack: bytes of a thread's stack and local memory, where spilled registers go.
        static_shared: bytes of shared memory, beside what is asked for at the launch.
    """

    name: str
    code: tuple[Instruction, ...]
    registers: int = 0
    stack: int = 0
    static_shared: int = 0

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """By their first instruction; one for each, however many branches lead back to it."""
        last: dict[int, int] = {}
        for i in self.code:
            if i.base == "BRA" and i.target is not None and i.target < i.address and not i.never:
                last[i.target] = max(last.get(i.target, 0), i.address)
        return tuple(Loop(first, end) for first, end in sorted(last.items()))

    def innermost(self, instruction: Instruction) -> Loop | None:
        """The smallest loop around an instruction."""
        around = [loop for loop in self.loops if instruction in loop]
        return min(around, key=lambda loop: loop.last - loop.first, default=None)


def kernels(cubin: bytes) -> list[Kernel]:
    """Those of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        found = list(parse(_tool("nvdisasm", "-c", "-hex", file.name)))
    numbers = {
        name: tuple(int(re.search(rf"\b{key}:(\d+)", line)[1]) for key in ("REG", "STACK", "LOCAL", "SHARED"))  # type: ignore[index]
        for name, line in re.findall(r"Function (\S+):\s*\n\s*(.*)", usage)
    }
    with_usage = []
    for kernel in found:
        registers, stack, local, shared = numbers[kernel.name]
        with_usage.append(Kernel(kernel.name, kernel.code, registers, stack + local, shared))
    return with_usage


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} cannot read the machine code: {done.stderr.strip()[-200:]}")
    return done.stdout


def parse(text: str) -> Iterator[Kernel]:
    """The kernels in what `nvdisasm -c -hex` prints; no resources."""
    name = ""
    rows: list[list[Any]] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if section := _TEXT.match(line):
            if rows:
                yield Kernel(name, _decode(rows, labels))
            name, rows, labels = section[1], [], {}
        elif name and (label := _LABEL.match(line)):
            labels[label[1]] = len(rows)
        elif name and (first := _FIRST.match(line)):
            rows.append([int(first[1], 16), first[2], 0])
        elif rows and (second := _SECOND.match(line)):
            rows[-1][2] = int(second[1], 16)
    if rows:
        yield Kernel(name, _decode(rows, labels))


def _decode(rows: list[list[Any]], labels: dict[str, int]) -> tuple[Instruction, ...]:
    at = {label: rows[row][0] for label, row in labels.items() if row < len(rows)}
    return tuple(_instruction(int(address), str(text), int(upper), at) for address, text, upper in rows)


def _instruction(address: int, text: str, upper: int, labels: dict[str, Any]) -> Instruction:
    guard, negated = "", False
    if guarded := _GUARD.match(text):
        negated, guard, text = bool(guarded[1]), guarded[2], guarded[3]
    name, _, rest = text.partition(" ")
    named = _TARGET.search(rest)
    bits = upper >> 41
    return Instruction(
        address, name, tuple(_operands(rest)), guard, negated,
        target=int(labels[named[1]]) if named and named[1] in labels else None,
        stall=bits & 15, sets=bits >> 5 & 7, reads=bits >> 8 & 7, waits=bits >> 11 & 63,
    )  # fmt: skip


def _operands(text: str) -> Iterator[str]:
    for part in re.split(r",\s*(?![^\[]*\])", text.strip()):
        if part:
            yield part.strip().replace(".reuse", "")
