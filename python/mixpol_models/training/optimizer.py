"""AdamW for the dense layers and SparseAdam for the tables, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer, SparseAdam
from torch.sparse import check_sparse_tensor_invariants


class SparseDenseAdam(Optimizer):
    """Two stock optimizers behind one `step`, with one state dict.

    One optimizer rather than two keeps Lightning's automatic optimization: one gradient scaler step, one count of
    steps, one learning-rate scheduler, and checkpoints that resume exactly.

    Args:
        dense: parameters with ordinary gradients; at least one.
        tables: parameters whose gradient is sparse: only the rows in it move, and only their moments.
        lr: of the dense parameters.
        table_lr: of the tables; by default `lr`.
        weight_decay: of the dense parameters, decoupled.
    """

    def __init__(
        self,
        dense: Iterable[Tensor],
        tables: Iterable[Tensor],
        lr: float = 1e-3,
        table_lr: float | None = None,
        weight_decay: float = 0.0,
    ) -> None:
        tables = list(tables)
        parts: list[Optimizer] = [AdamW(dense, lr=lr, weight_decay=weight_decay)]
        if tables:
            parts.append(SparseAdam(tables, lr=lr if table_lr is None else table_lr))
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both. Returns the closure's result, if there is one."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        # Stated, since torch warns where the choice is left open; the gradients come coalesced and in range.
        with check_sparse_tensor_invariants(False):
            for part in self._parts:
                part.step()
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Gives the parts this optimizer's state and groups, so that there is one of each."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.state = self.state
            part.param_groups = [group]


def build_optimizer(
    model: nn.Module, lr: float, table_lr: float | None = None, weight_decay: float = 0.0
) -> SparseDenseAdam:
    """The optimizer of a model: embeddings made with `sparse=True` are tables, all else is dense."""
    tables = {
        module.weight: None
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.sparse and module.weight.requires_grad
    }
    dense = [p for p in model.parameters() if p.requires_grad and p not in tables]
    return SparseDenseAdam(dense, tables, lr, table_lr, weight_decay)
