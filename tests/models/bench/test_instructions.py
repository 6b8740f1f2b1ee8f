"""The kernels take the instructions that benchmarks/instructions.json has, and the guard turns red when they do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_scripts import load

instructions = load("instructions")
FILE = instructions.Counts.read()


@pytest.mark.slow
def test_kernels_take_the_instructions_on_file() -> None:
    try:
        faults = instructions.compare(instructions.count(), FILE)
    except instructions.CannotCountError as error:
        pytest.skip(str(error))
    assert not faults, "\n".join(faults)


def test_file() -> None:
    levels = {name.split("/")[0] for name in FILE.instructions}
    assert levels == set(instructions.LEVELS)
    for name, count in FILE.instructions.items():
        assert count > 10_000, name
    for kernel in (name.removeprefix("base") for name in FILE.instructions if name.startswith("base/")):
        assert FILE.instructions[f"avx2{kernel}"] < 0.7 * FILE.instructions[f"base{kernel}"]


@pytest.mark.parametrize("factor", [0.96, 1.04])
def test_more_or_fewer_instructions_are_a_fault(factor: float) -> None:
    name = next(iter(FILE.instructions))
    changed = replace(FILE, instructions={**FILE.instructions, name: int(factor * FILE.instructions[name])})
    (fault,) = instructions.compare(changed, FILE)
    assert fault.startswith(f"{name} takes ")
    assert "make instructions" in fault
    assert not instructions.compare(FILE, FILE)


def test_a_kernel_on_one_side_only_is_a_fault() -> None:
    more = replace(FILE, instructions={**FILE.instructions, "base/new/forward": 1})
    assert "not on file" in instructions.compare(more, FILE)[0]
    assert "not counted any more" in instructions.compare(FILE, more)[0]


def test_another_compiler_is_no_fault() -> None:
    with pytest.raises(instructions.CannotCountError, match=r"here is another.*make instructions"):
        instructions.compare(replace(FILE, compiler="another"), FILE)


def test_without_valgrind_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "_tool", lambda name: None if name == "valgrind" else name)
    with pytest.raises(instructions.CannotCountError, match="valgrind was not found"):
        instructions.count()
