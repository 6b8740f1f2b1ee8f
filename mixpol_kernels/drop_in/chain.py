"""Reads an activation unit out of the modules that a framework built it from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mixpol_kernels.autocast import active
from mixpol_kernels.backend import Explanation, explain, plain_form
from mixpol_kernels.library import library
from mixpol_kernels.nn.called import LINEAR, NORM, all_plain, global_reason, why
from mixpol_kernels.nn.unit import Unit

Read = TypeVar("Read")
Ask = Callable[[Read, Tensor], Explanation]  # which kernels take what was read, on inputs like a tensor

# What a framework's own Dice is: its activation, its slope and its norm, if any. None for other modules.
Dice = Callable[[nn.Module], "tuple[str, Tensor | None, nn.BatchNorm1d | None] | None"]

_PLAIN: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.SiLU: "silu",
}


class Unsupported(Exception):
    """The op cannot compute this chain of modules; the text says why."""


def read_chain(modules: Iterable[nn.Module], dice: Dice, pads: str) -> Unit:
    """The unit of a chain: linear, norm, activation and dropout per hidden layer, then linear and an output activation.

    Args:
        modules: in the order in which they run.
        dice: recognises the framework's own activation.
        pads: how padded positions count in batch statistics, as in `Unit`.

    Raises:
        Unsupported: something that the op does not compute.
    """
    linears: list[nn.Linear] = []
    norms: list[nn.BatchNorm1d] = []
    slopes: list[Tensor] = []
    names: list[str] = []
    leaks: set[float] = set()
    output = "none"
    for module in modules:
        kind = type(module)
        if all_plain((module,), LINEAR):
            if len(names) != len(linears):
                raise Unsupported("a hidden layer has no activation")
            linears.append(cast(nn.Linear, module))
        elif isinstance(module, nn.Linear):
            raise Unsupported(why("a linear layer", module, LINEAR) or global_reason())
        elif kind is nn.Dropout:
            if cast(nn.Dropout, module).p > 0:
                raise Unsupported(f"it drops out ({module}): the fused op has its own random numbers")
        elif kind is nn.Identity:
            continue
        elif not linears:
            raise Unsupported(f"it begins with {kind.__name__}, not with a linear layer")
        elif linears[-1].out_features == 1 and len(names) == len(linears) - 1 and kind is nn.Sigmoid:
            output = "sigmoid"
        elif kind in NORM:
            if len(norms) != len(linears) - 1 or len(names) != len(linears) - 1:
                raise Unsupported("its batch norm does not sit between a linear layer and an activation")
            norms.append(cast(nn.BatchNorm1d, module))
        elif len(names) == len(linears):
            raise Unsupported(f"{kind.__name__} follows an activation")
        else:
            name, slope, norm = _activation(module, dice, linears[-1].out_features)
            if norm is not None:
                if len(norms) == len(linears):
                    raise Unsupported("it has a batch norm in front of a Dice that normalises itself")
                if type(norm) not in NORM:
                    raise Unsupported(f"its Dice normalises by {type(norm).__name__}, not by BatchNorm1d")
                norms.append(norm)
            if slope is not None:
                slopes.append(slope)
            if kind is nn.LeakyReLU:
                leaks.add(float(cast(nn.LeakyReLU, module).negative_slope))
            names.append(name)
    hidden = len(linears) - 1
    if not 1 <= hidden <= 3:
        raise Unsupported(f"it has {max(hidden, 0)} hidden layers; the op has one to three")
    if len(names) != hidden or linears[-1].out_features != 1:
        raise Unsupported("it does not end in a linear layer with one output")
    if len(set(names)) != 1:
        raise Unsupported(f"its hidden layers have different activations ({', '.join(names)})")
    if len(leaks) > 1:
        raise Unsupported(f"its LeakyReLUs have different slopes ({', '.join(map(str, sorted(leaks)))})")
    if len(norms) not in (0, hidden):
        raise Unsupported("only some of its hidden layers are normalised")
    leak = leaks.pop() if leaks else 0.01
    return Unit(linears, names[0], slopes, norms, pads=pads, negative_slope=leak, normalize=output)


def _activation(module: nn.Module, dice: Dice, units: int) -> tuple[str, Tensor | None, nn.BatchNorm1d | None]:
    found = dice(module)
    if found is not None:
        return found
    kind = type(module)
    if kind in _PLAIN:
        return _PLAIN[kind], None, None
    if kind is nn.PReLU:
        return "prelu", cast(nn.PReLU, module).weight.expand(units), None
    if kind is nn.LeakyReLU:
        return "leaky_relu", None, None
    if kind is nn.GELU and cast(nn.GELU, module).approximate == "none":
        return "gelu", None, None
    raise Unsupported(f"the op has no activation {module}")


def mean_where_empty(pooled: Tensor, history: Tensor, kept: Tensor) -> Tensor:
    """The mean of all rows where no position is kept: a softmax over equal scores, as frameworks leave it.

    `kept`: [B, 1] bool.
    """
    if all_kept(kept):
        return pooled
    return torch.where(kept, pooled, history.mean(1).to(pooled.dtype))


def all_kept(kept: Tensor) -> bool:
    """Whether no history is known to be empty; on a GPU that would be waited for."""
    return kept.is_cpu and not torch.compiler.is_compiling() and bool(kept.all())


def current(layer: nn.Module, op: str, read: Callable[[nn.Module], Read], ask: Ask[Read], like: Tensor) -> Read | None:
    """Parameters and options of a layer as it is in this call; None: the framework's own forward is needed.

    Modules, hooks and options may have changed since the layer was accelerated; it may have moved to a device, or run
    under an autocast, for which no kernel takes it. The log says why, once.

    Args:
        layer: the accelerated layer.
        op: the op that computes it, for messages.
        read: its unit or projections.
        ask: which kernels take what was read.
        like: one of the inputs of the call.

    Raises:
        ValueError: the environment asks for a kernel.
    """
    reason = _changed(layer) or global_reason()
    if not reason:
        try:
            found = read(layer)
        except Unsupported as unsupported:
            reason = str(unsupported)
        else:
            reason = _without_kernels(layer, found, ask, like)
            if not reason:
                return found
    plain_form(op, "auto", f"in this {type(layer).__name__} {reason}")
    return None


_known: WeakKeyDictionary[nn.Module, dict[Any, str]] = WeakKeyDictionary()  # a layer's answers, by what they depend on


def _without_kernels(layer: nn.Module, found: Read, ask: Ask[Read], like: Tensor) -> str:
    """Why no kernel takes what was read of a layer on inputs like this one; empty if one does."""
    if like.is_cpu and like.dtype == torch.float32 and library.loaded:  # these take all that is read
        return ""
    if torch.compiler.is_compiling() or os.environ.get("MIXPOL_BACKEND"):  # the op itself chooses, or was told
        return ""
    device = like.device.type
    low = torch.get_autocast_dtype(device) if torch._C._is_any_autocast_enabled() and active(device) else None
    shapes = [(p.shape, p.dtype, p.device) for p in layer.parameters()]
    key = (like.device, like.dtype, low, layer.training, torch.is_grad_enabled(), like.requires_grad, str(shapes))
    answers = _known.setdefault(layer, {})
    if key not in answers:
        answers[key] = rejected(ask(found, like))
    return answers[key]


def rejected(found: Explanation) -> str:
    """Why the reference would run; empty if kernels would."""
    if found.backend != "reference":
        return ""
    return "; ".join(f"{found.op} by {name}: {why}" for name, why in found.rejected.items())


def of_unit(unit: Unit, like: Tensor) -> Explanation:
    """Which kernels run a unit on inputs like this one; of several ops, the one that none runs."""
    found = explain(unit.attend, *_inputs(unit, like), {})
    if unit.needs_statistics and found.op != "dice_attention" and not rejected(found):
        return without_statistics(unit, like)
    return found


def without_statistics(unit: Unit, like: Tensor) -> Explanation:
    """Which kernels run a unit where its norms have their statistics."""
    slopes = unit.slopes
    if unit.activation == "dice":
        slopes = [slope.new_empty(3, *slope.shape) for slope in slopes]
    return explain(replace(unit, norms=(), slopes=slopes).attend, *_inputs(unit, like), {})


def asks_of(read: Callable[[Any], Unit]) -> tuple[Callable[[nn.Module, Tensor], Explanation], ...]:
    """`Layer.asks` of a layer that a unit is read of."""
    return (
        lambda layer, like: without_statistics(read(layer), like),
        lambda layer, like: of_unit(read(layer), like),
    )


def _inputs(unit: Unit, like: Tensor) -> tuple[Tensor, Tensor]:
    """A target and a history of one token, as wide as a unit's."""
    width = unit.linears[0].in_features // len(unit.blocks)
    target, history = like.new_empty(1, width), like.new_empty(1, 1, width)
    return target.requires_grad_(like.requires_grad), history


def _changed(layer: nn.Module) -> str:
    """Why modules in a layer do more than the framework's; empty if they do not. `read_chain` looks at the leaves."""
    framework = [kind.__module__.partition(".")[0] for kind in type(layer).__mro__ if kind is not nn.Module]
    for name, module in layer.named_modules():
        # A parametrization answers when its tensor is read, and a polarity fusion is called.
        if module is layer or "parametrizations" in name or name.startswith("polarity_fusion"):
            continue
        kind = type(module)
        if reason := why(name, module, (kind,)):
            return reason
        if module._modules and kind.__module__.partition(".")[0] not in ("torch", *framework):
            return f"{name} is {kind.__name__}, which the framework does not have"
    return ""


def refusal(read: Callable[[nn.Module], object]) -> Callable[[nn.Module], str]:
    """Turns a reader that raises `Unsupported` into what `Layer.refusal` is."""

    def why(layer: nn.Module) -> str:
        devices = {str(p.device) for p in layer.parameters()}
        if len(devices) > 1:
            return f"its parameters are on {' and '.join(sorted(devices))}; move the layer to one device"
        types = {p.dtype for p in layer.parameters()}
        if len(types) > 1:
            return f"its parameters have {' and '.join(sorted(map(str, types)))}; expected one dtype"
        if types & {torch.float64}:
            return "its parameters are float64, which no fused kernel takes"
        if reason := _changed(layer):
            return reason
        try:
            read(layer)
        except Unsupported as reason:
            return str(reason)
        return ""

    return why
