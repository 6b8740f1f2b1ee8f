"""Memory that is not zero by luck: what a kernel does not write shows."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_M_PERTURB = -6  # glibc: fill what malloc hands out with ~byte, and what is freed with byte


@contextmanager
def poisoned() -> Iterator[None]:
    """NaN in every fresh floating-point tensor, the largest value in every integer one, 0x7f in scratch memory."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    perturb = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc; elsewhere tensors only
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3).isnan().all()
        if perturb is not None:
            perturb(_M_PERTURB, 0x80)
        yield
    finally:
        if perturb is not None:
            perturb(_M_PERTURB, 0)
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before
