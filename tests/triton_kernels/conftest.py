"""Triton kernels on the CPU: the interpreter, with the mistakes of its low precision mended and every access checked.

The switch is read when kernels are imported, so these tests run in a process of their own: `make test` calls pytest
on this folder, and pytest on everything leaves it out (tests/conftest.py).
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

sys.path.insert(0, str(Path(__file__).parent.parent / "ops"))  # for dot_cases

Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle


class Bounds:
    """Which bytes the launch that runs now may touch: those of its tensor arguments."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.checked = 0

    def note(self, arguments: list[object]) -> None:
        self.ranges.clear()
        for argument in arguments:
            if isinstance(argument, torch.Tensor) and argument.numel():
                last = sum((n - 1) * s for n, s in zip(argument.shape, argument.stride(), strict=True))
                begin = argument.data_ptr()
                self.ranges.append((begin, begin + (last + 1) * argument.element_size()))

    def check(self, name: str, pointers: interpreter.TensorHandle, mask: np.ndarray) -> None:
        size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
        address = np.asarray(pointers.data).astype(np.uint64)
        allowed = np.zeros(address.shape, dtype=bool)
        for begin, end in self.ranges:
            allowed |= (address >= begin) & (address + size <= end)
        active = np.broadcast_to(np.asarray(mask, dtype=bool), address.shape)
        self.checked += int(active.sum())
        if (active & ~allowed).any():
            raise IndexError(f"{name}: {int((active & ~allowed).sum())} of {address.size} lanes are out of bounds")


_bounds = Bounds()


@pytest.fixture
def bounds() -> Bounds:
    """The check that guards every load and store of this process."""
    return _bounds


def _guard(name: str, pointers_at: int, mask_at: int) -> None:
    original = getattr(Builder, name)

    def checked(self: object, *args: object, **kwargs: object) -> object:
        _bounds.check(name, args[pointers_at], args[mask_at].data)  # type: ignore[attr-defined]
        return original(self, *args, **kwargs)

    setattr(Builder, name, checked)


def _note_arguments() -> None:
    original = interpreter.GridExecutor._init_args_hst

    def noting(self: object, args: object, kwargs: object) -> object:
        args, kwargs = original(self, args, kwargs)
        _bounds.note([*args, *kwargs.values()])
        return args, kwargs

    interpreter.GridExecutor._init_args_hst = noting


def _mend_bfloat16() -> None:
    """The interpreter multiplies bfloat16 as the integers that hold it, and truncates where a GPU rounds."""
    dot, cast = Builder.create_dot, Builder.cast_impl

    def widened(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return Handle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def rounded(self: object, source: interpreter.TensorHandle, to: tl.dtype) -> object:
        if source.dtype.scalar != tl.float32 or to.scalar != tl.bfloat16:
            return cast(self, source, to)
        values = torch.from_numpy(np.ascontiguousarray(source.data)).to(torch.bfloat16)
        return Handle(values.view(torch.int16).numpy().view(np.uint16).reshape(np.shape(source.data)), tl.bfloat16)

    Builder.create_dot = lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)
    Builder.cast_impl = rounded


_note_arguments()
_mend_bfloat16()
_guard("create_masked_load", 0, 1)
_guard("create_masked_store", 0, 2)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small inputs, and cores that are shared. Infinite and undefined values are part of the contract, no warning."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with np.errstate(all="ignore"):
        yield
    torch.set_num_threads(before)
