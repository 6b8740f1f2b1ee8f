"""From tensors to launches of the Triton kernels, by the same contract as the compiled ops."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from mixpol_kernels.checks import check_range
from mixpol_kernels.history import Layout
from mixpol_kernels.library import INTERPRETING
from mixpol_kernels.ops.polarity_fusion.triton import configs, kernels, support
from mixpol_kernels.ops.registry import Arguments
from mixpol_kernels.ops.target_attention.reference import masked
from mixpol_kernels.ops.triton import devices, reports, shared, table_grad

# Programs of the backward, each with a slab of sums. A fixed number: bits depend on the inputs, not on the machine.
PROGRAMS = 4 if INTERPRETING else 528


def forward(a: Arguments) -> Tensor:
    """`mixpol::polarity_fusion_fwd`.

    With `items`, [N] or [B, L], `tokens` is a table [V, D] that they are looked up in; without `polarity` and its table
    nothing is added.
    """
    call = _Call(a)
    fused: Tensor = a.tokens.new_empty((*call.shape, call.width))
    if fused.numel():
        launched = _launch(*support.chosen(a.target, "forward", call.kind > 0))
        with torch.cuda.device_of(a.target):
            kernels.forward_kernel[(a.target.shape[0],)](
                call.target, call.tokens, call.items, call.polarity, call.polarity_table, call.sign, *call.gate,
                call.extra_ids, call.extra_table, *call.layout, fused, reports.word(), *call.sizes(),
                **call.constants(), **launched,
            )  # fmt: skip
    return fused


def backward(a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """`mixpol::polarity_fusion_bwd`. With `items` the gradient of the looked-up tokens is float32, to be summed.

    Raises:
        ValueError: a gradient of another shape or dtype than the fused tokens.
    """
    grad_fused, tokens, items = a.grad_fused, a.tokens, _items(a)
    positions = tokens.shape[:-1] if items is None else items.shape
    occupied = Layout(a.target.shape[0], tuple(positions), a.offsets, a.lengths, a.mask).occupied()
    target = masked(a.target, occupied)  # the kernels multiply by zero what an empty history's target holds
    call = _Call(a.but(target=target))
    shape = (*call.shape, call.width)
    if grad_fused.shape != shape or grad_fused.dtype != tokens.dtype:
        raise ValueError(
            f"grad_fused is {grad_fused.dtype} {list(grad_fused.shape)}; expected {tokens.dtype} {list(shape)}"
        )
    grad_target = target.new_empty(target.shape)
    grad_tokens = tokens.new_empty(shape, dtype=tokens.dtype if items is None else torch.float32)
    parts = slab_sizes(call.width, call.kind)
    columns = sum(parts.values())
    sums = target.new_zeros((columns,), dtype=torch.float32)
    if target.numel():
        programs = min(PROGRAMS, target.shape[0])
        stride = -(-columns // 16) * 16
        slabs = target.new_zeros((programs, stride), dtype=torch.float32)
        launched = _launch(*support.chosen(target, "backward", call.kind > 0))
        constants = call.constants() | {"EXTRA": a.extra_table is not None and len(a.extra_table) <= configs.ROWS}
        with torch.cuda.device_of(target):
            kernels.backward_kernel[(programs,)](
                grad_fused.contiguous(), call.target, call.tokens, call.items, call.polarity, call.sign, *call.gate,
                call.extra_ids, *call.layout, grad_target, grad_tokens, slabs, target.shape[0], *call.sizes(), stride,
                **constants, ROWS=configs.ROWS, **launched,
            )  # fmt: skip
            shared.sum_slabs[(triton.cdiv(columns, 64),)](
                slabs, sums, programs, columns, stride, ROWS=16, COLUMNS=64, num_warps=4
            )
    found = dict(zip(parts, sums.split(list(parts.values())), strict=True))
    width = call.width

    def rows(name: str, ids: Tensor, table: Tensor | None) -> Tensor:
        if table is None:
            return target.new_empty((0,))
        if len(table) > configs.ROWS:  # the kernels' products with one-hot rows have no room for them
            summed = table_grad.dense(a.but(ids=ids, grad_tokens=grad_fused, table_rows=len(table)))
            return summed.to(table.dtype)
        grad: Tensor = found[name].view(configs.ROWS, width)[: table.shape[0]].to(table.dtype, copy=True)
        return grad

    grads: list[Tensor] = []
    if call.kind > 0:
        blocks = [found[name].view(width, width) for name in ("x", "q", "p") if name in found]
        grads = [torch.cat(blocks, 1), found["bias"], found["pull"].view(width, width)]
        grads = [grad.to(p.dtype, copy=True) for grad, p in zip(grads, a.gate, strict=True)]
    grad_target = masked(grad_target, occupied)
    tables = rows("polarity", a.polarity, a.polarity_table), rows("extra", a.extra_ids, a.extra_table)
    return grad_target, grad_tokens, *tables, grads


def slab_sizes(width: int, kind: int) -> dict[str, int]:
    """Floats of each part of a slab, in the order in which `backward_kernel` lays them out."""
    sizes = {"polarity": configs.ROWS * width, "extra": configs.ROWS * width}
    gate = ("p", "x", "q", "pull") if kind == 2 else ("p", "pull") if kind == 1 else ()
    sizes |= dict.fromkeys(gate, width * width)
    return sizes | ({"bias": width} if kind > 0 else {})


class _Call:
    """The arguments that both directions share, as the kernels take them."""

    def __init__(self, a: Arguments) -> None:
        tokens, items, gate = a.tokens, _items(a), a.gate or ()
        polarity, extra_ids = a.polarity, a.extra_ids
        refusal = support.refusal(a.target, a.polarity_table, a.extra_table, bool(gate))
        if refusal:
            raise ValueError(f"polarity_fusion: the Triton kernels cannot run: {refusal}")
        reports.raise_reported()
        self.width = a.target.shape[-1]
        self.shape = tuple(tokens.shape[:-1] if items is None else items.shape)
        if INTERPRETING:  # on a GPU a check would wait for the device: the kernels clamp instead
            where = Layout(a.target.shape[0], self.shape, a.offsets, a.lengths, a.mask)
            where.check_values()
            for name, ids, table in (
                ("item_ids", items, tokens),
                ("polarity", polarity, a.polarity_table),
                ("extra_ids", extra_ids, a.extra_table),
            ):
                if ids is not None and table is not None:
                    check_range(name, ids, table.shape[0], where.keep())
        self.kind = -1 if polarity is None else 0 if not gate else 1 if gate[0].shape[1] == self.width else 2
        self.target, self.sign = a.target.contiguous(), a.sign.contiguous()
        self.items = _contiguous(items)
        self.polarity, self.polarity_table = _contiguous(polarity), _contiguous(a.polarity_table)
        self.extra_ids, self.extra_table = _contiguous(extra_ids), _contiguous(a.extra_table)
        self.tokens = tokens if tokens.stride(-1) == 1 or self.width == 1 else tokens.contiguous()
        self.gate = [g.contiguous() for g in gate] if gate else [None, None, None]
        self.layout = (a.offsets, a.lengths, a.mask)
        self.align = devices.alignment(self.tokens)

    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """length, user_units, row_units, table_rows, polarities, extras of the kernels."""
        strides = self.tokens.stride()
        user = strides[0] // self.align if self.tokens.dim() == 3 else 0
        rows = [0 if t is None else t.shape[0] for t in (self.polarity_table, self.extra_table)]
        return self.shape[-1], user, strides[-2] // self.align, self.tokens.shape[0], rows[0], rows[1]

    def constants(self) -> dict[str, Any]:
        """Compile-time constants of both kernels."""
        offsets, lengths, mask = self.layout
        return {
            "D": self.width,
            "BD": devices.block(self.width),
            "GATE": self.kind,
            "EXTRA": self.extra_table is not None,
            "ITEMS": self.items is not None,
            "LAYOUT": 0 if offsets is not None else 1 if lengths is not None else 2 if mask is not None else 3,
            "ALIGN": self.align,
        }


def _items(a: Arguments) -> Tensor | None:
    """The ids to look up, which the op of ids brings and the op of tokens does not."""
    return getattr(a, "items", None)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _launch(element: str, config: devices.Config) -> dict[str, Any]:
    return {
        "PRECISION": "tf32x3" if element == "tf32x3" else "ieee",
        "TILE": config.tile,
        "num_warps": config.warps,
        "num_stages": config.stages,
    }
