"""What the ops do under torch.autocast: they run in float32, whatever came out of the layers before them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def in_float32(op: Callable[P, R]) -> Callable[P, R]:
    """Under autocast casts low-precision inputs of a public op to float32 and runs it with autocast off.

    As `torch.amp.custom_fwd(cast_inputs=torch.float32)` does; float32 and float64 inputs are taken as they are.
    Gradients come back in the dtype of each input. Without autocast nothing is cast: mixed dtypes are an error.
    """

    @functools.wraps(op)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch._C._is_any_autocast_enabled():  # one cheap test in every call
            return op(*args, **kwargs)
        device = next((v.device.type for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), "cpu")
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return op(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return op(*map(_widen, args), **{name: _widen(value) for name, value in kwargs.items()})

    return run


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_widen, value))
    return type(value)(map(_widen, value)) if isinstance(value, (list, tuple)) else value
