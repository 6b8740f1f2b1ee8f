"""The Triton kernels of `polarity_embedding` against the float64 reference, interpreted, every access checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mixpol_kernels
from mixpol_kernels import explain, polarity_embedding
from mixpol_kernels.ops import table_grad
from mixpol_kernels.ops.polarity_embedding.autograd import FORWARD
from mixpol_kernels.ops.polarity_embedding.triton import launch
from mixpol_kernels.ops.triton import reports
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.inputs import Case, Config, make
from mixpol_kernels.testing.layouts import LAYOUTS
from mixpol_kernels.testing.recorder import Recorder

BASE = Config(op="polarity_embedding", counts=(19, 0, 3, 8), width=6, items=20)
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "extra": {"n_extra": 3, "n_polarity": 5},
    "long extra table": {"n_extra": 20, "counts": (5, 9)},
    "sparse": {"sparse": True, "layout": "mask_left"},
    "hot item": {"items": 1, "counts": (30,)},
    "many items": {"items": 300, "id_dtype": torch.int32, "layout": "lengths", "index_dtype": torch.int32},
    "bytes": {"id_dtype": torch.uint8},
    "wide": {"width": 20, "counts": (3, 8), "n_extra": 2},
    "one wide": {"width": 1},
    "no users": {"counts": ()},
    "all empty": {"counts": (0, 0)},
}


def check(case: Case, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> None:
    __tracebackhide__ = True
    lines = budget.over_budget(case, case.place(generator), generator, backend="triton", dtype=dtype)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, generator: torch.Generator) -> None:
    check(make(replace(BASE, **FORMS[form]), generator), generator)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, generator: torch.Generator) -> None:
    """The same bits as the CPU kernels: the sums of a few rows are in one order."""
    case = make(
        replace(BASE, layout=layout, n_extra=3, counts=(7,) * 3 if layout == "full" else BASE.counts), generator
    )
    where = case.place(generator)
    assert torch.equal(case.call(case.arguments(where), "triton"), case.call(case.arguments(where), "cpu"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparse", [False, True])
def test_low_precision(sparse: bool, dtype: torch.dtype, generator: torch.Generator) -> None:
    case = make(replace(BASE, n_extra=3, sparse=sparse), generator, dtype)
    check(case, generator, dtype)
    arguments = case.arguments(case.place(generator), dtype, requires_grad=True)
    case.call(arguments, "triton").sum().backward()
    assert {arguments[name].grad.dtype for name in ("item_table", "polarity_table", "extra_table")} == {dtype}


def test_no_layout() -> None:
    """Ids in one dimension, all kept."""
    ids, table = torch.tensor([3, 1, 1]), torch.arange(8.0).view(4, 2)
    found = polarity_embedding(ids, ids % 2, table, torch.tensor([[0.5, 0.0], [0.0, 0.5]]), backend="triton")
    assert found.tolist() == [[6, 7.5], [2, 3.5], [2, 3.5]]


def test_strided_views(generator: torch.Generator) -> None:
    case = make(replace(BASE, layout="lengths", n_extra=3), generator)
    where = case.place(generator)
    expected = case.run("triton", where)

    def wide_rows(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() < 2:
            return tensor
        wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 3), 99)
        wide[..., 1:-2:2] = tensor
        return wide[..., 1:-2:2]

    got = case.run("triton", where, view=wide_rows)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_saves_ids_only(generator: torch.Generator) -> None:
    arguments = make(replace(BASE, n_extra=3), generator).arguments(
        make(BASE, generator).place(generator), requires_grad=True
    )
    given = {t.data_ptr() for t in arguments.values() if torch.is_tensor(t)}
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        polarity_embedding(**arguments, backend="triton")
    assert kept
    assert set(kept) <= given


@pytest.mark.parametrize("sparse", [False, True])
def test_opcheck(sparse: bool, generator: torch.Generator) -> None:
    case = make(replace(BASE, counts=(3, 0, 4), sparse=sparse), generator)
    with Recorder() as recorder:
        case.call(case.arguments(case.place(generator), requires_grad=True), "triton").sum().backward()
    tables = [table_grad.SPARSE if sparse else table_grad.DENSE, table_grad.DENSE]
    assert [call[0] for call in recorder.calls] == [FORWARD.triton, *(op.triton for op in tables)]
    torch.library.opcheck(*recorder.calls[0])


def test_compile(generator: torch.Generator) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(polarity_embedding, fullgraph=True, dynamic=True, backend="aot_eager")
    for counts in ((5, 0, 2), (2, 3, 1, 4)):
        case = make(replace(BASE, counts=counts), generator)
        where = case.place(generator)
        arguments = case.arguments(where, requires_grad=True)
        compiled(**arguments, backend="triton").backward(where.spread(case.grad_out))
        assert torch.equal(arguments["item_table"].grad, case.run("triton", where)["grad item_table"])


def test_on_a_gpu_that_is_not_here() -> None:
    with FakeTensorMode():
        ids, table = torch.zeros(4, 9, dtype=torch.int64, device="cuda"), torch.empty(7, 16, device="cuda")
        assert explain(polarity_embedding, ids, ids, table.bfloat16(), table.bfloat16()).backend == "triton"
        assert polarity_embedding(ids, ids, table, table).device.type == "cuda"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(FORWARD.triton.name(), "CUDA")


def test_refusals(generator: torch.Generator) -> None:
    case = make(replace(BASE, n_extra=3), generator)
    arguments = case.arguments(case.place(generator))
    for name, bad in (("item_ids", 20), ("polarity", -1), ("extra_ids", 3)):
        wrong = {**arguments, name: arguments[name].clone()}
        wrong[name][3] = bad
        with pytest.raises(RuntimeError, match=f"{name} has {bad} at position 3"):
            case.call(wrong, "triton")
    with pytest.raises(ValueError, match=r"'triton' was requested, but .* and extra_table has none"):
        case.call({**arguments, "extra_table": arguments["extra_table"][:0]}, "triton")


BAD = [("item_ids", 11, 2**40 + 2), ("polarity", 0, -1), ("extra_ids", 21, 3)]


@pytest.mark.parametrize(("name", "place", "bad"), BAD)
def test_a_bad_id_is_named_by_the_next_call(
    name: str, place: int, bad: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where nothing looks at ids before: clamped, not wrapped to 32 bits, and reported once."""
    monkeypatch.setattr(launch, "check_range", lambda *_: None)
    mixpol_kernels.check_device_errors()
    case = make(replace(BASE, n_extra=3, layout="mask_holes"), generator)
    where = case.place(generator)
    good = case.arguments(where)
    expected = case.call(good, "triton")
    assert not reports.word().item()
    kept = where.arguments["mask"].flatten().nonzero().flatten()
    pads = (where.arguments["mask"] == 0).flatten().nonzero().flatten()
    at = int(kept[min(place, len(kept) - 1)])
    wrong = {**good, name: good[name].clone()}
    wrong[name].view(-1)[pads] = bad  # pads are not read
    assert torch.equal(case.call(wrong, "triton"), expected)
    wrong[name].view(-1)[at] = bad
    clamped = {**good, name: good[name].clone()}
    last = {"item_ids": 19, "polarity": 1, "extra_ids": 2}[name]
    clamped[name].view(-1)[at] = max(0, min(bad, last))
    assert torch.equal(case.call(wrong, "triton"), case.call(clamped, "reference"))
    with pytest.raises(RuntimeError, match=f"{name} of an earlier call had .* position {at} of"):
        case.call(good, "triton")
    assert torch.equal(case.call(good, "triton"), expected)
    case.call(wrong, "triton")
    with pytest.raises(RuntimeError, match=name):
        mixpol_kernels.check_device_errors()
    mixpol_kernels.check_device_errors()
