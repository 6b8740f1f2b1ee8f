"""The check of every access can fail: mistakes that are planted are found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError


@triton.jit
def copy(source, to, count, SLACK: tl.constexpr, STORE_SLACK: tl.constexpr):
    i = tl.arange(0, 16)
    x = tl.load(source + i, mask=i < count + SLACK, other=0.0)
    tl.store(to + i, x, mask=i < count + STORE_SLACK)


def test_good_accesses_pass(bounds: Any) -> None:
    to, before = torch.zeros(10), bounds.checked
    copy[(1,)](torch.arange(10.0), to, 10, 0, 0)
    assert torch.equal(to, torch.arange(10.0))
    assert bounds.checked == before + 20


@pytest.mark.parametrize(("slack", "store_slack"), [(1, 0), (0, 1)], ids=["read", "write"])
def test_one_element_too_many_is_found(slack: int, store_slack: int) -> None:
    with pytest.raises(InterpreterError, match="1 of 16 lanes are out of bounds"):
        copy[(1,)](torch.zeros(10), torch.zeros(10), 10, slack, store_slack)


def test_an_overrun_of_a_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward, told that a history is longer than it is."""
    import mixpol_kernels
    from mixpol_kernels.ops.target_attention.triton import launch

    right = launch._Call.strides
    monkeypatch.setattr(launch._Call, "strides", lambda self: (right(self)[0], right(self)[1] + 1, *right(self)[2:]))
    target, history = torch.randn(1, 16), torch.randn(1, 20, 16)
    weights, biases = [torch.randn(8, 64), torch.randn(1, 8)], [torch.zeros(8), torch.zeros(1)]
    with pytest.raises(InterpreterError, match="out of bounds"):
        mixpol_kernels.target_attention(target, history, weights, biases, backend="triton")


def test_bfloat16_is_rounded_and_multiplied_as_numbers() -> None:
    """Of the interpreter with the mends of conftest.py: its conversion is PyTorch's, its products are right."""

    @triton.jit
    def square(x, rounded, product):
        i = tl.arange(0, 16)
        at = i[:, None] * 16 + i[None, :]
        value = tl.load(x + at).to(tl.bfloat16)
        tl.store(rounded + at, value)
        tl.store(product + at, tl.dot(value, value))

    x = torch.randn(16, 16)
    rounded, product = torch.zeros(16, 16, dtype=torch.bfloat16), torch.zeros(16, 16)
    square[(1,)](x, rounded, product)
    assert torch.equal(rounded, x.bfloat16())
    torch.testing.assert_close(product, rounded.float() @ rounded.float())
