"""Which inner modules may be read for their parameters; the others compute something of their own and are called.

A fused op takes weights. What else a layer does in its forward it would leave out: hooks (weight_norm, spectral_norm
and pruning of old style, FSDP, tensor parallelism), a subclass or wrapper (LoRA, quantised or lazy layers), a weight
that is a tensor of another kind. Parametrizations (`torch.nn.utils.parametrize`) answer when the weight is read.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_backward_hooks as _backward_hooks
from torch.nn.modules.module import _global_backward_pre_hooks as _backward_pre_hooks
from torch.nn.modules.module import _global_forward_hooks as _forward_hooks
from torch.nn.modules.module import _global_forward_pre_hooks as _forward_pre_hooks

from mixpol_kernels.nn.starts import ScaledEmbedding, Slopes, ZeroLinear

LINEAR: tuple[type[nn.Module], ...] = (nn.Linear, ZeroLinear)
EMBEDDING: tuple[type[nn.Module], ...] = (nn.Embedding, ScaledEmbedding)
NORM: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.SyncBatchNorm)
SLOPES: tuple[type[nn.Module], ...] = (Slopes, nn.ParameterList)
_TENSORS = (nn.Parameter, Tensor, type(None))
_ORDINARY = (Tensor.__torch_function__.__func__, torch._C._disabled_torch_function_impl)  # type: ignore[attr-defined]


def all_plain(modules: Iterable[nn.Module | None], kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether each module is of one of these very classes, without hooks: this runs in every call."""
    for module in modules:
        if type(module) not in kinds and not _is_parametrized(module, kinds):
            return False
        if (
            module._forward_hooks  # type: ignore[union-attr]
            or module._forward_pre_hooks  # type: ignore[union-attr]
            or module._backward_hooks  # type: ignore[union-attr]
            or module._backward_pre_hooks  # type: ignore[union-attr]
            or "forward" in module.__dict__
        ):
            return False
        for tensor in module._parameters.values():  # type: ignore[union-attr]
            kind = type(tensor)
            if kind is not nn.Parameter and kind not in _TENSORS and _is_foreign(tensor):
                return False
    return not (_forward_hooks or _forward_pre_hooks or _backward_hooks or _backward_pre_hooks)


def why(name: str, module: nn.Module | None, kinds: tuple[type[nn.Module], ...]) -> str:
    """Why `all_plain` refuses this module itself, by its name in the layer; empty if it does not."""
    if type(module) not in kinds and not _is_parametrized(module, kinds):
        kind, plain = type(module), kinds[0]
        shown = f"{kind.__module__}.{kind.__qualname__}" if kind.__name__ == plain.__name__ else kind.__name__
        return f"{name} is {shown}, not {'nn.' if plain.__module__.startswith('torch') else ''}{plain.__name__}"
    assert module is not None
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found = [hook.strip("_").replace("_", " ") for hook in hooks if getattr(module, hook)]
    if found:
        return f"{name} has {' and '.join(found)}"
    if "forward" in module.__dict__:
        return f"the forward of {name} was replaced on the instance"
    for key, tensor in module._parameters.items():
        if type(tensor) not in _TENSORS and _is_foreign(tensor):
            return f"{name}.{key} is {type(tensor).__name__}"
    return ""


def first_reason(parts: Iterable[tuple[str, nn.Module | None, tuple[type[nn.Module], ...]]]) -> str:
    """Why `all_plain` refuses one of these: names, modules and their kinds; empty if it does not."""
    return next((reason for part in parts if (reason := why(*part))), global_reason())


def global_reason() -> str:
    """Says so where hooks are registered for all modules; else empty."""
    found = _forward_hooks or _forward_pre_hooks or _backward_hooks or _backward_pre_hooks
    return "hooks are registered for all modules" if found else ""


def _is_parametrized(module: nn.Module | None, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether it is one of `kinds` but for parametrizations, which make a class of their own."""
    kind = type(module)
    return (
        isinstance(module, nn.Module)
        and "parametrizations" in module._modules
        and kind.__base__ in kinds
        and kind.__name__ == f"Parametrized{kind.__base__.__name__}"
        and "forward" not in vars(kind)
    )


def _is_foreign(tensor: object) -> bool:
    """A sharded, quantised or otherwise wrapped tensor; not the fakes that stand for tensors while a graph is made."""
    function = type(tensor).__torch_function__  # type: ignore[attr-defined]
    return hasattr(tensor, "__tensor_flatten__") or getattr(function, "__func__", function) not in _ORDINARY
