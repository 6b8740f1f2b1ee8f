"""From tensors to launches of the Triton kernels, by the same contract as the compiled ops."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from mixpol_kernels.history import Layout
from mixpol_kernels.library import INTERPRETING
from mixpol_kernels.ops.dot_target_attention.triton import configs, kernels, support
from mixpol_kernels.ops.registry import Arguments
from mixpol_kernels.ops.triton import devices
from mixpol_kernels.ops.triton.parts import Histories


def forward(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """`mixpol::dot_attention_fwd`; two float32 numbers a row are kept.

    Raises:
        ValueError: sizes or options that the kernels do not take.
    """
    queries, history, save_attention = a.queries, a.history, a.save_attention
    call = _Call(a)
    pooled = queries.new_empty(queries.shape)
    stats = queries.new_empty((*queries.shape[:-1], 2), dtype=torch.float32)
    shape = (*history.shape[:-1], *queries.shape[1:3]) if save_attention else (0,)
    attention = call.histories.per_token(shape, queries.dtype)
    if pooled.numel():
        histories, parts = call.histories, call.histories.parts
        blocks = histories.items * call.groups * triton.cdiv(call.rows, configs.ROWS)
        constants = call.constants("forward")
        with torch.cuda.device_of(queries):
            inputs = (histories.spread(queries), histories.history, *histories.layout)
            to, numbers = (call.room(call.width), call.room(2)) if parts else (pooled, stats)
            grid = (blocks * call.spread(constants),)
            kernels.forward_kernel[grid](*inputs, to, numbers, *call.sizes(), **constants)
            if parts:
                parts.combine(to, pooled, numbers, stats)
            if save_attention:
                numbers = histories.spread(stats)
                kernels.weights_kernel[(blocks,)](*inputs, numbers, attention, *call.sizes(), **constants)
    elif attention.numel():
        attention.zero_()
    return pooled, stats, attention


def backward(a: Arguments) -> tuple[Tensor, Tensor]:
    """`mixpol::dot_attention_bwd`.

    Raises:
        ValueError: sizes or options that the kernels do not take, a gradient or stats of another shape or dtype.
    """
    queries, history, grad_pooled, stats = a.queries, a.history, a.grad_pooled, a.stats
    call = _Call(a)
    for name, tensor, shape, dtype in (
        ("grad_pooled", grad_pooled, tuple(queries.shape), queries.dtype),
        ("stats", stats, (*queries.shape[:-1], 2), torch.float32),
    ):
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}; expected {dtype} {list(shape)}")
    grad_queries = queries.new_empty(queries.shape)
    several = call.rows > configs.ROWS
    grad_history = call.histories.per_token(history.shape, torch.float32 if several else history.dtype)
    if queries.numel():
        histories, parts = call.histories, call.histories.parts
        constants = call.constants("backward")
        with torch.cuda.device_of(queries):
            rows = [histories.spread(x) for x in (grad_pooled, stats, queries)]
            inputs = (*rows, histories.history, *histories.layout)
            to, means = grad_queries, None
            if parts:
                to, terms, means = call.room(call.width), call.room(1), stats.new_empty(queries.shape[:-1])
                kernels.mean_kernel[(histories.items * call.groups * triton.cdiv(call.rows, configs.ROWS),)](
                    *inputs, terms, *call.sizes()[:2], call.sizes()[4],
                    **{name: value for name, value in constants.items() if name not in ("PARTS", "TOP")},
                )  # fmt: skip
                parts.combine(terms, means)
                means = histories.spread(means)
            kernels.backward_kernel[(histories.items * call.groups * call.spread(constants),)](
                *inputs, means, to, grad_history, *call.sizes(), ADD=several, **constants
            )
            if parts:
                parts.combine(to, grad_queries)
    else:
        grad_history.zero_()
    return grad_queries, grad_history.to(history.dtype)


class _Call:
    """The arguments that both directions share, as the kernels take them."""

    def __init__(self, a: Arguments) -> None:
        queries: Tensor = a.queries
        history: Tensor = a.history
        refusal = support.refusal(queries, queries.shape[-1])
        if refusal:
            raise ValueError(f"dot_target_attention: the Triton kernels cannot run: {refusal}")
        batch, candidates, heads, self.width = queries.shape
        self.groups, self.rows = (heads, candidates) if a.sliced else (1, candidates * heads)
        if history.shape[-1] != self.groups * self.width:
            raise ValueError(
                f"history is {history.shape[-1]} wide; expected {self.groups * self.width}, "
                f"{self.groups} parts for queries {self.width} wide"
            )
        if INTERPRETING:  # on a GPU a check would wait for the device: the kernels clamp instead
            Layout(batch, tuple(history.shape[:-1]), a.offsets, a.lengths, a.mask).check_values()
        self.queries = queries
        self.top_k = min(a.top_k, 2**31 - 1)
        # The best tokens are those of the whole history.
        self.histories = Histories(batch, history, a.offsets, a.lengths, a.mask, whole=self.top_k > 0)
        self.align = devices.alignment(self.histories.history)

    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """groups, rows, length, user_units, row_units, top_k of the kernels."""
        history = self.histories.history
        user = history.stride(0) // self.align if history.dim() == 3 else 0
        return self.groups, self.rows, history.shape[-2], user, history.stride(-2) // self.align, self.top_k

    def spread(self, constants: dict[str, Any]) -> int:
        """Programs that share the columns of a row."""
        return -(-self.width // int(constants["BW"]))

    def room(self, width: int) -> Tensor:
        """For what each part leaves of its rows."""
        return self.histories.room(self.groups * self.rows, width)

    def constants(self, direction: str) -> dict[str, Any]:
        """Compile-time constants and launch options of the kernel."""
        element, columns, config = support.chosen(self.queries, direction, self.top_k)
        return {
            "W": self.width,
            "BW": min(devices.block(self.width), columns),
            "ROWS": configs.ROWS,
            "LAYOUT": self.histories.number,
            "PARTS": self.histories.parts is not None,
            "TOP": self.top_k > 0,
            "ALIGN": self.align,
            "PRECISION": "tf32x3" if element == "tf32x3" else "ieee",
            "TILE": config.tile,
            "num_warps": config.warps,
            "num_stages": config.stages,
        }
