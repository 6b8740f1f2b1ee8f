"""The spelling of `mixed_polarity_attention` by separate keywords, for this release."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from mixpol_kernels.history import History
from mixpol_kernels.ops.fusion import FusionParameters
from mixpol_kernels.ops.unit import BLOCKS, ActivationUnit

P = ParamSpec("P")
R = TypeVar("R")


def accepts_flat(function: Callable[P, R]) -> Callable[P, R]:
    """Lets a call spell ids, layout, unit and fusion as keywords, with a DeprecationWarning."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _is_flat(args, kwargs):
            return function(*args, **kwargs)
        if not torch.compiler.is_compiling():
            warnings.warn(
                "mixed_polarity_attention: pass History(ids, offsets=...), ActivationUnit(weights, biases, ...) and "
                "FusionParameters(fusion, polarity_table, ...); separate keywords go after release 0.1",
                DeprecationWarning,
                stacklevel=2,
            )
        try:
            call = _FLAT.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"mixed_polarity_attention by separate keywords: {error}; expected target, item_ids, polarity, "
                "item_table, polarity_table, weights and biases, or in their place History, ActivationUnit and "
                "FusionParameters"
            ) from None
        given, options = bundled(*call.args, **call.kwargs)
        return function(*given, **options)

    return run


def _is_flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is spelled by separate keywords.

    Raises:
        TypeError: by both spellings at once.
    """
    values, kinds = (*args, *kwargs.values()), (ActivationUnit, FusionParameters, History)
    bundles = "unit" in kwargs or any(isinstance(value, kinds) for value in values)
    by_place = len(args) > 5 and (args[4] is None or isinstance(args[4], Tensor)) and not bundles
    own = sorted(kwargs.keys() & _FLAT_NAMES)
    if bundles and own:
        raise TypeError(
            f"{own[0]} was given beside a bundle; expected one spelling: History(ids, offsets, lengths, mask), "
            "ActivationUnit(weights, biases, ...) and FusionParameters(fusion, polarity_table, ...), which hold it"
        )
    return by_place or bool(own)


def bundled(
    target: Tensor,
    item_ids: Any,
    polarity: Any,
    item_table: Tensor | None,
    polarity_table: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    item_rows: Any = None,
    fusion: str = "tapf",
    gate: Sequence[Tensor] = (),
    sign: Tensor | None = None,
    extra_table: Tensor | None = None,
    activation: str = "relu",
    slopes: Sequence[Tensor] = (),
    negative_slope: float = 0.01,
    normalize: str = "none",
    scale: float = 1.0,
    blocks: Sequence[str] = BLOCKS,
    dropout: float = 0.0,
    offsets: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    **options: Any,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional arguments and keywords of the function, from separate keywords."""
    if item_rows is None and (item_ids is None or item_table is None):
        missing = "item_ids" if item_ids is None else "item_table"
        raise ValueError(f"{missing} was None; expected ids and a table, or item_rows in place of both")
    if item_rows is not None and not (item_ids is None and item_table is None):
        name = "item_table" if item_ids is None else "item_ids"
        raise ValueError(f"{name} and item_rows were given together; pass item_ids=None and item_table=None with rows")
    history = History(item_ids if item_rows is None else item_rows, offsets, lengths, mask)
    unit = ActivationUnit(weights, biases, activation, slopes, negative_slope, normalize, scale, blocks, dropout)
    fused = FusionParameters(fusion, polarity_table, gate, sign, extra_table)
    return (target, history, polarity, item_table, unit, fused), options


_FLAT = inspect.signature(bundled)
_FLAT_NAMES = _FLAT.parameters.keys() - {"target", "polarity", "item_table", "fusion", "options"}
