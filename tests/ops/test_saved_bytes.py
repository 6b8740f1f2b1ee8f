"""Contract 9 over all options: what is kept for the backward is at most 12 bytes a token, and what `explain` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from public_calls import DIFFERENTIABLE, call, floats
from torch import Tensor

import mixpol_kernels as mk
from mixpol_kernels.testing.configurations import grid, label
from mixpol_kernels.testing.inputs import Case, make

UNITS = ("target_attention", "mixed_polarity_attention")


def saved(function: Callable[..., Any], arguments: dict[str, Any]) -> int:
    """Bytes saved in storages that belong to no input."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = function(**arguments, backend="cpu")
    entries = [v for value in arguments.values() for v in (value if isinstance(value, (list, tuple)) else [value])]
    known = {t.untyped_storage().data_ptr() for t in entries if isinstance(t, Tensor)}
    assert found is not None  # kept until here: no storage is at the place of another
    return sum(size for pointer, size in sizes.items() if pointer not in known)


def measured_and_said(case: Case, generator: torch.Generator, rows: bool) -> tuple[int, int, int]:
    """Bytes saved, bytes of `explain`, both beyond those of empty histories, and tokens times candidates."""
    figures = []
    for each in (case, make(replace(case.config, counts=(0,) * len(case.counts)), generator)):
        where = each.place(generator)
        arguments = each.arguments(where, requires_grad=True)
        if rows:
            looked_up = where.spread(each.floats["item_table"][each.ids]).requires_grad_()
            arguments |= {"item_ids": None, "item_table": None, "item_rows": looked_up, "sparse": False}
        function = getattr(mk, each.config.op)
        said = mk.explain(function, **arguments, backend="cpu").saved_bytes
        assert said is not None
        figures.append((saved(function, arguments), said, torch.Size(where.shape).numel()))
    (kept, said, tokens), (fixed, none, _) = figures
    return kept - fixed, said - none, tokens * (case.config.candidates or 1)


@pytest.mark.parametrize("rows", [False, True], ids=["", "rows"])
@pytest.mark.parametrize("op", UNITS)
def test_at_most_12_bytes_a_token(op: str, rows: bool, generator: torch.Generator) -> None:
    """All options, every pair of them; layers of parameters that an option makes anew do not grow with the history."""
    if rows and op == "target_attention":
        pytest.skip("has no rows")
    for config in grid(op):
        case = make(replace(config, counts=(9, 0, 30, 4) if config.layout != "full" else (13, 13)), generator)
        kept, said, tokens = measured_and_said(case, generator, rows)
        assert kept == said <= 12 * tokens, label(config)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_explain_says_what_is_kept(name: str, generator: torch.Generator) -> None:
    function, arguments = call(name, generator)
    for leaf in floats(arguments).values():
        leaf.requires_grad_()
    said = mk.explain(function, **arguments, backend="cpu").saved_bytes
    assert saved(function, arguments) == said
