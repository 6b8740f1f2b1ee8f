"""Forwards without gradients that call the compiled CPU op at once.

For one request the checks in Python take longer than the kernel, which makes all of them again. On refusal the public
function runs, which raises in the words of the module's arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.backend import explain
from mixpol_kernels.history import MASK_TYPES, canonical

_INDEX_TYPES = (torch.int64, torch.int32)
Where = tuple[Tensor | None, Tensor | None, Tensor | None]


def forward(
    op: Any, before: tuple[Any, ...], where: Where, after: tuple[Any, ...], again: Callable[..., Any], *args: Any,
    **more: Any,
) -> Tensor | None:  # fmt: skip
    """The first result of a compiled forward, where `is_direct` holds; None where the public function has to run.

    Args:
        op: a compiled forward.
        before, after: its arguments before and behind the layout.
        where: offsets, lengths and mask.
        again, args, more: the module's own call, to which the layout is added by name. It is explained, not computed,
            to learn whether the public function would choose the compiled op too.

    Raises:
        Exception: what the checks of `again` say of refused inputs. If they find nothing wrong, the op's own error: a
            value out of range, memory that ran out, a fault of the kernel.
    """
    offsets, lengths, mask = where
    if (offsets is not None) + (lengths is not None) + (mask is not None) > 1:
        return None
    for tensor, dtypes in ((offsets, _INDEX_TYPES), (lengths, _INDEX_TYPES), (mask, MASK_TYPES)):
        if tensor is not None and (not isinstance(tensor, Tensor) or tensor.dtype not in dtypes):
            return None
    try:
        return pooled(op, *before, *canonical(offsets, lengths, mask), *after)
    except NotImplementedError:  # the dispatcher has no kernel for such tensors: none has run
        return None
    except RuntimeError as error:
        # A call that is being traced has to end here: a second one would trace into a broken graph.
        if torch._C._get_tracing_state() is not None:
            raise
        layout = {"offsets": offsets, "lengths": lengths, "mask": mask}
        if explain(again, *args, **more, **layout).backend == "cpu":
            raise error
        return None


def pooled(op: Any, *inputs: Any) -> Tensor:
    """The only or first result of a compiled forward."""
    found = op(*inputs)
    first: Tensor = found if isinstance(found, Tensor) else found[0]
    return first
