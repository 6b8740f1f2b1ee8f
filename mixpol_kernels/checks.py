"""Argument checks that more than one op needs. Messages name the argument, what it was and what was expected."""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")
FLOAT_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ID_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Refuses arguments of another kind than their annotation, in words that name them; cheap where nothing is wrong.

    Tensors have to be dense: the kernels read them by strides.
    """
    checks: dict[str, Callable[[Any], None]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        checks[name] = _check_for(name, str(parameter.annotation), inspect.unwrap(function).__globals__)
    in_order = tuple(checks.values())

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        for check, value in zip(in_order, args, strict=False):
            check(value)
        for name, value in kwargs.items():
            if name in checks:  # else the call itself refuses it
                checks[name](value)
        return function(*args, **kwargs)

    return run


def _check_for(name: str, annotation: str, names: dict[str, Any]) -> Callable[[Any], None]:
    """The check of one argument by its annotation; `names` holds the bundles (named tuples of arguments)."""
    optional, kind = annotation.endswith(" | None"), annotation.removesuffix(" | None")
    if kind in _KINDS:
        return _check_of(name, _KINDS[kind], optional)
    bundle: Any = names.get(kind.removesuffix(" | Tensor"))
    if not hasattr(bundle, "_fields"):
        return _anything
    kinds = {f: getattr(kind, "__forward_arg__", str(kind)) for f, kind in bundle.__annotations__.items()}
    fields = tuple(_check_for(f"{name}.{f}", kinds[f], names) for f in bundle._fields)
    tensor = _check_of(name, _tensor, False)

    def run(value: Any) -> None:
        if isinstance(value, bundle):
            for check, entry in zip(fields, value, strict=True):
                check(entry)
        elif kind.endswith(" | Tensor"):
            tensor(value)
        else:
            raise TypeError(f"{name} was {shown(value)}; expected {bundle.__name__}(...)")

    return run


def _check_of(name: str, check: Callable[[str, Any], None], optional: bool) -> Callable[[Any], None]:
    """The check of one argument, with the common case before all others."""
    if check is _tensor:

        def run(value: Any) -> None:
            dense = isinstance(value, Tensor) and value.layout is _DENSE and not value.is_nested
            if not dense and (value is not None or not optional):
                _refuse_tensor(name, value)

    else:

        def run(value: Any) -> None:
            if value is not None or not optional:
                check(name, value)

    return run


_DENSE = torch.strided


def _anything(value: Any) -> None:
    pass


def _tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.layout is not _DENSE or value.is_nested:
        _refuse_tensor(name, value)


def _refuse_tensor(name: str, value: Any) -> NoReturn:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} was {shown(value)}; expected a tensor")
    if value.is_nested:
        raise TypeError(f"{name} was a nested tensor; expected a dense one: only what has a row a token may be jagged")
    layout = str(value.layout).removeprefix("torch.")
    raise TypeError(f"{name} was {layout}; expected a dense tensor: {name}.to_dense()")


def _tensors(name: str, value: Any) -> None:
    if isinstance(value, (list, tuple, nn.ParameterList)):
        for i, tensor in enumerate(value):
            if not isinstance(tensor, Tensor) or tensor.layout is not _DENSE or tensor.is_nested:
                _refuse_tensor(f"{name}[{i}]", tensor)
    else:
        raise TypeError(f"{name} was {shown(value)}; expected a list or tuple of tensors")


def _seed(name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        _tensor(name, value)
    else:
        _integer(name, value)
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{name} was {value}; expected -2^63 ... 2^63 - 1")


def _integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Integral, torch.SymInt)):
        raise TypeError(f"{name} was {shown(value)}; expected a whole number")


def _number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (float, int, numbers.Real, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name} was {shown(value)}; expected a number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} was a whole number of {value.bit_length()} bits; expected at most 64, or a float")


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} was {shown(value)}; expected True or False")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} was {shown(value)}; expected a string")


def _texts(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} was {shown(value)}; expected a list or tuple of strings")
    for i, text in enumerate(value):
        _text(f"{name}[{i}]", text)


def shown(value: Any) -> str:
    """A value for a message: itself where it is short, else its kind."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"


_KINDS: dict[str, Callable[[str, Any], None]] = {
    "Tensor": _tensor,
    "Sequence[Tensor]": _tensors,
    "Tensor | int": _seed,
    "str": _text,
    "Sequence[str]": _texts,
    "float": _number,
    "int": _integer,
    "bool": _flag,
}


def check_float(like: Tensor, like_name: str, **tensors: Tensor | None) -> None:
    """Every tensor is floating point, with the dtype and device of `like`."""
    if like.dtype not in FLOAT_TYPES:
        raise TypeError(f"{like_name} has dtype {like.dtype}; expected float32, float64, bfloat16 or float16")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype != like.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype} and {like_name} {like.dtype}; expected the same dtype")
        if tensor.device != like.device:
            raise ValueError(f"{name} is on {tensor.device} and {like_name} on {like.device}; move one of them")


def check_shape(name: str, tensor: Tensor, shape: Sequence[int], words: str) -> None:
    """`tensor` has exactly `shape`; `words` names the dimensions."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {list(shape)} ({words})")


def check_ids(name: str, ids: Tensor, device: torch.device) -> None:
    """`ids` is an integer tensor on `device`."""
    if ids.dtype not in ID_TYPES:
        raise TypeError(f"{name} has dtype {ids.dtype}; expected an integer dtype, uint8 ... int64")
    if ids.device != device:
        raise ValueError(f"{name} is on {ids.device}; expected {device}, where the tables are")


def has_values(tensor: Tensor) -> bool:
    """Whether values can be looked at: not on the meta device, nor inside a torch.func transform."""
    return tensor.device.type != "meta" and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def check_range(name: str, ids: Tensor, rows: int, keep: Tensor | None) -> None:
    """The value check of the compiled kernels, for the references: kept ids that have values lie in 0 ... rows - 1."""
    if not (has_values(ids) and (keep is None or has_values(keep))):
        return
    bad = (ids < 0) | (ids >= rows)
    if keep is not None:
        bad = bad & keep.reshape(ids.shape)
    where = bad.reshape(-1).nonzero()
    if where.numel():
        at = int(where[0])
        raise RuntimeError(
            f"{name} has {int(ids.reshape(-1)[at])} at position {at}; expected 0 ... {rows - 1}, a row of the table"
        )


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """`value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} was {value!r}; expected one of {', '.join(map(repr, choices))}")


def check_extra(
    like: Tensor, like_name: str, ids: Tensor | None, token_shape: Sequence[int], table: Tensor | None
) -> None:
    """An extra additive table [R, D], if there is one, and its ids fit the tokens and `like` [..., D]."""
    if ids is None and table is None:
        return
    if ids is None or table is None:
        missing, given = ("extra_ids", "extra_table") if ids is None else ("extra_table", "extra_ids")
        raise ValueError(f"{missing} was None and {given} was not; expected both or neither")
    check_float(like, like_name, extra_table=table)
    check_ids("extra_ids", ids, like.device)
    check_shape("extra_ids", ids, token_shape, "one per history token")
    if table.dim() != 2 or table.shape[1] != like.shape[-1]:
        raise ValueError(f"extra_table has shape {list(table.shape)}; expected [R, {like.shape[-1]}]")


def looked_up(name: str, embedding: nn.Module, ids: Tensor) -> Tensor:
    """The rows of `nn.Embedding` of ids named `name`; an id that it lacks is an error that says which."""
    try:
        rows: Tensor = embedding(ids)
    except IndexError:
        check_range(name, ids, int(embedding.num_embeddings), None)  # type: ignore[arg-type]
        raise
    return rows
