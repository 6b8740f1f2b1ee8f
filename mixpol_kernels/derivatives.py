"""Derivatives that the kernels lack, gradients of gradients and forward-mode tangents: refused in words."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Gradients = tuple[Tensor | None, ...]


def refuse_tangents(op: str, *tensors: Any) -> None:
    """Raises RuntimeError if one of these inputs of a kernel carries a forward-mode tangent, which it would lose.

    Cheap where none is being taken. While a graph is traced nobody sees who has one: all of them might.
    """
    if forward_ad._current_level < 0:
        return
    traced = torch.compiler.is_compiling()
    if not traced and not torch._C._is_fwd_grad_enabled():
        return
    for tensor in tensors:  # in this very frame, which torch.compile gives up when it raises
        if traced or (isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None):
            raise RuntimeError(
                f"{op}: the kernels have no forward-mode derivative, and an input has a tangent; use "
                "backend='reference', or reverse mode"
            )


def first_order(op: str) -> Callable[[Callable[..., Gradients]], Callable[..., Gradients]]:
    """For the backward of an autograd.Function over kernels: its gradients refuse to be differentiated again.

    The backward gets the saved tensors behind `ctx`. Gradients depend on them too: `once_differentiable` looks at the
    incoming gradients only, and a penalty on a gradient would add nothing, silently. `create_graph=True` by itself is
    fine, since nobody may come to differentiate these gradients.

    Args:
        op: name of the op, for the message.
    """

    def decorate(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
        @functools.wraps(backward)
        def run(ctx: Any, *grads: Tensor) -> Gradients:
            saved = ctx.saved_tensors  # once: checkpoints give them up
            if torch.compiler.is_compiling():  # graphs of torch.compile refuse it themselves
                return backward(ctx, saved, *grads)
            refuse_tangents(op, *grads, *saved)
            if not torch.is_grad_enabled():
                return backward(ctx, saved, *grads)
            with torch.no_grad():
                found = backward(ctx, saved, *grads)
            sources = [t for t in (*grads, *saved) if t is not None and t.requires_grad]
            at = [i for i, grad in enumerate(found) if grad is not None]
            guarded = dict(zip(at, _Once.apply(op, len(at), *(found[i] for i in at), *sources), strict=True))
            return tuple(guarded.get(i) for i in range(len(found)))

        return run

    return decorate


class _Once(torch.autograd.Function):
    """The first `count` tensors as they are; of the others, their sources, only the graph is of interest."""

    @staticmethod
    def forward(ctx: Any, op: str, count: int, *tensors: Tensor) -> Gradients:
        ctx.op = op
        return tuple(tensor.detach() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Gradients:
        raise RuntimeError(
            f"{ctx.op}: gradients of the kernels cannot be differentiated again (they are once_differentiable); use "
            "backend='reference', which differentiates twice"
        )
