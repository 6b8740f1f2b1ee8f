"""Forwards without gradients that call the compiled CPU op at once.

For one request the checks in Python take longer than the kernel, which makes all of them again. On refusal the public
function runs, which raises in the words of the module's arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.backend import explain, is_direct
from mixpol_kernels.history import canonical

Where = tuple[Tensor | None, Tensor | None, Tensor | None]
Inputs = Callable[[Where], tuple[Any, ...] | None]


def forward(
    backend: str, target: Tensor, op: Any, inputs: Inputs, layout: Mapping[str, Tensor | None], again: Callable[[], Any]
) -> Tensor | None:
    """The first result of a compiled forward; None where the public function has to run.

    Args:
        backend: as the module was made with.
        target: one of the inputs.
        op: a compiled forward.
        inputs: its arguments from the layout as the op takes it; None if parameters would have to be made for it.
        layout: offsets, lengths and mask by name.
        again: the module's own call. It is explained, not computed, to learn whether the public function would choose
            the compiled op too.

    Raises:
        Exception: what the checks of `again` say of refused inputs. If they find nothing wrong, the op's own error: a
            value out of range, memory that ran out, a fault of the kernel.
    """
    if not is_direct(backend, target):
        return None
    try:
        where = _canonical(**layout)
        arguments = None if where is None else inputs(where)
        return None if arguments is None else pooled(op, *arguments)
    except NotImplementedError:  # the dispatcher has no kernel for such tensors: none has run
        return None
    except RuntimeError as error:
        # A call that is being traced has to end here: a second one would trace into a broken graph.
        if torch._C._get_tracing_state() is not None or explain(again).backend == "cpu":
            raise error
        return None


def _canonical(
    offsets: Tensor | None = None, lengths: Tensor | None = None, mask: Tensor | None = None
) -> Where | None:
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
