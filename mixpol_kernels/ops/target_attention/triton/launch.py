"""From tensors to launches of the Triton kernels; the same contract as the compiled CPU ops (`autograd` has it)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from mixpol_kernels.history import Layout
from mixpol_kernels.library import INTERPRETING
from mixpol_kernels.ops.target_attention.autograd import ACTIVATIONS
from mixpol_kernels.ops.target_attention.triton import kernels, support
from mixpol_kernels.ops.triton import devices, shared

# Programs of the backward, each with a slab of sums. A fixed number: bits depend on the inputs, not on the machine.
PROGRAMS = 4 if INTERPRETING else 528
SUM_ROWS, SUM_COLUMNS = 16, 64


def forward(
    target: Tensor,
    history: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slopes: Sequence[Tensor] | None,
    activation: int,
    normalize: int,
    dropout: float,
    seed: Tensor | None,
    save_attention: bool,
    save_bits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`mixpol::target_attention_fwd`.

    Raises:
        ValueError: bits to be saved, which only the CPU kernels do; dropout.
    """
    _check_dropout(dropout)
    if save_bits:
        raise ValueError("save_bits was True; expected False: the Triton kernels recompute the unit in the backward")
    call = _Call(target, history, offsets, lengths, mask, weights, biases, slopes or (), activation)
    pooled = target.new_empty(target.shape)
    shape = (*history.shape[:-1], call.candidates) if save_attention else (0,)
    attention = target.new_empty(shape, dtype=torch.float32)
    if pooled.numel():
        element, config = support.chosen(target, call.units, "forward")
        with torch.cuda.device_of(target):
            kernels.forward_kernel[(call.users * call.candidates,)](
                *call.inputs(), call.weights[-1], call.biases[-1], pooled, attention, *call.strides(),
                **call.constants(), NORM=normalize, SAVE=save_attention, **_launch(element, config),
            )  # fmt: skip
    return pooled, attention, target.new_empty((0,), dtype=torch.uint8)


def backward(
    grad_pooled: Tensor,
    grad_attention: Tensor | None,
    attention: Tensor,
    bits: Tensor,
    target: Tensor,
    history: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slopes: Sequence[Tensor],
    activation: int,
    normalize: int,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """`mixpol::target_attention_bwd`.

    Raises:
        ValueError: what the forward did not save, a gradient of another shape or dtype, or dropout.
    """
    _check_dropout(dropout)
    if bits.numel():
        raise ValueError(f"bits has {bits.numel()} bytes; expected none: the Triton kernels do not save them")
    call = _Call(target, history, offsets, lengths, mask, weights, biases, slopes, activation)
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
    grad_history = history.new_empty(history.shape, dtype=torch.float32 if several else history.dtype)
    sizes = slab_sizes(call.width, call.units, activation)
    columns = sum(sizes.values())
    sums = target.new_zeros((columns,), dtype=torch.float32)
    if target.numel():
        element, config = support.chosen(target, call.units, "backward")
        programs = min(PROGRAMS, call.users)
        scratch = call.units[0] * (call.width + 2)
        stride = -(-(columns + scratch) // 16) * 16
        slabs = target.new_zeros((programs, stride), dtype=torch.float32)
        grad_attention = grad_attention.contiguous() if grad_attention is not None else None
        with torch.cuda.device_of(target):
            kernels.backward_kernel[(programs,)](
                grad_pooled.contiguous(), grad_attention, attention.contiguous(), *call.inputs(), call.weights[-1],
                grad_target, grad_history, slabs, call.users, *call.strides(), stride,
                **call.constants(), NORM=normalize, WEIGHTS=grad_attention is not None, ADD=call.candidates > 1,
                FLUSH=config.flush, **_launch(element, config),
            )  # fmt: skip
            shared.sum_slabs[(triton.cdiv(columns, SUM_COLUMNS),)](
                slabs, sums, programs, columns, stride, ROWS=SUM_ROWS, COLUMNS=SUM_COLUMNS, num_warps=4
            )
    else:
        grad_history.zero_()
    parts = dict(zip(sizes, sums.split(list(sizes.values())), strict=True))
    tokens, products, targets = (parts[name].view(call.units[0], call.width) for name in ("x", "tx", "t"))
    grads = {"weight 0": torch.cat([targets, tokens, targets - tokens, products], dim=1), **parts}
    names = [f"{kind} {i}" for kind in ("weight", "bias") for i in range(len(weights))]
    names += [f"slope {i}" for i in range(len(slopes))]
    like = [*weights, *biases, *slopes]
    parameters = [grads[name].to(p.dtype).view(p.shape).clone() for name, p in zip(names, like, strict=True)]
    return grad_target, grad_history.to(history.dtype), parameters


def _check_dropout(dropout: float) -> None:
    if dropout:
        raise ValueError(f"dropout was {dropout}; expected 0: the Triton kernels have none")


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

    def __init__(
        self,
        target: Tensor,
        history: Tensor,
        offsets: Tensor | None,
        lengths: Tensor | None,
        mask: Tensor | None,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        slopes: Sequence[Tensor],
        activation: int,
    ) -> None:
        self.width = target.shape[-1]
        self.units = tuple(weight.shape[0] for weight in weights[:-1])
        refusal = support.refusal(target, weights, ACTIVATIONS[activation], 0.0)
        if refusal:
            raise ValueError(f"target_attention: the Triton kernels cannot run: {refusal}")
        self.users, self.candidates = target.shape[0], target.shape[1] if target.dim() == 3 else 1
        if INTERPRETING:  # on a GPU a check would wait for the device: the kernels clamp instead
            Layout(self.users, tuple(history.shape[:-1]), offsets, lengths, mask).check_values()
        self.target = target.contiguous()
        self.history = history if history.stride(-1) == 1 or self.width == 1 else history.contiguous()
        self.layout = (offsets, lengths, mask)
        self.weights = [weight.contiguous() for weight in weights]
        self.biases = [bias.contiguous() for bias in biases]
        self.slopes = [slope.contiguous() for slope in slopes]
        self.activation = activation
        self.align = devices.alignment(self.history)

    def inputs(self) -> tuple[Tensor | None, ...]:
        """target ... s3 of the kernels; None stands for what this unit or layout lacks."""
        layers = len(self.units)
        unit: list[Tensor | None] = []
        for i in range(3):
            slope = self.slopes[i] if i < len(self.slopes) else None
            unit += [self.weights[i], self.biases[i], slope] if i < layers else [None, None, None]
        return (self.target, self.history, *self.layout, *unit)

    def strides(self) -> tuple[int, int, int, int]:
        """candidates, length, user_units, row_units of the kernels."""
        strides = self.history.stride()
        user = strides[0] // self.align if self.history.dim() == 3 else 0
        return self.candidates, self.history.shape[-2], user, strides[-2] // self.align

    def constants(self) -> dict[str, Any]:
        """What both kernels are compiled for."""
        offsets, lengths, mask = self.layout
        return {
            **sizes(self.width, self.units),
            "ACT": self.activation,
            "LAYOUT": 0 if offsets is not None else 1 if lengths is not None else 2 if mask is not None else 3,
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
