"""bfloat16 against float32 in the CPU kernel of `target_attention`, D = 64, ReLU, lengths uniform in 1..L.

    python benchmarks/precision.py              L = 50, 200 and 1000, one thread; prints a table

A quotient above 1 says that bfloat16 is faster. With AVX512-BF16 (instruction set avx512_bf16) the kernel multiplies in
bfloat16; elsewhere, and with MIXPOL_CPU_ISA=avx512, it widens to float32. Each unit is checked against float64 in both
before it is timed; then both are timed in every round, forward alone and with backward.
"""

from __future__ import annotations

from mixpol_models.environment import prepare

prepare()  # before torch is imported

import random
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mixpol_kernels.library import library
from mixpol_kernels.nn import TargetAttention
from mixpol_kernels.testing.budget import over_budget
from mixpol_kernels.testing.inputs import Config, make
from mixpol_models.bench.timing import interleaved

WIDTH, TOKENS, ROUNDS = 64, 12_800, 30
UNITS: tuple[tuple[int, ...], ...] = ((64,), (80, 40))
DTYPES = (torch.float32, torch.bfloat16)


def check(hidden: Sequence[int], seed: int) -> None:
    """Holds both precisions to their error budgets.

    Raises:
        RuntimeError: a result is outside of its budget.
    """
    generator = torch.Generator().manual_seed(seed)
    for dtype in DTYPES:
        case = make(Config(op="target_attention", width=WIDTH, hidden=tuple(hidden), length=30), generator, dtype)
        if lines := over_budget(case, case.place(generator), generator, dtype=dtype):
            raise RuntimeError("\n".join(lines))


def measure(hidden: Sequence[int], length: int, seconds: float = 3.0) -> tuple[float, float]:
    """Time in float32 over time in bfloat16: forward, and forward with backward; medians over rounds."""
    users = max(1, 2 * TOKENS // length)
    target, history = torch.randn(users, WIDTH), torch.randn(users, length, WIDTH)
    lengths, upstream = torch.randint(1, length + 1, (users,)), torch.randn(users, WIDTH)
    calls: dict[tuple[str, torch.dtype], Callable[[], object]] = {}
    for dtype in DTYPES:
        layer = TargetAttention(WIDTH, hidden).to(dtype)
        leaves = [target.to(dtype).requires_grad_(), history.to(dtype).requires_grad_(), *layer.parameters()]

        forward = partial(layer, leaves[0], leaves[1], lengths=lengths)
        calls["forward", dtype] = torch.no_grad()(forward)
        calls["both", dtype] = partial(_with_backward, forward, leaves, upstream.to(dtype))
    times = interleaved(calls, ROUNDS, seconds)
    wide, half = DTYPES
    forward, both = (times.ratio((what, wide), (what, half)).median for what in ("forward", "both"))
    return forward, both


def _with_backward(forward: Callable[[], Tensor], leaves: Sequence[Tensor], upstream: Tensor) -> object:
    return torch.autograd.grad(forward(), leaves, upstream)


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"instruction set {library.isa()}, one thread; time in float32 / time in bfloat16\n")
    print("| unit | L | forward | forward and backward |\n|---|---:|---:|---:|")
    for hidden in UNITS:
        check(hidden, random.SystemRandom().randrange(2**31))
        for length in (50, 200, 1000):
            forward, both = measure(hidden, length)
            print(f"| {list(hidden)} | {length} | {forward:.2f} | {both:.2f} |", flush=True)


if __name__ == "__main__":
    main()
