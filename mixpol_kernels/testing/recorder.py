"""Which registered ops a call of a public function makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mixpol_kernels.library import NAMESPACE, TRITON
from mixpol_kernels.testing.inputs import Config, make


class Recorder(TorchDispatchMode):
    """Notes every call of an op of ours, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch for every op."""
        if func.namespace in (NAMESPACE, TRITON):
            detached = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), args)
            self.calls.append((func, detached))
        return func(*args, **(kwargs or {}))


def recorded(
    config: Config, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> list[tuple[Any, tuple[Any, ...]]]:
    """The calls of ops of ours that a forward and backward of the public function makes."""
    case = make(config, generator, dtype)
    with Recorder() as recorder:
        case.run("cpu", case.place(generator), dtype)
    calls: list[tuple[Any, tuple[Any, ...]]] = recorder.calls
    assert calls
    return calls
