"""Forward calls that go straight to the compiled CPU kernel.

For one request the checks in Python take longer than the kernel, which makes all of them again. Where it refuses, the
long way is taken, and says why in the words of the module's arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.history import canonical

Where = tuple[Tensor | None, Tensor | None, Tensor | None]


def layout(offsets: Tensor | None = None, lengths: Tensor | None = None, mask: Tensor | None = None) -> Where | None:
    """The layout as the compiled ops take it; None where they would take what the public functions refuse."""
    if (offsets is not None) + (lengths is not None) + (mask is not None) > 1:
        return None
    index = offsets if lengths is None else lengths
    if index is not None and index.dtype not in (torch.int64, torch.int32):
        return None
    return canonical(offsets, lengths, mask)


def pooled(op: Any, *inputs: Any) -> Tensor | None:
    """The only or first result of a compiled forward; None where it refuses its inputs."""
    try:
        found = op(*inputs)
    except (RuntimeError, TypeError):
        return None
    first: Tensor = found if isinstance(found, Tensor) else found[0]
    return first
