"""The walk over a model: which layers turn into their fused form, and which stay and why."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from mixpol_kernels.drop_in import registry
from mixpol_kernels.drop_in.chain import rejected


@dataclass(frozen=True)
class Replaced:
    """A layer that runs fused now.

    Attributes:
        names: in the model; several if it is used in several places.
        layer: its class.
        framework: that it is of.
        backend: whose kernels run it where it is now, "cpu" say; empty for a layer without parameters.
        note: when its own forward runs all the same, and why; empty if never.
    """

    names: tuple[str, ...]
    layer: str
    framework: str
    backend: str = ""
    note: str = ""


@dataclass(frozen=True)
class Left:
    """A layer that a fused form exists for, left as it was, and why."""

    names: tuple[str, ...]
    layer: str
    framework: str
    reason: str


@dataclass(frozen=True)
class Report:
    """Report of `accelerate`; print it."""

    replaced: tuple[Replaced, ...] = field(default_factory=tuple)
    left: tuple[Left, ...] = field(default_factory=tuple)

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} replaced, {len(self.left)} left as they were"]
        for r in self.replaced:
            by = f", by {r.backend}" if r.backend else ""
            note = f"; {r.note}" if r.note else ""
            lines.append(f"  fused  {_where(r.names)}: {r.framework} {r.layer}{by}{note}")
        lines += [f"  left   {_where(x.names)}: {x.framework} {x.layer}, since {x.reason}" for x in self.left]
        return "\n".join(lines)


def accelerate(model: nn.Module) -> Report:
    """Lets every target-attention layer of a model that has a fused form run it.

    Known layers: FuxiCTR's `DIN_Attention` and `MultiHeadTargetAttention`, DeepCTR-Torch's
    `AttentionSequencePoolingLayer`, RecBole's `SequenceAttLayer`, torch-rechub's `ActivationUnit` and TorchEasyRec's
    `DINEncoder`. A layer keeps its object, parameters, buffers, hooks and names; only its class changes, to a subclass
    with another `forward`. So optimisers, checkpoints and state_dict keys stay valid, before and after, and
    `isinstance` still holds. `restore` undoes it. Layers whose options the ops do not have stay as they are, and so do
    those that no kernel takes on their device, in their dtype or under autocast: each call asks the chooser of
    `mixpol_kernels.explain`. An accelerated layer may move. Where no kernel takes a call of it, on another device or in
    training, the framework's own forward runs, and the log says why.

    Args:
        model: on one device, best the one that it will run on, before `torch.compile` and not scripted.

    Returns:
        A `Report`.

    Raises:
        TypeError: not an `nn.Module`, or a scripted or compiled one.
        ValueError: there is no known layer in it.
        ImportError: a framework's classes are not the ones that the adapter was written for.

    Example:
        >>> from torch import nn
        >>> from mixpol_kernels.drop_in import accelerate
        >>> accelerate(nn.Linear(4, 4))
        Traceback (most recent call last):
        ValueError: model has no target-attention layer that is known ...
    """
    check_model(model)
    replaced: list[Replaced] = []
    left: list[Left] = []
    fused: list[tuple[nn.Module, type[nn.Module]]] = []
    fused_already = False
    for module, names in modules_of(model).items():
        for adapter in registry.loaded():
            for layer in adapter.layers:
                if type(module) is layer.fused or (layer.polar is not None and type(module) is layer.polar):
                    fused_already = True
                elif isinstance(module, layer.original):
                    reason = _refusal(module, layer)
                    choice = _Choice(reason=reason) if reason else _choice(module, layer)
                    if choice.reason:
                        left.append(Left(names, type(module).__name__, adapter.framework, choice.reason))
                        continue
                    name = layer.original.__name__
                    replaced.append(Replaced(names, name, adapter.framework, choice.backend, choice.note))
                    fused.append((module, layer.fused))
    if not replaced and not left and not fused_already:
        known = ", ".join(f"{a.framework} {x.original.__name__}" for a in registry.loaded() for x in a.layers)
        raise ValueError(
            f"model has no target-attention layer that is known ({known or 'no known framework has been imported'}); "
            "mixpol_kernels.nn has the layers themselves"
        )
    for module, kind in fused:
        module.__class__ = kind
    return Report(tuple(replaced), tuple(left))


def restore(model: nn.Module) -> int:
    """Undoes `accelerate` and `patched`: every fused layer gets its framework's class back.

    Returns:
        How many layers were restored.

    Raises:
        TypeError: not an `nn.Module`, or a scripted or compiled one.
    """
    check_model(model)
    count = 0
    for module in modules_of(model):
        for adapter in registry.loaded():
            for layer in adapter.layers:
                if type(module) is layer.fused:
                    module.__class__ = layer.original
                    count += 1
    return count


@contextlib.contextmanager
def patched(framework: str) -> Iterator[None]:
    """Within this context, layers of a framework are fused as they are built; they stay so afterwards.

    For models that are built far from your own code: by a runner, from a configuration.

    Args:
        framework: "fuxictr", "deepctr_torch", "recbole", "torch_rechub" or "tzrec".

    Raises:
        ValueError: unknown framework.
        ImportError: it is not installed, or its classes are not the ones that the adapter was written for.
    """
    layers = registry.adapter(framework).layers
    originals = [layer.original.__init__ for layer in layers]
    for layer in layers:
        layer.original.__init__ = _fusing(layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.original.__init__ = original  # type: ignore[method-assign]


def _fusing(layer: registry.Layer) -> Any:
    original = layer.original.__init__

    @functools.wraps(original)
    def build(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if type(self) is layer.original and not _refusal(self, layer):
            self.__class__ = layer.fused

    return build


def check_model(model: object) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model is scripted; accelerate the model that it was made from, and keep that one")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; expected an nn.Module")
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise TypeError("model is compiled; accelerate it first, then compile it")
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise TypeError(f"{scripted[0]} in the model is scripted; expected a model of ordinary modules")


def modules_of(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Every module once, with all its names: a layer may be used in several places."""
    names: dict[nn.Module, tuple[str, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names[module] = (*names.get(module, ()), name)
    return names


def _refusal(module: nn.Module, layer: registry.Layer) -> str:
    if type(module) is not layer.original:
        return f"it is a subclass of {layer.original.__name__}, which may compute something else"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    return layer.refusal(module)


class _Choice(NamedTuple):
    """Why a layer stays as it is, or which kernels run it and when they do not."""

    reason: str = ""
    backend: str = ""
    note: str = ""


def _choice(module: nn.Module, layer: registry.Layer) -> _Choice:
    """What the chooser says to a layer where it is now; one that only low precisions are served of is for autocast."""
    like = next(module.parameters(), None)
    if like is None:
        return _Choice()
    evaluated, *now = layer.asks
    found = evaluated(module, like)
    if reason := rejected(found):
        low = (torch.bfloat16, torch.float16) if like.is_cuda and like.dtype == torch.float32 else ()
        for dtype in low:
            with torch.autocast("cuda", dtype):
                found = evaluated(module, like)
            if not rejected(found):
                name = str(dtype).removeprefix("torch.")
                note = f"under autocast to {name}; in float32 its own forward runs, since {reason}"
                return _Choice("", found.backend, note)
        return _Choice(reason)
    for ask in now:
        if reason := rejected(ask(module, like)):
            return _Choice("", found.backend, f"in training its own forward runs, since {reason}")
    return _Choice("", found.backend)


def _where(names: tuple[str, ...]) -> str:
    return " and ".join(name or "the model itself" for name in names)
