"""What the ops do under torch.autocast: they compute in its dtype where a kernel multiplies in it, else in float32."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from mixpol_kernels import backend as backends
from mixpol_kernels.library import constant, library

P = ParamSpec("P")
R = TypeVar("R")
LOW = (torch.bfloat16, torch.float16)


class Master(NamedTuple):
    """A table that keeps its dtype, for an op that rounds the rows that it reads."""

    table: Tensor


def active(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    return bool(torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device))


@constant
def computed_in(
    op: str, requested: str, device: str, masters: bool = False, low: torch.dtype | None = None
) -> tuple[torch.dtype, str]:
    """The dtype in which an op computes under the autocast of a type of device, and why.

    Args:
        op: a name in `backend.KERNELS`.
        requested: the backend, "auto" or by name.
        device: "cpu", "cuda", ...
        masters: whether a table of another dtype would have its rows rounded as they are read.
        low: the autocast dtype; that of now by default.
    """
    if op == "polarity_embedding":  # a table is not copied to another dtype
        return torch.float32, "a look-up multiplies nothing"
    low = torch.get_autocast_dtype(device) if low is None else low
    name = _name(low)
    if low not in LOW:
        return torch.float32, f"autocast is to {name}"
    names = backends.candidates(requested, device)
    takers = [b for b in names if b in backends.KERNELS[op] and low in backends.KERNELS[op][b].dtypes]
    if names == ("reference",):
        takers = [] if device == "cpu" else ["reference"]
        return (low, "PyTorch multiplies in it") if takers else (torch.float32, "the reference is the spec of float32")
    if not takers or device not in ("cpu", "cuda"):
        return torch.float32, f"no kernel of {op} for {device} takes {name}"
    if takers == ["cpu"]:
        if masters:
            return torch.float32, "the kernel looks rows up itself, and rounding them first takes longer than it saves"
        if not cpu_multiplies(low):
            return torch.float32, f"the CPU kernels do not multiply in {name} here (instruction set {library.isa()})"
        return low, "the CPU multiplies in it (avx512_bf16)"
    rows = "; rows of the item table are rounded as they are looked up" if masters else ""
    return low, f"the {' and '.join(takers)} kernels multiply in it{rows}"


@constant
def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether the CPU kernels take products of this low precision in the CPU's own instructions."""
    return dtype == torch.bfloat16 and bool(library.isa() == "avx512_bf16")


def under_autocast(*, masters: str = "", products: bool = True) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a public op, named as in `backend.KERNELS`, to follow autocast as `nn.Linear` does.

    Floating-point arguments are cast to the dtype of `computed_in` and the op runs with autocast off; float64 is left
    as it is. Gradients come back in the dtype of each input. Without autocast nothing is cast: mixed dtypes are an
    error.

    Args:
        masters: name of a table that is not copied to another dtype; the op gets it as a `Master`.
        products: whether results are rounded to the autocast dtype, whatever they were computed in: those of a layer
            are. Rows of tables and statistics have the dtype that they were computed in.
    """

    def decorate(op: Callable[P, R]) -> Callable[P, R]:
        name = op.__name__
        place = list(inspect.signature(op).parameters).index(masters) if masters else -1

        @functools.wraps(op)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            if not torch._C._is_any_autocast_enabled():  # one cheap test in every call
                return op(*args, **kwargs)
            device = next((v.device.type for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), "cpu")
            if not active(device):
                return op(*args, **kwargs)
            low = torch.get_autocast_dtype(device)
            table: Any = kwargs.get(masters, args[place] if 0 <= place < len(args) else None)
            apart = isinstance(table, Tensor) and table.dtype != low and table.dtype != torch.float64
            dtype, why = computed_in(name, str(kwargs.get("backend", "auto")), device, apart)
            apart = apart and dtype in LOW
            made: list[Tensor] = []
            given = [_cast(v, dtype, made, apart and i == place) for i, v in enumerate(args)]
            named = {k: v if k == "mask" else _cast(v, dtype, made, apart and k == masters) for k, v in kwargs.items()}
            try:
                with torch.autocast(device, enabled=False):
                    found: Any = op(*given, **named)  # type: ignore[arg-type]
            except backends.Explaining as explaining:
                explaining.explanation = _explained(explaining.explanation, low, dtype, why, made)
                raise
            result: R = _rounded(found, low) if products and low in LOW else found
            return result

        return run

    return decorate


def _cast(value: Any, dtype: torch.dtype, made: list[Tensor], master: bool = False) -> Any:
    """A tensor, or those in a bundle, in a dtype; what had to be made for it goes to `made`."""
    if isinstance(value, Tensor):
        if master:
            return Master(value)
        wanted = value.dtype in LOW if dtype == torch.float32 else value.is_floating_point()
        if not wanted or value.dtype in (dtype, torch.float64):
            return value
        # `explain` computes nothing.
        empty = (
            torch.empty_like(value, dtype=dtype).requires_grad_(value.requires_grad) if backends.explains() else None
        )
        made.append(value.to(dtype) if empty is None else empty)
        return made[-1]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = zip(value._fields, value, strict=True)
        return type(value)(*(v if name == "mask" else _cast(v, dtype, made) for name, v in fields))
    if isinstance(value, (list, tuple, nn.ParameterList)):
        each = [_cast(v, dtype, made) for v in value]
        return tuple(each) if isinstance(value, tuple) else each
    return value


def rounded(found: Tensor) -> Tensor:
    """A layer's result in the autocast dtype, where autocast is on."""
    device = found.device.type
    if not torch._C._is_any_autocast_enabled() or not active(device):
        return found
    result: Tensor = _rounded(found, torch.get_autocast_dtype(device))
    return result


def _rounded(found: Any, dtype: torch.dtype) -> Any:
    if isinstance(found, Tensor):
        return found if found.dtype == torch.float64 else found.to(dtype)
    if hasattr(found, "pooled"):
        attention = found.attention if found.attention is None else _rounded(found.attention, dtype)
        return found._replace(pooled=_rounded(found.pooled, dtype), attention=attention)
    return tuple(_rounded(part, dtype) for part in found)


def _explained(
    found: backends.Explanation, low: torch.dtype, dtype: torch.dtype, why: str, made: list[Tensor]
) -> backends.Explanation:
    words = f"computed in {_name(dtype)}, since {why}"
    kept = found.saved_bytes
    kept = None if kept is None else kept + sum(tensor.nbytes for tensor in made)
    return replace(found, autocast=f"to {_name(low)}: {words}", saved_bytes=kept)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
