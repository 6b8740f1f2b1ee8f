"""From tensors to launches of the Triton kernels, by the same contract as the compiled ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from mixpol_kernels.history import Layout
from mixpol_kernels.library import INTERPRETING
from mixpol_kernels.ops.registry import Arguments
from mixpol_kernels.ops.target_attention.reference import masked
from mixpol_kernels.ops.target_attention.triton import kernels, support
from mixpol_kernels.ops.triton import devices, shared
from mixpol_kernels.ops.triton.parts import Histories, rescale_kernel
from mixpol_kernels.ops.unit import ACTIVATIONS, NORMALIZERS

# Programs of the backward, each with a slab of sums. A fixed number: bits depend on the inputs, not on the machine.
PROGRAMS = 4 if INTERPRETING else 528
SUM_ROWS, SUM_COLUMNS = 16, 64
SOFTMAX = NORMALIZERS.index("softmax")
RESCALE_TILE = 16 if INTERPRETING else 512


def forward(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """`mixpol::target_attention_fwd`.

    Raises:
        ValueError: bits to be saved, which only the CPU kernels do; dropout.
    """
    target, normalize, save_attention = a.target, a.normalize, a.save_attention
    if a.save_bits:
        raise ValueError("save_bits was True; expected False: the Triton kernels recompute the unit in the backward")
    call = _Call(a)
    pooled = target.new_empty(target.shape)
    shape = (*a.history.shape[:-1], call.candidates) if save_attention else (0,)
    attention = call.histories.per_token(shape, torch.float32)
    if pooled.numel():
        element, config = support.chosen(target, call.units, "forward")
        histories, parts = call.histories, call.histories.parts
        grid = (histories.items * call.candidates,)
        with torch.cuda.device_of(target):
            to, stats, merged = pooled, None, None
            if parts:
                to = histories.room(call.candidates, call.width)
            if parts and normalize == SOFTMAX:
                stats = histories.room(call.candidates, 2)
                merged = stats.new_empty((call.users, call.candidates, 2))
            kernels.forward_kernel[grid](
                *call.inputs(), call.weights[-1], call.biases[-1], to, stats, attention, *call.strides(),
                **call.constants(), NORM=normalize, SAVE=save_attention, **_launch(element, config),
            )  # fmt: skip
            if parts:
                parts.combine(to, pooled, stats, merged)
            if parts and normalize == SOFTMAX and save_attention:
                rescale_kernel[grid](
                    attention, stats, merged, parts.users, *histories.layout, call.candidates,
                    LAYOUT=histories.number, TILE=RESCALE_TILE, num_warps=4,
                )  # fmt: skip
    return pooled, attention, target.new_empty((0,), dtype=torch.uint8)


def backward(a: Arguments) -> tuple[Tensor, Tensor, list[Tensor]]:
    """`mixpol::target_attention_bwd`.

    Raises:
        ValueError: what the forward did not save, a gradient of another shape or dtype, or dropout.
    """
    grad_pooled, grad_attention, attention, history = a.grad_pooled, a.grad_attention, a.attention, a.history
    normalize = a.normalize
    if a.bits.numel():
        raise ValueError(f"bits has {a.bits.numel()} bytes; expected none: the Triton kernels do not save them")
    occupied = Layout(a.target.shape[0], tuple(history.shape[:-1]), a.offsets, a.lengths, a.mask).occupied()
    target = masked(a.target, occupied)  # the kernels multiply by zero what an empty history's target holds
    call = _Call(a.but(target=target))
    expected = (*history.shape[:-1], call.candidates)
    for name, tensor in (("attention", attention), ("grad_attention", grad_attention)):
        if tensor is not None and (tensor.shape != expected or tensor.dtype != torch.float32):
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}; expected torch.float32 {list(expected)}, "
                "one per token and candidate"
            )
    if grad_pooled.shape != target.shape or grad_pooled.dtype != target.dtype:
        raise ValueError(
            f"grad_pooled is {grad_pooled.dtype} {list(grad_pooled.shape)}; expected {target.dtype} "
            f"{list(target.shape)}, as target"
        )
    grad_target = target.new_empty(target.shape)
    several = call.candidates > 1 and target.dtype != torch.float32
    grad_history = call.histories.per_token(history.shape, torch.float32 if several else history.dtype)
    sizes = slab_sizes(call.width, call.units, a.activation)
    columns = sum(sizes.values())
    sums = target.new_zeros((columns,), dtype=torch.float32)
    if target.numel():
        element, config = support.chosen(target, call.units, "backward")
        histories, parts = call.histories, call.histories.parts
        programs = min(PROGRAMS, histories.items)
        scratch = call.units[0] * (call.width + 2)
        stride = -(-(columns + scratch) // 16) * 16
        slabs = target.new_zeros((programs, stride), dtype=torch.float32)
        grad_attention = grad_attention.contiguous() if grad_attention is not None else None
        constants = {**call.constants(), "WEIGHTS": grad_attention is not None, **_launch(element, config)}
        with torch.cuda.device_of(target):
            signals = (histories.spread(grad_pooled), grad_attention, attention.contiguous())
            to, means = grad_target, None
            if parts:
                to = histories.room(call.candidates, call.width)
            if parts and normalize == SOFTMAX:
                terms, means = histories.room(call.candidates, 1), sums.new_empty((call.users, call.candidates))
                taken = ("D", "BD", "LAYOUT", "WEIGHTS", "ALIGN", "TILE", "num_warps", "num_stages")
                kernels.mean_kernel[(histories.items * call.candidates,)](
                    *signals, histories.history, *histories.layout, terms, call.candidates, call.strides()[-1],
                    **{name: constants[name] for name in taken},
                )  # fmt: skip
                parts.combine(terms, means)
                means = histories.spread(means)
            kernels.backward_kernel[(programs,)](
                *signals, means, *call.inputs(), call.weights[-1],
                to, grad_history, slabs, histories.items, *call.strides(), stride,
                **constants, NORM=normalize, ADD=call.candidates > 1, FLUSH=config.flush,
            )  # fmt: skip
            if parts:
                parts.combine(to, grad_target)
            shared.sum_slabs[(triton.cdiv(columns, SUM_COLUMNS),)](
                slabs, sums, programs, columns, stride, ROWS=SUM_ROWS, COLUMNS=SUM_COLUMNS, num_warps=4
            )
    else:
        grad_history.zero_()
    named = dict(zip(sizes, sums.split(list(sizes.values())), strict=True))
    tokens, products, targets = (named[name].view(call.units[0], call.width) for name in ("x", "tx", "t"))
    grads = {"weight 0": torch.cat([targets, tokens, targets - tokens, products], dim=1), **named}
    names = [f"{kind} {i}" for kind in ("weight", "bias") for i in range(len(a.weights))]
    names += [f"slope {i}" for i in range(len(a.slopes))]
    like = [*a.weights, *a.biases, *a.slopes]
    parameters = [grads[name].to(p.dtype).view(p.shape).clone() for name, p in zip(names, like, strict=True)]
    return masked(grad_target, occupied), grad_history.to(history.dtype), parameters


def slab_sizes(width: int, units: Sequence[int], activation: int) -> dict[str, int]:
    """Floats of each part of a slab, in the order in which `backward_kernel` lays them out."""
    rows = {1: 1, 6: 3}.get(activation, 0)
    sizes = dict.fromkeys(("x", "tx", "t"), units[0] * width)
    for i, count in enumerate(units):
        if i:
            sizes[f"weight {i}"] = count * units[i - 1]
        sizes[f"bias {i}"] = count
        sizes[f"slope {i}"] = rows * count
    last = len(units)
    return sizes | {f"weight {last}": units[-1], f"bias {last}": 1}


class _Call:
    """The arguments that both directions share, as the kernels take them."""

    def __init__(self, a: Arguments) -> None:
        if a.dropout:
            raise ValueError(f"dropout was {a.dropout}; expected 0: the Triton kernels have none")
        self.width = a.target.shape[-1]
        self.units = tuple(weight.shape[0] for weight in a.weights[:-1])
        refusal = support.refusal(a.target, a.weights, ACTIVATIONS[a.activation], 0.0)
        if refusal:
            raise ValueError(f"target_attention: the Triton kernels cannot run: {refusal}")
        self.users, self.candidates = a.target.shape[0], a.target.shape[1] if a.target.dim() == 3 else 1
        if INTERPRETING:  # on a GPU a check would wait for the device: the kernels clamp instead
            Layout(self.users, tuple(a.history.shape[:-1]), a.offsets, a.lengths, a.mask).check_values()
        self.histories = Histories(self.users, a.history, a.offsets, a.lengths, a.mask)
        self.target = self.histories.spread(a.target)
        self.weights = [weight.contiguous() for weight in a.weights]
        self.biases = [bias.contiguous() for bias in a.biases]
        self.slopes = [slope.contiguous() for slope in a.slopes or ()]
        self.activation = a.activation
        self.align = devices.alignment(self.histories.history)

    def inputs(self) -> tuple[Tensor | None, ...]:
        """target ... s3 of the kernels; None stands for what this unit or layout lacks."""
        layers = len(self.units)
        unit: list[Tensor | None] = []
        for i in range(3):
            slope = self.slopes[i] if i < len(self.slopes) else None
            unit += [self.weights[i], self.biases[i], slope] if i < layers else [None, None, None]
        return (self.target, self.histories.history, *self.histories.layout, *unit)

    def strides(self) -> tuple[int, int, int, int]:
        """candidates, length, user_units, row_units of the kernels."""
        history = self.histories.history
        user = history.stride(0) // self.align if history.dim() == 3 else 0
        return self.candidates, history.shape[-2], user, history.stride(-2) // self.align

    def constants(self) -> dict[str, Any]:
        """Compile-time constants of both kernels."""
        return {
            **sizes(self.width, self.units),
            "ACT": self.activation,
            "LAYOUT": self.histories.number,
            "PARTS": self.histories.parts is not None,
            "ALIGN": self.align,
        }


def sizes(width: int, units: Sequence[int]) -> dict[str, int]:
    """The sizes that the kernels are compiled for; layers that a unit lacks are 1 wide and never read."""
    padded = [*units, 1, 1][:3]
    named = {"D": width, "BD": devices.block(width), "LAYERS": len(units)}
    for i, count in enumerate(padded, start=1):
        named |= {f"H{i}": count, f"B{i}": devices.block(count)}
    return named


def _launch(element: str, config: devices.Config) -> dict[str, Any]:
    return {
        "PRECISION": "tf32x3" if element == "tf32x3" else "ieee",
        "TILE": config.tile,
        "num_warps": config.warps,
        "num_stages": config.stages,
    }
