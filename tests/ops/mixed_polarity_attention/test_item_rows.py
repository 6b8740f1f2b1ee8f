"""`mixed_polarity_attention` on rows that were looked up before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import mixpol_kernels
from mixpol_kernels import explain
from mixpol_kernels.testing.inputs import Case, Config, make
from mixpol_kernels.testing.layouts import Placement

BASE = Config(counts=(5, 0, 9, 3), items=7, candidates=2)
FORMS: dict[str, dict[str, Any]] = {
    "jagged": {},
    "none": {"fusion": "none", "layout": "lengths"},
    "bias, extra": {"fusion": "bias", "n_extra": 3, "layout": "mask_left"},
    "one candidate": {"candidates": None, "layout": "mask_holes", "normalize": "softmax"},
    "full": {"layout": "full", "counts": (4, 4)},
}


def run(
    case: Case, where: Placement, backend: str, dtype: torch.dtype = torch.float32, wide: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and the gradient of the rows, ragged; `wide`: the rows are a slice of wider ones."""
    rows = where.spread(case.floats["item_table"][case.ids].to(dtype))
    base = torch.full((*rows.shape[:-1], rows.shape[-1] + 3), torch.nan, dtype=dtype) if wide else rows
    if wide:
        base[..., 1:-2] = rows
    base.requires_grad_()
    rows = base[..., 1:-2] if wide else base
    arguments = case.arguments(where, dtype) | {"item_ids": None, "item_table": None, "item_rows": rows}
    out = case.call(arguments, backend)
    out.backward(case.grad_out.to(dtype))
    assert base.grad is not None
    grad = base.grad[..., 1:-2] if wide else base.grad
    assert not where.pads(grad).count_nonzero()
    return out.detach(), where.gather(grad)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("form", FORMS)
def test_is_the_op_from_ids(form: str, backend: str, generator: torch.Generator) -> None:
    case = make(replace(BASE, **FORMS[form]), generator)
    where = case.place(generator)
    expected = case.run(backend, where)
    out, grad = run(case, where, backend)
    assert torch.equal(out, expected["out"])
    summed = torch.zeros_like(expected["grad item_table"]).index_add(0, case.ids, grad)
    torch.testing.assert_close(summed, expected["grad item_table"])
    truth = run(case, where, "reference", torch.float64)[1]
    plain = run(case, where, "reference")[1]
    assert (grad - truth).abs().max() <= 5 * (plain - truth).abs().max() + 4e-7 * truth.abs().max()
    for got, want in zip(run(case, where, backend, wide=True), (out, grad), strict=True):
        assert torch.equal(got, want)


def test_under_autocast_and_compiled(generator: torch.Generator) -> None:
    case = make(BASE, generator)
    where = case.place(generator)
    rows = where.spread(case.floats["item_table"][case.ids])
    arguments = case.arguments(where) | {"item_ids": None, "item_table": None, "item_rows": rows}
    expected = case.call(arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert case.call(arguments | {"item_rows": rows.bfloat16()}).dtype == torch.bfloat16
    compiled = torch.compile(mixpol_kernels.mixed_polarity_attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**arguments), expected)
    assert explain(mixpol_kernels.mixed_polarity_attention, **arguments).backend == "cpu"


@pytest.mark.parametrize(
    ("change", "error", "pattern"),
    [
        ({"item_ids": torch.zeros(17, dtype=torch.int64)}, ValueError, "item_ids and item_rows were given together"),
        ({"item_table": torch.zeros(7, 16)}, ValueError, "item_table and item_rows were given together"),
        ({"item_rows": None}, ValueError, "item_ids was None; expected ids and a table, or item_rows"),
        ({"sparse": True}, ValueError, "sparse was True with item_rows; expected False"),
        ({"item_rows": torch.zeros(17, 15)}, ValueError, r"item_rows has shape \[17, 15\]; expected \[N, 16\] or"),
        ({"item_rows": torch.zeros(17)}, ValueError, r"item_rows has shape \[17\]"),
        ({"item_rows": torch.zeros(17, 16).double()}, TypeError, "item_rows.*float64"),
        ({"item_rows": torch.zeros(16, 16)}, (ValueError, RuntimeError), r"\[17\]|polarity has shape \[17\]"),
        ({"item_rows": torch.zeros(4, 9, 16)}, ValueError, r"item_rows has shape \[4, 9, 16\]; expected \[N, D\]"),
    ],
)  # fmt: skip
def test_bad_arguments(change: dict[str, Any], error: Any, pattern: str, generator: torch.Generator) -> None:
    case = make(BASE, generator)
    arguments = case.arguments(case.place(generator)) | {"item_ids": None, "item_table": None}
    with pytest.raises(error, match=pattern):
        case.call(arguments | {"item_rows": torch.zeros(17, 16)} | change)
