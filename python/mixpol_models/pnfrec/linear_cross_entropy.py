"""Cross entropy over a whole catalogue without its logits.

`mean_cross_entropy(hidden, table, label)` is `F.cross_entropy(hidden @ table.T, label)`. What is not held is
[tokens, items]: a chunk of tokens is scored, turned into its gradients at once, and forgotten.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Head = Callable[[Tensor, Tensor, Tensor], Tensor]

# A chunk's logits: small enough for a cache with a small catalogue, rows enough for the products with a large one.
_CHUNK_ELEMENTS = 2**20
_FEWEST_ROWS, _MOST_ROWS = 64, 256


def chunk_rows(items: int) -> int:
    """Tokens scored at once, by the size of the catalogue alone, so that results do not depend on the batch's size."""
    return max(_FEWEST_ROWS, min(_MOST_ROWS, _CHUNK_ELEMENTS // max(items, 1)))


class _MeanCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, label: Tensor, rows: int) -> Tensor:
        wants_hidden, wants_table = ctx.needs_input_grad[:2]
        tokens = hidden.shape[0]
        # Low precision multiplies in it and adds up in float32; float64 stays.
        wide = torch.promote_types(hidden.dtype, torch.float32)
        items = table.to(hidden.dtype)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_table = torch.zeros(table.shape, dtype=wide, device=table.device) if wants_table else None
        for start in range(0, tokens, rows):
            h, y = hidden[start : start + rows], label[start : start + rows, None]
            logits = (h @ items.T).to(wide)
            gold = logits.gather(1, y)
            peak = logits.amax(1, keepdim=True)
            power = logits.sub_(peak).exp_()
            mass = power.sum(1, keepdim=True)
            total += (peak + mass.log() - gold).sum()
            if not (wants_hidden or wants_table):
                continue
            # The softmax less the label is (power − mass at the label) / mass; dividing [rows, d] is cheaper.
            power.scatter_add_(1, y, -mass)
            if wide != hidden.dtype:
                power = power.div_(mass).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(power, items, out=grad_hidden[start : start + rows])
            if wide == hidden.dtype:
                if grad_hidden is not None:
                    grad_hidden[start : start + rows] /= mass
                if grad_table is not None:
                    grad_table.addmm_(power.T, h / mass)
            elif grad_table is not None:
                grad_table += power.T @ h
        if grad_hidden is not None:
            grad_hidden /= tokens
        if grad_table is not None:
            grad_table = (grad_table / tokens).to(table.dtype) if table.dtype != wide else grad_table.div_(tokens)
        ctx.save_for_backward(grad_hidden, grad_table)
        return total / tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_table = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad.to(grad_hidden.dtype),
            None if grad_table is None else grad_table * grad.to(grad_table.dtype),
            None,
            None,
        )


def chunked_cross_entropy(hidden: Tensor, table: Tensor, label: Tensor, rows: int | None = None) -> Tensor:
    """Mean cross entropy of `hidden @ table.T` against `label`; 0 without tokens.

    The gradients are made in the forward pass, so backward only scales them; second derivatives are an error. The
    chunks are taken in order: the same bits every time.

    Args:
        hidden: [N, d] float32, float64 or bfloat16.
        table: [V, d], of the same or a wider dtype.
        label: [N] int64 in 0 ... V - 1.
        rows: tokens scored at once; by default `chunk_rows(V)`.

    Returns:
        scalar of float32, or float64 for float64.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> import torch
        >>> h, e, y = torch.randn(5, 4), torch.randn(9, 4), torch.tensor([0, 8, 3, 3, 1])
        >>> torch.allclose(chunked_cross_entropy(h, e, y, rows=2), torch.nn.functional.cross_entropy(h @ e.T, y))
        True
    """
    if hidden.ndim != 2 or table.ndim != 2 or hidden.shape[1] != table.shape[1] or label.shape != hidden.shape[:1]:
        raise ValueError(
            f"hidden is {tuple(hidden.shape)}, table {tuple(table.shape)} and label {tuple(label.shape)}, "
            "expected [N, d], [V, d] and [N]"
        )
    if rows is not None and rows < 1:
        raise ValueError(f"rows is {rows}, expected at least 1")
    if not len(hidden):
        return hidden.sum() + 0 * table.sum()
    return _MeanCrossEntropy.apply(hidden, table, label, rows or chunk_rows(len(table)))


def _liger(hidden: Tensor, table: Tensor, label: Tensor) -> Tensor:
    loss = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss(reduction="mean")
    return loss(table.to(hidden.dtype), hidden, label)


def _cut(hidden: Tensor, table: Tensor, label: Tensor) -> Tensor:
    # "cce" leaves out small gradients, "cce_exact" none.
    function = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return function(hidden, table.to(hidden.dtype), label, reduction="mean", impl="cce_exact")


_GPU: dict[str, tuple[str, Head]] = {
    "cut_cross_entropy": ("cut_cross_entropy", _cut),
    "liger": ("liger_kernel", _liger),
}


def choose_head(head: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """(name, reason): who computes the cross entropy, and why. What is named is taken or refused, never replaced.

    Args:
        head: "auto", "chunked", "liger" or "cut_cross_entropy".
        device: of the model.
        dtype: of the states.

    Raises:
        ValueError: an unknown name, or a named one that is not installed or not for this device.
    """
    if head == "chunked":
        return "chunked", "asked for"
    if head in _GPU:
        package = _GPU[head][0]
        if device.type != "cuda":
            raise ValueError(f"head is {head!r} on {device.type!r}, expected a GPU: take 'chunked' or 'auto'")
        if find_spec(package) is None:
            raise ValueError(f"head is {head!r}, but {package} is not installed: install it, or take 'chunked'")
        return head, "asked for"
    if head != "auto":
        raise ValueError(f"head is {head!r}, expected 'auto', 'chunked' or one of {tuple(_GPU)}")
    if device.type != "cuda":
        return (
            "chunked",
            f"Liger and cut-cross-entropy are for GPUs, the device is {device.type!r}",
        )
    # Liger's kernel works on logits in the input's precision; cut-cross-entropy is made for 16 bits.
    order = ("cut_cross_entropy", "liger") if dtype == torch.bfloat16 else ("liger",)
    for name in order:
        if find_spec(_GPU[name][0]) is not None:
            return name, f"{_GPU[name][0]} is installed, and made for {dtype} on a GPU"
    return "chunked", f"none of {tuple(_GPU[name][0] for name in order)} is installed (for {dtype})"


def explain_head(head: str, device: torch.device, dtype: torch.dtype) -> str:
    """`choose_head` in a sentence."""
    name, reason = choose_head(head, device, dtype)
    return f"cross entropy over the catalogue: {name} ({reason})"


def mean_cross_entropy(name: str) -> Head:
    """The function (hidden, table, label) → mean loss of a name that `choose_head` gave; 0 without tokens."""
    if name == "chunked":
        return chunked_cross_entropy
    function = _GPU[name][1]
    return lambda hidden, table, label: function(hidden, table, label) if len(hidden) else hidden.sum()
