"""`mixed_polarity_attention` in Triton against the float64 reference, interpreted, every access checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.errors import InterpreterError

import mixpol_kernels
from mixpol_kernels import explain
from mixpol_kernels.ops import table_grad
from mixpol_kernels.ops.mixed_polarity_attention.autograd import BACKWARD, FORWARD
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.inputs import Case, Config, make
from mixpol_kernels.testing.recorder import Recorder

COUNTS = (20, 0, 7, 16)
BASE = Config(counts=COUNTS, items=12)
FORMS: dict[str, dict[str, Any]] = {
    "none": {"fusion": "none", "candidates": 2, "normalize": "softmax"},
    "bias, extra": {"fusion": "bias", "n_extra": 3, "layout": "lengths", "candidates": 3, "activation": "silu"},
    "gate": {"activation": "prelu"},
    "gate, candidates": {"candidates": 2, "layout": "mask_holes", "normalize": "softmax"},
    "full gate, extra, deep": {"gate_inputs": "full", "n_extra": 5, "hidden": (12, 7), "activation": "dice"},
    "sparse": {"sparse": True, "layout": "mask_left", "fusion": "bias"},
    "one item": {"items": 1, "counts": (40,)},
    "many items": {"items": 300, "id_dtype": torch.int32},
    "no candidates": {"candidates": 0},
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["none", "gate, candidates"])
def test_low_precision(form: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    check(make(replace(BASE, **FORMS[form], activation="silu"), generator, dtype), generator, dtype)


def test_same_bits_every_time_and_alone(generator: torch.Generator) -> None:
    case = make(replace(BASE, width=4, hidden=(3,), candidates=2, layout="lengths", normalize="softmax"), generator)
    where = case.place(generator)
    expected, again = case.run("triton", where), case.run("triton", where)
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    alone = case.take([3])
    got = alone.run("triton", alone.place(generator, "jagged"))
    for name in ("out", "grad target"):
        assert torch.equal(got[name][0], expected[name][3])


def test_weights_and_their_gradient(generator: torch.Generator) -> None:
    case = make(replace(BASE, counts=(18, 0, 3), width=4, **FORMS["gate, candidates"]), generator)
    where = case.place(generator)
    upstream = torch.randn(*where.shape, 2, generator=generator)
    found = {}
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float32), ("exact", torch.float64)):
        arguments = case.arguments(where, dtype, requires_grad=True)
        pooled, weights = case.call(arguments, backend.replace("exact", "reference"), return_weights=True)
        assert not where.pads(weights.detach()).any()
        torch.autograd.backward([pooled, weights], [case.grad_out.to(dtype), upstream.to(dtype)])
        found[backend] = [weights.detach(), *(arguments[n].grad for n in ("target", "item_table", "polarity_table"))]
    for ours, plain, exact in zip(*found.values(), strict=True):
        allowed = 5 * (plain - exact).abs().max() + 1e-6 * exact.abs().max()
        assert (ours - exact).abs().max() <= allowed


def test_rows_that_were_looked_up(generator: torch.Generator) -> None:
    """The same bits as from ids, and the gradient of each row."""
    for layout in ("jagged", "mask_holes"):
        case = make(replace(BASE, layout=layout, counts=(18, 0, 3), width=4, hidden=(3,)), generator)
        where = case.place(generator)
        expected = case.run("triton", where)
        arguments = case.arguments(where, requires_grad=True)
        rows = where.spread(case.floats["item_table"][case.ids]).requires_grad_()
        arguments |= {"item_ids": None, "item_table": None, "sparse": False}
        out = case.call({**arguments, "item_rows": rows}, "triton")
        out.backward(case.grad_out)
        assert torch.equal(out, expected["out"])
        assert not where.pads(rows.grad).any()
        summed = torch.zeros(12, 4).index_add(0, case.ids, where.gather(rows.grad))
        torch.testing.assert_close(summed, expected["grad item_table"])


def test_keeps_the_weights_only(generator: torch.Generator) -> None:
    case = make(replace(BASE, **FORMS["gate, candidates"]), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    given = {
        t.data_ptr() for v in arguments.values() for t in (v if isinstance(v, list) else [v]) if torch.is_tensor(t)
    }
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += 0 if tensor.data_ptr() in given else tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        case.call(arguments, "triton")
    found = explain(mixpol_kernels.mixed_polarity_attention, **arguments, backend="triton")
    assert found.saved_bytes == kept == 4 * 2 * len(COUNTS) * max(COUNTS)


@pytest.mark.parametrize("form", ["gate", "sparse"])
def test_opcheck(form: str, generator: torch.Generator) -> None:
    case = make(replace(BASE, **FORMS[form], counts=(3, 0), width=4, hidden=(3,), items=4), generator)
    with Recorder() as recorder:
        case.call(case.arguments(case.place(generator), requires_grad=True), "triton").backward(case.grad_out)
    called = [call[0] for call in recorder.calls]
    assert called == [
        FORWARD.triton,
        BACKWARD.triton,
        (table_grad.SPARSE if form == "sparse" else table_grad.DENSE).triton,
    ]
    for op, args in recorder.calls:
        torch.library.opcheck(op, args)


def test_compile(generator: torch.Generator) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(mixpol_kernels.mixed_polarity_attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for counts in ((5, 0), (2, 18, 1)):
        case = make(replace(BASE, counts=counts, width=4, hidden=(3,)), generator)
        where = case.place(generator)
        arguments = case.arguments(where, requires_grad=True)
        compiled(**arguments, backend="triton").backward(case.grad_out)
        assert torch.equal(arguments["item_table"].grad, case.run("triton", where)["grad item_table"])


def test_shapes_on_a_gpu_that_is_not_here(generator: torch.Generator) -> None:
    case = make(BASE, generator)
    arguments = case.arguments(case.place(generator))

    def cuda(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

    with FakeTensorMode():
        moved = {
            name: [cuda(t) for t in value] if isinstance(value, list) else cuda(value)
            for name, value in arguments.items()
            if isinstance(value, (list, torch.Tensor))
        }
        call = {**arguments, **moved, "seed": None}
        assert explain(mixpol_kernels.mixed_polarity_attention, **call).backend == "triton"
        out = case.call(call)
        assert (out.shape, out.device.type) == (arguments["target"].shape, "cuda")
    for op in (FORWARD.triton, BACKWARD.triton, table_grad.DENSE.triton, table_grad.SPARSE.triton):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CUDA")


def test_refusals(generator: torch.Generator) -> None:
    for change, pattern in (({"width": 65}, "it takes D from 1 to 64"),):
        case = make(replace(BASE, **change), generator)
        with pytest.raises(ValueError, match=f"backend='triton' was requested, but {pattern}"):
            case.call(case.arguments(case.place(generator)), "triton")
    case = make(BASE, generator)
    for name, bad in (("item_ids", 12), ("polarity", -1)):
        arguments = case.arguments(case.place(generator))
        arguments[name][3] = bad
        with pytest.raises(RuntimeError, match=f"{name} has {bad} at position 3"):
            case.call(arguments, "triton")


def test_an_overrun_is_found(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look-up, told that the table is longer than it is."""
    from mixpol_kernels.ops.polarity_fusion.triton import launch

    case = make(BASE, generator)
    arguments = case.arguments(case.place(generator))
    arguments["item_ids"][:] = 12
    right = launch._Call.sizes
    monkeypatch.setattr(launch, "check_range", lambda *_: None)
    case.call(arguments, "triton")  # clamped
    with pytest.raises(RuntimeError, match="item_ids of an earlier call"):
        mixpol_kernels.check_device_errors()
    monkeypatch.setattr(launch._Call, "sizes", lambda self: (*right(self)[:3], 13, *right(self)[4:]))
    with pytest.raises(InterpreterError, match="out of bounds"):
        case.call(arguments, "triton")


@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_holes"])
def test_candidates_share_a_launch(layout: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits of users as in a launch each, and as two at a time."""
    from mixpol_kernels.ops.mixed_polarity_attention.triton import launch

    config = replace(BASE, candidates=3, layout=layout, counts=(9, 0, 3), width=4, hidden=(3,), normalize="softmax")
    case = make(config, generator)
    where = case.place(generator)
    together = case.run("triton", where)
    tokens = int(torch.tensor(where.shape).prod())
    for most, passes in ((0, 3), (2 * tokens * 4 * 4, 2)):
        monkeypatch.setattr(launch, "MOST", most)
        counted: list[int] = []
        of = launch._Pass
        monkeypatch.setattr(launch, "_Pass", lambda a, at, of=of, to=counted: to.append(1) or of(a, at))
        apart = case.run("triton", where)
        monkeypatch.setattr(launch, "_Pass", of)
        assert len(counted) == 2 * passes
        for name, tensor in together.items():
            if name in ("out", "grad target"):
                assert torch.equal(apart[name], tensor)
            torch.testing.assert_close(apart[name], tensor, rtol=1e-4, atol=1e-5)
