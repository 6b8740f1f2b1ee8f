"""Registers of a block of threads: their values as far as they are known, and how instructions name them.

A register is what its 32 bits are in every thread: a number where threads agree, an array [threads] of uint64 where
they do not, None where it is not known, as results of floating-point arithmetic are not. A predicate is a bool, an
array of bool, or None.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpu_replay.sass import Instruction

Value = Any  # int, array of uint64, or None
Flag = Any  # bool, array of bool, or None
M32 = (1 << 32) - 1
M64 = (1 << 64) - 1
RZ, UNIFORM, URZ = 255, 256, 256 + 63
PT, UPT = 7, 15
_REGISTER = re.compile(r"^(U?R)(\d+|Z)((?:\.\w+)*)$")
_FLAG = re.compile(r"^(!?)(U?P)(\d|T)$")
CONSTANT = re.compile(r"^cx?\[0x0\]\[(0x[0-9a-f]+)\]$")
_NUMBER = re.compile(r"^-?(0x[0-9a-f]+|\d+)$")
# Spilled registers: the words of a thread's stack, behind the registers.
_STACK, _STACK_WORDS = 320, 191
SHARED_MEMORY = 511  # stands for what is in shared memory, where it is asked what depends on what
_SLOT = re.compile(r"^\[R1(?:\+(0x[0-9a-f]+))?\]$")
_NO_RESULT = {
    "STG", "ST", "LDGDEPBAR", "DEPBAR", "RED", "BRA", "EXIT", "BAR", "MEMBAR", "FENCE",
    "WARPSYNC", "BSSY", "BSYNC", "BREAK", "NOP", "CCTL", "ERRBAR", "YIELD", "NANOSLEEP", "WARPGROUP", "UCGABAR_WAIT",
}  # fmt: skip


@dataclass
class Registers:
    """Of one block: general and uniform registers, predicates, and what special registers and constants hold."""

    threads: int
    block: tuple[int, int, int] = (0, 0, 0)
    constants: dict[int, int] = field(default_factory=dict)
    # 0 before the first write: bits of a word are set one by one, and those that never are do not matter
    values: list[Value] = field(default_factory=lambda: [0] * (SHARED_MEMORY + 1))
    flags: list[Flag] = field(default_factory=lambda: [None] * 16)

    def __post_init__(self) -> None:
        self.values[RZ] = self.values[URZ] = 0
        self.flags[PT] = self.flags[UPT] = True
        self.thread: Value = np.arange(self.threads, dtype=np.uint64) if self.threads > 1 else 0


Action = Callable[[Registers], None]
Reader = Callable[[Registers], Value]


def register(text: str) -> int | None:
    """The index of a register by its name, suffixes aside; None for another operand."""
    found = _REGISTER.match(text.lstrip("-~|!"))
    if not found:
        return None
    number = 63 if (uniform := found[1] == "UR") and found[2] == "Z" else 255 if found[2] == "Z" else int(found[2])
    return UNIFORM + number if uniform else number


def flag(text: str) -> int | None:
    """The index of a predicate; None for another operand."""
    found = _FLAG.match(text)
    if not found:
        return None
    return (8 if found[2] == "UP" else 0) + (7 if found[3] == "T" else int(found[3]))


def flag_reader(text: str) -> Callable[[Registers], Flag]:
    """Reads a predicate."""
    index = flag(text)
    if index is None:
        return lambda s: None
    if text.startswith("!"):
        return lambda s: invert(s.flags[index])
    return lambda s: s.flags[index]


def invert(p: Flag) -> Flag:
    """not p"""
    return None if p is None else (not p if isinstance(p, bool) else ~p)


def reader(text: str) -> Reader:
    """Reads an integer operand: register, number, constant bank; -x and ~x within 32 bits."""
    minus, tilde = text.startswith("-"), text.startswith("~")
    plain = text.lstrip("-~")
    if (index := register(plain)) is not None:
        suffix = plain.partition(".")[2]
        if suffix in ("H0_H0", "H1_H1"):
            shift = 16 * (suffix == "H1_H1")
            read: Reader = each(lambda x: (x >> shift) & 0xFFFF, [lambda s: s.values[index]])
        elif suffix in ("", "64"):

            def read(s: Registers) -> Value:
                return s.values[index]

        else:
            return lambda s: None
    elif _NUMBER.match(plain):
        number = int(plain, 0) & M32

        def read(s: Registers) -> Value:
            return number

    elif constant := CONSTANT.match(plain):
        at = int(constant[1], 16)

        def read(s: Registers) -> Value:
            return s.constants.get(at)

    else:
        return lambda s: None
    if minus:
        return each(lambda x: (M32 + 1 - x) & M32, [read])
    return each(lambda x: x ^ M32, [read]) if tilde else read


def adding(text: str) -> Reader:
    """As `reader`, but -x is ~x + 1 with its 33rd bit, which a sum carries."""
    if text.startswith("-"):
        return each(lambda x: (x ^ M32) + 1, [reader(text[1:])])
    return reader(text)


def each(function: Callable[..., Value], readers: Sequence[Reader]) -> Reader:
    """Unknown where an operand is."""
    if len(readers) == 1:
        (one,) = readers

        def unary(s: Registers) -> Value:
            x = one(s)
            return None if x is None else function(x)

        return unary
    if len(readers) == 2:
        first, second = readers

        def binary(s: Registers) -> Value:
            x, y = first(s), second(s)
            return None if x is None or y is None else function(x, y)

        return binary

    def many(s: Registers) -> Value:
        values = [read(s) for read in readers]
        return None if any(v is None for v in values) else function(*values)

    return many


def pick(p: Flag, x: Value, y: Value) -> Value:
    """x where p holds, else y."""
    if isinstance(p, bool):
        return x if p else y
    if x is not None and y is not None:
        if p is None:
            return x if np.array_equal(x, y) else None
        return np.asarray(np.where(p, x, y), np.uint64)
    if p is None:
        return None
    return x if p.all() else y if not p.any() else None


def ordered(x: Value) -> Value:
    """Order-preserving: compares as signed numbers do."""
    return x ^ 0x80000000


def sign_extended(x: Value) -> Value:
    """Sign-extended to 64 bits."""
    return (x | ((x >> 31) * (M32 << 32))) & M64


def results(i: Instruction) -> tuple[list[int], list[int]]:
    """Indices of the registers and predicates that an instruction writes."""
    registers, flags, _ = _results(i)
    return registers, flags


@functools.cache
def _results(i: Instruction) -> tuple[list[int], list[int], int]:
    """And the number of operands that stand for them."""
    if i.base == "STL":
        return stack_words(i, i.operands[0]), [], 0
    if i.base in ("STS", "STSM", "LDGSTS", "ATOMS"):
        return [SHARED_MEMORY], [], 0
    if i.base in _NO_RESULT or not i.operands:
        return [], [], 0
    if i.base in ("R2P", "UR2UP"):
        return [], list(range(7)), 1
    index: int | None = None
    flags: list[int] = []
    operands = 0
    for operand in i.operands[:3]:
        predicate = flag(operand)
        if predicate is not None and not operand.startswith("!") and len(flags) < 2:
            flags.append(predicate)
        elif index is not None or "SETP" in i.base or "PLOP3" in i.base or (index := register(operand)) is None:
            break
        operands += 1
    registers = [] if index in (None, RZ, URZ) else [index + k for k in range(result_count(i))]
    return registers, [f for f in flags if f not in (PT, UPT)], operands


def stack_words(i: Instruction, operand: str) -> list[int]:
    """Where a spilled register lies; nothing for another use of the stack."""
    found = _SLOT.match(operand)
    first = int(found[1] or "0", 16) // 4 if found else _STACK_WORDS
    return [_STACK + first + k for k in range(result_count(i)) if first + k < _STACK_WORDS]


def result_count(i: Instruction) -> int:
    """Registers of a result."""
    if i.base == "HGMMA" or i.base == "QGMMA":
        return int(i.name.split(".")[1].split("x")[1]) // (2 if "F32" in i.modifiers else 4)
    if i.base in ("HMMA", "IMMA", "DMMA"):
        return 4 if "F32" in i.modifiers or i.base == "IMMA" else 2
    if i.base == "LDSM":
        return 4 if i.name.endswith(".4") else 2 if i.name.endswith(".2") else 1
    if i.base == "CS2R":
        return 1 if "32" in i.modifiers else 2
    if i.base.startswith("D") or "F64" in i.modifiers:
        return 2
    if "WIDE" in i.modifiers:
        return 2
    if i.base in ("SHF", "USHF", "IADD3", "ISETP"):
        return 1
    return 4 if "128" in i.modifiers else 2 if "64" in i.modifiers else 1


def sources(i: Instruction) -> tuple[set[int], set[int]]:
    """Indices of the registers and predicates that an instruction may read, its guard among them."""
    registers: set[int] = set()
    flags: set[int] = set()
    _, _, written = _results(i)
    if i.guard:
        flags.add(flag(i.guard))  # type: ignore[arg-type]
    for at, operand in enumerate(i.operands):
        if at < written:
            continue
        for name in re.findall(r"U?R(?:\d+|Z)(?:\.64)?", operand):
            index = register(name.partition(".")[0])
            last = at == len(i.operands) - 1
            pair = (
                ".64" in name or ({"WIDE", "HI"} & i.modifiers and "IMAD" in i.base and last) or i.name == "UIADD3.64"
            )
            registers |= {index, index + 1} if pair else {index}  # type: ignore[operator, arg-type]
        for name in re.findall(r"\bU?P(?:\d|T)\b", operand):
            flags.add(flag(name))  # type: ignore[arg-type]
    if i.base == "P2R":
        flags |= set(range(7))
    if i.base == "LDS":
        registers.add(SHARED_MEMORY)
    if i.base in ("STS", "STSM"):
        first = register(i.operands[-1])
        registers |= {first + k for k in range(result_count(i))} if first is not None else set()
    if i.base == "LDL":
        registers |= set(stack_words(i, i.operands[1]))
    return registers - {RZ, URZ}, flags - {PT, UPT}


def pair_reader(text: str) -> Reader:
    """A register and its neighbour as 64 bits."""
    index = register(text)
    if index in (RZ, URZ) or index is None:
        return reader(text)

    def read(s: Registers) -> Value:
        low, high = s.values[index], s.values[index + 1]
        return None if low is None or high is None else low | (high << 32)

    return read


def truth(p: Any) -> Flag:
    return p if isinstance(p, np.ndarray) else bool(p)
