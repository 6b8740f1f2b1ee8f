"""Polarity for a model that was written for one kind of feedback, without rewriting it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from mixpol_kernels.drop_in import registry
from mixpol_kernels.drop_in.accelerate import Replaced, Report, accelerate, check_model, modules_of
from mixpol_kernels.nn.polarity_fusion import PolarityFusion

# By the id of a layer, its ids and the backward that gave them (-1: none did). A thread or asyncio task sees its own.
_given: ContextVar[Mapping[int, tuple[Tensor, int]] | None] = ContextVar("given_polarity", default=None)


def with_polarity(
    model: nn.Module,
    fusion: str = "tapf",
    *,
    n_polarity: int = 2,
    signs: Sequence[float] | None = None,
    gate_inputs: str = "product",
) -> Report:
    """Gives a model's target-attention layers a polarity for each history position: a `PolarityFusion` in front.

    For FuxiCTR's `DIN_Attention`. The layers are accelerated too. Each gets a submodule `polarity_fusion`, so that the
    model has new parameters: build the optimiser afterwards. "tapf" starts as "bias". The ids come with each call,
    inside of `given_polarity`. `restore` leaves these layers as they are, since it would drop what they learned.

    Args:
        model: as for `accelerate`.
        fusion, n_polarity, signs, gate_inputs: as in `mixpol_kernels.nn.PolarityFusion`.

    Returns:
        A `Report` of the layers that read polarity now, and those that were left and why.

    Raises:
        TypeError, ImportError: as `accelerate`.
        ValueError: no layer that can take a polarity, or one that has one already.

    Example:
        >>> from torch import nn
        >>> from mixpol_kernels.drop_in import with_polarity
        >>> with_polarity(nn.Linear(4, 4))
        Traceback (most recent call last):
        ValueError: model has no target-attention layer that is known ...
    """
    polar = {x.fused: (x, a.framework) for a in registry.loaded() for x in a.layers if x.polar is not None}
    check_model(model)
    taken = [names[0] for module, names in modules_of(model).items() if isinstance(module, PolarLayer)]
    if taken:
        raise ValueError(f"{taken[0]} has a polarity already; expected a model without")
    PolarityFusion(1, fusion, n_polarity, signs, gate_inputs=gate_inputs)  # refuses options before anything changes
    before = {module: type(module) for module in model.modules()}
    report = accelerate(model)
    changed = {module: names for module, names in modules_of(model).items() if type(module) in polar}
    if not changed:
        for module, kind in before.items():
            module.__class__ = kind
        raise ValueError(f"model has no layer that can take a polarity; {report}")
    replaced = []
    for module, names in changed.items():
        layer, framework = polar[type(module)]
        assert layer.polar is not None
        like = next(module.parameters())
        fusing = PolarityFusion(module.embedding_dim, fusion, n_polarity, signs, gate_inputs=gate_inputs)  # type: ignore[arg-type]
        module.add_module("polarity_fusion", fusing.to(like.device, like.dtype))
        module.__class__ = layer.polar
        replaced.append(Replaced(names, layer.original.__name__, framework))
    return Report(tuple(replaced), report.left)


@contextlib.contextmanager
def given_polarity(model: nn.Module, polarity: Tensor) -> Iterator[None]:
    """Within this context, and in this thread or asyncio task, the layers of `with_polarity` read these ids.

    Threads that share a model each open their own; the model itself is not changed. Of two contexts, one in the other,
    the inner one counts. Gradient checkpointing calls the model again in the backward, where several forwards may be
    under way, so there the context belongs inside of what is checkpointed:

        def run(target, history, mask, polarity):
            with given_polarity(model, polarity):
                return model(target, history, mask)

        checkpoint(run, target, history, mask, polarity, use_reentrant=False)

    Args:
        model: the one that `with_polarity` was given, or one that contains it.
        polarity: [B, L] integer, rows of the polarity table; positions that the model masks are not read.

    Raises:
        ValueError: no layer of the model reads polarity.
    """
    layers = [module for module in model.modules() if isinstance(module, PolarLayer)]
    if not layers:
        raise ValueError("model has no layer that reads polarity; call with_polarity(model) first")
    given = polarity, torch._C._current_graph_task_id()
    token = _given.set({**(_given.get() or {}), **{id(layer): given for layer in layers}})
    try:
        yield
    finally:
        _given.reset(token)


def _ids_of(layer: int, history: Tensor) -> Tensor:
    """The polarity given to the layer with this id, for a history [B, L, D]."""
    ids, backward = (_given.get() or {}).get(layer, (None, -1))
    running = torch._C._current_graph_task_id()  # -1 outside of a backward
    if running not in (-1, backward):
        raise RuntimeError(
            "the layer runs again in a backward (gradient checkpointing), where its polarity is not known; open "
            "`with given_polarity(model, ids):` inside of the function that is checkpointed"
        )
    if ids is None:
        raise RuntimeError(
            "no polarity was given; call the model inside `with given_polarity(model, ids):`, in the same thread"
        )
    if ids.shape != history.shape[:2]:
        raise ValueError(f"polarity has shape {list(ids.shape)}; expected {list(history.shape[:2])}, the history's")
    return ids


# In a compiled graph: asks in each call, in the thread that calls.
@torch.library.custom_op(
    "mixpol_drop_in::polarity_ids", mutates_args=(), schema="(Tensor history, int layer) -> Tensor"
)
def _traced_ids(history: Tensor, layer: int) -> Tensor:
    return _ids_of(layer, history).to(history.device, torch.int64, copy=True)


@_traced_ids.register_fake
def _(history: Tensor, layer: int) -> Tensor:
    return history.new_empty(history.shape[:2], dtype=torch.int64)


class PolarLayer(nn.Module):
    """Mixed into a fused layer: fuses the history with its polarity first."""

    polarity_fusion: PolarityFusion

    def fuse(self, target: Tensor, history: Tensor, mask: Tensor | None) -> Tensor:
        """History [B, L, D] with polarity.

        Raises:
            RuntimeError: called outside of `given_polarity`, or again in a backward by one that the forward opened.
            ValueError: ids of another shape than the history's.
        """
        if self.polarity_fusion.fusion == "none":
            return history
        if torch.compiler.is_compiling():
            ids: Tensor = _traced_ids(history, id(self))
        else:
            ids = _ids_of(id(self), history)
        kept = ids if mask is None else torch.where(mask != 0, ids, 0)
        fused: Tensor = self.polarity_fusion(target, history, kept, mask=mask)
        return fused
