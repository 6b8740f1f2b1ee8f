"""Argument checks that more than one op needs. Messages name the argument, what it was and what was expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOAT_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ID_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


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


def check_range(name: str, ids: Tensor, rows: int, keep: Tensor | None) -> None:
    """The value check of the compiled kernels, for the references: kept ids lie in 0 ... rows - 1."""
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
