"""Forward calls that go straight to the compiled CPU kernel.

For one request the checks in Python take longer than the kernel, which makes all of them again. What it refuses is
checked once more by the public function, which says why in the words of the module's arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.backend import explain
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


def pooled(op: Any, *inputs: Any) -> Tensor:
    """The only or first result of a compiled forward."""
    found = op(*inputs)
    first: Tensor = found if isinstance(found, Tensor) else found[0]
    return first


def check_refusal(error: RuntimeError, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Looks at the error of a direct call; returns where the long way, which `function` takes, computes it instead.

    Raises:
        Exception: what the checks of the long way say; if they find nothing wrong, `error` itself: a value out of
            range, memory that ran out, a fault of the kernel.
    """
    if isinstance(error, NotImplementedError):  # the dispatcher has no kernel for such tensors: none has run
        return
    if torch._C._get_tracing_state() is not None:  # calling the op again would trace into a broken graph
        raise error
    if explain(function, *args, **kwargs).backend == "cpu":
        raise error
