"""Which of the package's ops are called, with what."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Notes the calls of `mixpol` ops and copies of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "mixpol":
            copies = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), args)
            self.calls.append((func, copies))
        return func(*args, **(kwargs or {}))
