"""Float32 by three TensorFloat32 products: within the budget of float32, so that "highest" may take them too.

The interpreted kernels' products are computed as matrix units do: operands rounded to 10 bits of mantissa, what that
left rounded again, three products, each summed eight terms at a time into a float32 that is truncated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from triton.runtime import interpreter

from mixpol_kernels.ops.triton import devices
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.inputs import Config, make

Floats = NDArray[np.floating[Any]]
STEP = 8  # terms that one instruction sums


def rounded(x: Floats) -> NDArray[np.float32]:
    """To TensorFloat32, ties away from zero, as cvt.rna.tf32.f32."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def truncated(x: NDArray[np.float64]) -> NDArray[np.float32]:
    """To float32, towards zero."""
    near = x.astype(np.float32)
    return np.where(np.abs(near.astype(np.float64)) > np.abs(x), np.nextafter(near, np.float32(0)), near)


def product(a: Floats, b: Floats, total: Floats) -> Floats:
    for k in range(0, a.shape[1], STEP):
        terms = a[:, k : k + STEP].astype(np.float64) @ b[k : k + STEP].astype(np.float64)
        total = truncated(total.astype(np.float64) + terms)
    return total


def split(a: Floats, b: Floats, products: int) -> Floats:
    """a b by one or three products."""
    high = rounded(a), rounded(b)
    total: Floats = np.zeros((a.shape[0], b.shape[1]), dtype=np.float32)
    if products == 3:
        low = rounded(a - high[0]), rounded(b - high[1])
        total = product(high[0], low[1], product(low[0], high[1], total))
    return product(*high, total)


@pytest.fixture
def split_dots(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Emulates matrix units; the precisions that kernels asked for."""
    asked: list[str] = []
    handle, plain = interpreter.TensorHandle, interpreter.InterpreterBuilder.create_dot
    tf32x3 = interpreter._ir.INPUT_PRECISION.TF32x3

    def dot(self: Any, a: Any, b: Any, acc: Any, precision: Any, *rest: Any) -> Any:
        asked.append(str(precision))
        if precision != tf32x3:
            return plain(self, a, b, acc, precision, *rest)
        return handle(split(a.data, b.data, 3) + acc.data, acc.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    return asked


def lines(generator: torch.Generator, **form: Any) -> list[str]:
    case = make(Config(op="target_attention", counts=(45, 0, 70), **form), generator)
    return budget.over_budget(case, case.place(generator), generator, backend="triton")


FORMS: dict[str, dict[str, Any]] = {
    "ReLU": {"width": 64, "hidden": (64,)},
    "SiLU, deep, softmax": {"width": 32, "hidden": (48, 24), "activation": "silu", "normalize": "softmax"},
    "narrow": {"width": 16, "hidden": (36,), "activation": "prelu", "candidates": 2},
}


@pytest.mark.parametrize("form", FORMS)
def test_three_products_are_float32(form: str, split_dots: list[str], generator: torch.Generator) -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    assert devices.elements(torch.float32)[0] == "tf32x3"
    over = lines(generator, **FORMS[form])
    assert not over, "\n".join(over)
    assert any("TF32x3" in precision for precision in split_dots)


def test_one_product_is_not(generator: torch.Generator) -> None:
    """So the emulation can tell."""
    a, b = (torch.randn(64, 64, generator=generator).numpy() for _ in range(2))
    truth = a.astype(np.float64) @ b.astype(np.float64)
    plain, three, one = (np.abs(x - truth).max() for x in (a @ b, split(a, b, 3), split(a, b, 1)))
    limit = 2 * plain + np.finfo(np.float32).eps * np.abs(truth).max()
    assert three <= limit
    assert one > 50 * limit
