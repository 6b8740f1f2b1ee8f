"""One declaration per op: its signature, the shapes of its results, and who implements it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.library import INTERPRETING, NAMESPACE, TRITON, define

LAYOUT = "Tensor? offsets, Tensor? lengths, Tensor? mask"


class Arguments(SimpleNamespace):
    """The arguments of a call, as attributes by their names in the signature."""

    def but(self, **changes: Any) -> Arguments:
        """The same with other values for some, or more of them."""
        return Arguments(**{**vars(self), **changes})


Implementation = Callable[[Arguments], Any]


@dataclass(frozen=True)
class Op:
    """A declared op.

    Attributes:
        compiled: the overload `mixpol::name`, which the CPU and CUDA libraries implement.
        triton: the overload `mixpol_triton::name` of the same signature; None where no Triton kernel exists.
    """

    compiled: Any
    triton: Any

    def of(self, backend: str) -> Any:
        """The overload that a chosen backend runs."""
        return self.triton if backend == "triton" else self.compiled


def declare(
    signature: str, shapes: Implementation, *, triton: str = "", triton_shapes: Implementation | None = None
) -> Op:
    """Registers an op under torch.library.

    Args:
        signature: name and schema, "name(Tensor a, ...) -> Tensor".
        shapes: the fake implementation: from the arguments to empty results.
        triton: the implementation in Triton, "package.module:function" below `mixpol_kernels.ops`, imported when it
            first runs and called with the arguments. Empty for none.
        triton_shapes: where they differ from `shapes`.
    """
    name, _, rest = signature.partition("(")
    schema = f"({rest}"
    define(name, schema)
    compiled = getattr(torch.ops.mixpol, name).default
    names = [argument.name for argument in compiled._schema.arguments]
    torch.library.register_fake(f"{NAMESPACE}::{name}")(_by_name(names, shapes))
    if not triton:
        return Op(compiled, None)
    torch.library.define(f"{TRITON}::{name}", schema)
    torch.library.register_fake(f"{TRITON}::{name}")(_by_name(names, triton_shapes or shapes))
    keys = ("cuda", "cpu") if INTERPRETING else "cuda"
    torch.library.impl(f"{TRITON}::{name}", keys)(_by_name(names, _imported(triton)))
    return Op(compiled, getattr(torch.ops.mixpol_triton, name).default)


def _by_name(names: list[str], implementation: Implementation) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return implementation(Arguments(**dict(zip(names, args, strict=False)), **kwargs))

    return run


def _imported(place: str) -> Implementation:
    module, _, function = place.partition(":")

    def run(arguments: Arguments) -> Any:
        return getattr(importlib.import_module(f"mixpol_kernels.ops.{module}"), function)(arguments)

    return run


def empty_as(tensor: Tensor | None, like: Tensor) -> Tensor:
    """A contiguous empty tensor of its shape; without elements where it is missing. `like`: dtype and device."""
    return like.new_empty((0,) if tensor is None else tensor.shape)
