"""The integer half of an instruction set, over all threads of a block at once.

`compiled` turns an instruction into a function on the registers. Addresses, trip counts and masks follow from integers
alone, so that nothing else has to be computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from gpu_replay.registers import (
    CONSTANT,
    M32,
    M64,
    PT,
    RZ,
    UPT,
    URZ,
    Action,
    Flag,
    Reader,
    Registers,
    Value,
    adding,
    each,
    flag,
    flag_reader,
    invert,
    ordered,
    pair_reader,
    pick,
    reader,
    register,
    result_count,
    results,
    sign_extended,
    stack_words,
    truth,
)
from gpu_replay.sass import Instruction


def compiled(i: Instruction) -> Action:
    """What an instruction does to registers and predicates. What is not integer arithmetic leaves them unknown."""
    registers, flags = results(i)
    base = i.base[1:] if i.base.startswith("U") and i.base not in ("UMOV",) else i.base
    make = _TABLE.get(i.base) or _TABLE.get(base)
    action = make(i) if make else None
    if action is None:

        def action(s: Registers) -> None:
            for r in registers:
                s.values[r] = None
            for f in flags:
                s.flags[f] = None

    return guarded(i, action, registers, flags) if i.guard else action


def guarded(i: Instruction, action: Action, registers: list[int], flags: list[int]) -> Action:
    holds = flag_reader(("!" if i.negated else "") + i.guard)

    def run(s: Registers) -> None:
        p = holds(s)
        if p is False:
            return
        if p is True:
            action(s)
            return
        before = [s.values[r] for r in registers], [s.flags[f] for f in flags]
        action(s)
        # What an unknown register is where the guard does not hold, nothing reads but under the same guard.
        for r, old in zip(registers, before[0], strict=True):
            if old is not None:
                s.values[r] = pick(p, s.values[r], old)
        for f, was in zip(flags, before[1], strict=True):
            new = s.flags[f]
            if was is not None:
                s.flags[f] = None if p is None or new is None else (p & new) | (invert(p) & was)

    return run


def _store(i: Instruction, value: Reader, at: int = 0) -> Action | None:
    """Writes a 32-bit result to the operand `at`."""
    index = register(i.operands[at])
    if index is None or index in (RZ, URZ):
        return lambda s: None

    def run(s: Registers) -> None:
        s.values[index] = value(s)

    return run


def _pair(i: Instruction, value: Reader) -> Action | None:
    """Writes a 64-bit result to the first operand and its neighbour."""
    index = register(i.operands[0])
    if index is None or index in (RZ, URZ):
        return lambda s: None

    def run(s: Registers) -> None:
        x = value(s)
        s.values[index] = None if x is None else x & M32
        s.values[index + 1] = None if x is None else (x >> 32) & M32

    return run


def _split(i: Instruction) -> tuple[list[int], list[str], list[str]]:
    """Of a sum: predicates that take carries, summands, and predicates that bring some."""
    rest = list(i.operands[1:])
    out = []
    while rest and flag(rest[0]) is not None and not rest[0].startswith("!"):
        out.append(flag(rest.pop(0)))
    carries = [o for o in rest if flag(o) is not None]
    return out, [o for o in rest if flag(o) is None], carries  # type: ignore[return-value]


def _sum(
    i: Instruction, total: Callable[..., Value], operands: list[str], out: list[int], carries: list[str]
) -> Action:
    """Adds operands and carries; the 33rd bits go to the predicates `out`."""
    readers = [adding(o) for o in operands]
    brought = [flag_reader(c) for c in carries]
    index = register(i.operands[0])

    def run(s: Registers) -> None:
        values = [read(s) for read in readers]
        flags = [read(s) for read in brought]
        if any(v is None for v in values) or any(f is None for f in flags):
            x = None
        else:
            x = total(*values)
            for f in flags:
                x = x + (int(f) if isinstance(f, bool) else f.astype(np.uint64))
        for k, f in enumerate(out):
            if f not in (PT, UPT):
                s.flags[f] = None if x is None else truth((x >> 32) > k)
        if index not in (RZ, URZ):
            s.values[index] = None if x is None else x & M32  # type: ignore[index]

    return run


def _add3(i: Instruction) -> Action | None:
    if "64" in i.modifiers:
        pairs = [pair_reader(o) for o in i.operands[1:]]
        return _pair(i, each(lambda *x: sum(x) & M64, pairs))
    out, operands, carries = _split(i)
    return _sum(i, lambda *x: functools.reduce(lambda a, b: a + b, x), operands, out, carries)


def _lea(i: Instruction) -> Action | None:
    out, operands, carries = _split(i)
    shift = int(operands[-1], 0)
    if "HI" not in i.modifiers:
        return _sum(i, lambda x, y: ((x << shift) & M32) + y, operands[:2], out, carries)
    if "SX32" in i.modifiers:
        return _sum(i, lambda x, y: ((sign_extended(x) << shift) >> 32 & M32) + y, operands[:2], out, carries)

    def high(x: Value, y: Value, z: Value) -> Value:
        return ((((z << 32) | x) << shift & M64) >> 32) + y

    return _sum(i, high, operands[:3], out, carries)


def _mad(i: Instruction) -> Action | None:
    out, operands, carries = _split(i)
    unsigned = "U32" in i.modifiers
    if "WIDE" in i.modifiers:
        factors = [reader(o) for o in operands[:2]]

        def wide(x: Value, y: Value, z: Value) -> Value:
            return ((x * y if unsigned else sign_extended(x) * sign_extended(y)) + z) & M64

        return None if out or carries else _pair(i, each(wide, [*factors, pair_reader(operands[2])]))
    if "HI" in i.modifiers:

        def high(x: Value, y: Value, z: Value) -> Value:
            return (((x * y if unsigned else sign_extended(x) * sign_extended(y)) + z) & M64) >> 32

        return _store(i, each(high, [*(reader(o) for o in operands[:2]), pair_reader(operands[2])]))
    if "X" in i.modifiers:
        return _sum(i, lambda x, y, z: (x * y & M32) + z, operands, out, carries)
    if operands[0] == operands[1] == "RZ":  # a move, and nothing but its operand need be known
        return _store(i, reader(operands[2]))
    return _store(i, each(lambda x, y, z: (x * y + z) & M32, [reader(o) for o in operands[:3]]))


def _logic(i: Instruction) -> Action | None:
    operands = list(i.operands)
    out = flag(operands[0])
    if out is not None:
        operands.pop(0)
    index = register(operands[0])
    table = int(operands[4], 0)
    matters = [any((table >> b & 1) != (table >> (b ^ bit) & 1) for b in range(8)) for bit in (4, 2, 1)]
    readers = [reader(o) if m else (lambda s: 0) for o, m in zip(operands[1:4], matters, strict=True)]

    def combine(x: Value, y: Value, z: Value) -> Value:
        found: Value = 0
        for b in range(8):
            if table >> b & 1:
                term = x if b & 4 else x ^ M32
                term = term & (y if b & 2 else y ^ M32)
                found = found | (term & (z if b & 1 else z ^ M32))
        return found

    simple = {0xC0: lambda x, y, z: x & y, 0xFC: lambda x, y, z: x | y, 0x3C: lambda x, y, z: x ^ y}
    value = each(simple.get(table, combine), readers)

    def run(s: Registers) -> None:
        x = value(s)
        if index not in (RZ, URZ, None):
            s.values[index] = x
        if out is not None and out not in (PT, UPT):
            s.flags[out] = None if x is None else truth(x != 0)

    return run


def _shift(i: Instruction) -> Action | None:
    low, amount, high = (reader(o) for o in i.operands[1:4])
    m = i.modifiers
    wrap = "W" in m

    def distance(n: Value) -> Value:
        return n & 31 if wrap else np.minimum(n, 63) if isinstance(n, np.ndarray) else min(n, 63)

    if "L" in m and "HI" not in m and "U64" not in m:
        return _store(i, each(lambda x, n: (x << distance(n)) & M32, [low, amount]))
    if "L" in m:
        return _store(i, each(lambda x, n, y: (((y << 32 | x) << distance(n)) & M64) >> 32, [low, amount, high]))
    if "HI" in m and "S32" in m:
        return _store(i, each(lambda n, y: _arithmetic(sign_extended(y), distance(n)) & M32, [amount, high]))
    if "HI" in m and "U32" in m:
        return _store(i, each(lambda n, y: y >> distance(n), [amount, high]))
    if "HI" in m:
        if "S64" in m:
            return _store(i, each(lambda n, y: _arithmetic(sign_extended(y), distance(n)) & M32, [amount, high]))
        return _store(i, each(lambda n, y: y >> distance(n), [amount, high]))
    if "S64" in m:
        return _store(i, each(lambda x, n, y: _arithmetic(y << 32 | x, distance(n)) & M32, [low, amount, high]))
    return _store(i, each(lambda x, n, y: ((y << 32 | x) >> distance(n)) & M32, [low, amount, high]))


def _arithmetic(x: Value, n: Value) -> Value:
    """x >> n of signed 64-bit numbers."""
    if isinstance(x, np.ndarray) or isinstance(n, np.ndarray):
        return (np.asarray(x, np.uint64).view(np.int64) >> np.asarray(n).astype(np.int64)).view(np.uint64)
    return ((x - (1 << 64) if x >> 63 else x) >> n) & M64


def _extend(i: Instruction) -> Action | None:
    bits = int(i.operands[2], 0)
    mask = (1 << bits) - 1
    if "U32" in i.modifiers:
        return _store(i, each(lambda x: x & mask, [reader(i.operands[1])]))
    return _store(i, each(lambda x: (x & mask) | ((x >> (bits - 1)) & 1) * (M32 ^ mask), [reader(i.operands[1])]))


def _select(i: Instruction) -> Action | None:
    x, y, p = reader(i.operands[1]), reader(i.operands[2]), flag_reader(i.operands[3])
    return _store(i, lambda s: pick(p(s), x(s), y(s)))


_COMPARE: dict[str, Callable[[Value, Value], Any]] = {
    "LT": lambda x, y: x < y, "GT": lambda x, y: x > y, "LE": lambda x, y: x <= y,
    "GE": lambda x, y: x >= y, "EQ": lambda x, y: x == y, "NE": lambda x, y: x != y,
}  # fmt: skip


def _compare(i: Instruction) -> Action | None:
    parts = i.name.split(".")
    compare = next((_COMPARE[p] for p in parts if p in _COMPARE), None)
    if compare is None:
        return None
    equal_counts = "EX" in parts and "NE" not in parts
    out = [flag(o) for o in i.operands[:2]]
    x, y = reader(i.operands[2]), reader(i.operands[3])
    accumulated = flag_reader(i.operands[4])
    lower = flag_reader(i.operands[5]) if "EX" in parts else None
    signed = "U32" not in parts

    def run(s: Registers) -> None:
        a, b, p = x(s), y(s), accumulated(s)
        found: Flag = None
        if a is not None and b is not None:
            found = truth(compare(ordered(a), ordered(b)) if signed else compare(a, b))
            if lower is not None:  # of 64 bits, whose low halves were compared before
                below, same = lower(s), truth(a == b)
                if below is None:
                    found = None
                elif equal_counts:
                    strict = found & invert(same)
                    found = strict | (same & below)
                else:
                    found = found | (same & below)
        for k, f in enumerate(out):
            if f not in (PT, UPT, None):
                q = invert(found) if k else found
                if p is None or q is None:
                    decided = (p is False or q is False) if "AND" in parts else False
                    s.flags[f] = False if decided else None
                else:
                    s.flags[f] = p & q if "AND" in parts else p | q if "OR" in parts else p ^ q

    return run


def _predicate_logic(i: Instruction) -> Action | None:
    out = [flag(o) for o in i.operands[:2]]
    inputs = [flag_reader(o) for o in i.operands[2:5]]
    tables = [int(o, 0) for o in i.operands[5:7]]

    def run(s: Registers) -> None:
        known = [read(s) for read in inputs]
        for f, table in zip(out, tables, strict=False):
            if f in (PT, UPT, None):
                continue
            matters = [any((table >> b & 1) != (table >> (b ^ bit) & 1) for b in range(8)) for bit in (4, 2, 1)]
            if any(m and p is None for m, p in zip(matters, known, strict=True)):
                s.flags[f] = None
                continue
            p, q, r = (False if v is None else v for v in known)
            found: Flag = False
            for b in range(8):
                if table >> b & 1:
                    term = p if b & 4 else invert(p)
                    term = term & (q if b & 2 else invert(q))
                    found = found | (term & (r if b & 1 else invert(r)))
            s.flags[f] = truth(found)

    return run


def _permute(i: Instruction) -> Action | None:
    def bytes_of(x: Value, select: Value, y: Value) -> Value:
        both, found = (y << 32) | x, 0
        for b in range(4):
            chosen = (select >> (4 * b)) & 7
            found = found | (((both >> (chosen * 8)) & 0xFF) << (8 * b))
        return found

    return _store(i, each(bytes_of, [reader(o) for o in i.operands[1:4]]))


def _extreme(i: Instruction) -> Action | None:
    x, y, least = reader(i.operands[1]), reader(i.operands[2]), flag_reader(i.operands[3])
    signed = "U32" not in i.modifiers

    def value(s: Registers) -> Value:
        a, b, p = x(s), y(s), least(s)
        if a is None or b is None or p is None:
            return None
        smaller = truth(ordered(a) < ordered(b) if signed else a < b)
        return pick(smaller if p is True else invert(smaller), a, b)

    return _store(i, value)


def _special(i: Instruction) -> Action | None:
    name = i.operands[1]
    found: dict[str, Callable[[Registers], Value]] = {
        "SR_TID.X": lambda s: s.thread,
        "SR_TID.Y": lambda s: 0,
        "SR_TID.Z": lambda s: 0,
        "SR_LANEID": lambda s: s.thread % 32,
        "SR_CTAID.X": lambda s: s.block[0],
        "SR_CTAID.Y": lambda s: s.block[1],
        "SR_CTAID.Z": lambda s: s.block[2],
        "SR_CgaCtaId": lambda s: 0,
    }
    if name == "SRZ":
        return _store(i, lambda s: 0) if "32" in i.modifiers else _pair(i, lambda s: 0)
    return _store(i, found[name]) if name in found else None


def _of_warp(i: Instruction) -> Action | None:
    """To a uniform register: what the first lane of each warp has."""
    if register(i.operands[0]) is None:
        return None
    source = reader(i.operands[-1])

    def value(s: Registers) -> Value:
        x = source(s)
        if not isinstance(x, np.ndarray):
            return x
        first = x.reshape(-1, 32)[:, 0]
        return int(first[0]) if (first == first[0]).all() else np.repeat(first, 32)

    return _store(i, value)


def _shuffle(i: Instruction) -> Action | None:
    out, source, by = i.operands[0], reader(i.operands[2]), reader(i.operands[3])
    done, kind = flag(out), next(k for k in ("IDX", "BFLY", "UP", "DOWN") if k in i.modifiers)

    def value(s: Registers) -> Value:
        if done not in (PT, None):
            s.flags[done] = None
        x, n = source(s), by(s)
        if not isinstance(x, np.ndarray) or n is None:
            return x if n is not None else None
        lanes = np.arange(s.threads)
        lane = lanes % 32
        step = np.asarray(n).astype(np.int64)
        other = {"IDX": step % 32, "BFLY": lane ^ step, "UP": lane - step, "DOWN": lane + step}[kind]
        other = np.where((other < 0) | (other > 31), lane, other)
        return x[lanes - lane + other]

    return _store(i, value, 1)


def _load_constant(i: Instruction) -> Action | None:
    found = CONSTANT.match(i.operands[1])
    if not found:
        return None
    at, index, count = int(found[1], 16), register(i.operands[0]), result_count(i)

    def run(s: Registers) -> None:
        for k in range(count):
            s.values[index + k] = s.constants.get(at + 4 * k)  # type: ignore[operator]

    return run


def _to_predicates(i: Instruction) -> Action | None:
    if i.operands[0] != "PR":
        return None
    source, mask = reader(i.operands[1]), int(i.operands[2], 0)

    def run(s: Registers) -> None:
        x = source(s)
        for k in range(7):
            if mask >> k & 1:
                s.flags[k] = None if x is None else truth((x >> k) & 1 != 0)

    return run


def _from_predicates(i: Instruction) -> Action | None:
    if len(i.operands) < 4 or i.operands[1] != "PR":
        return None
    keep, mask = reader(i.operands[2]), int(i.operands[3], 0)

    def value(s: Registers) -> Value:
        x = keep(s)
        if x is None:
            return None
        x = x & (M32 ^ mask)
        for k in range(7):
            if mask >> k & 1:
                p = s.flags[k]
                if p is None:
                    return None
                x = x | (int(p) << k if isinstance(p, bool) else p.astype(np.uint64) << k)
        return x

    return _store(i, value)


def _float_of(i: Instruction) -> Action | None:
    """I2F, MUFU.RCP and F2I, of which integer divisions are made."""
    source = reader(i.operands[1])
    if i.base == "MUFU":
        if "RCP" not in i.modifiers:
            return None
        return _store(i, each(lambda x: _bits(1 / np.maximum(_as_float(x), np.float32(1e-38))), [source]))
    if i.base in ("I2F", "I2FP"):
        if "U32" not in i.modifiers and "S32" not in i.modifiers and i.name not in ("I2F", "I2F.RP"):
            return None
        # rounded to plus infinity, as divisions ask for; what is off by one they mend
        return _store(i, each(lambda x: _bits(np.asarray(x).astype(np.float32)), [source]))
    return _store(i, each(_truncated, [source]))


def _truncated(x: Value) -> Value:
    found = np.clip(_as_float(x).astype(np.float64), 0, M32).astype(np.uint64)
    return int(found) if found.ndim == 0 else found


def _as_float(x: Value) -> Any:
    return np.asarray(x, np.uint64).astype(np.uint32).view(np.float32)


def _bits(x: Any) -> Value:
    found = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return int(found) if found.ndim == 0 else found


def _spill(i: Instruction) -> Action | None:
    """STL and LDL, as moves."""
    out = i.base == "STL"
    slots, index = stack_words(i, i.operands[0 if out else 1]), register(i.operands[1 if out else 0])
    if len(slots) != result_count(i) or index is None:
        return None

    def run(s: Registers) -> None:
        for k, slot in enumerate(slots):
            here = index if index == RZ else index + k
            if out:
                s.values[slot] = s.values[here]
            elif here != RZ:
                s.values[here] = s.values[slot]

    return run


def _absolute(i: Instruction) -> Action | None:
    return _store(i, each(lambda x: pick(truth(x >> 31 != 0), (M32 + 1 - x) & M32, x), [reader(i.operands[1])]))


def _halves(i: Instruction) -> Action | None:
    """HFMA2 of zeros, by which the compiler makes constants: the summand's two numbers of 16 bits."""
    if {o.lstrip("-") for o in i.operands[1:3]} != {"RZ"} or len(i.operands) != 5:
        return None
    try:
        high, low = (int(np.float16(float(o)).view(np.uint16)) for o in i.operands[3:])
    except ValueError:
        return None
    return _store(i, lambda s: high << 16 | low)


def _move(i: Instruction) -> Action | None:
    return _store(i, reader(i.operands[1]))


_TABLE: dict[str, Callable[[Instruction], Action | None]] = {
    "CS2R": _special, "F2I": _float_of, "HFMA2": _halves, "I2F": _float_of, "I2FP": _float_of, "IABS": _absolute,
    "IADD": _add3, "IADD3": _add3, "IMAD": _mad, "IMNMX": _extreme, "ISETP": _compare, "LDC": _load_constant,
    "LDL": _spill, "LEA": _lea, "LOP3": _logic, "MOV": _move, "MUFU": _float_of, "P2R": _from_predicates,
    "PLOP3": _predicate_logic, "PRMT": _permute, "R2P": _to_predicates, "R2UR": _of_warp, "S2R": _special,
    "S2UR": _special, "SEL": _select, "SGXT": _extend, "SHF": _shift, "SHFL": _shuffle, "STL": _spill,
    "ULDC": _load_constant, "UMOV": _move, "VIADD": _add3, "VIMNMX": _extreme,
}  # fmt: skip
