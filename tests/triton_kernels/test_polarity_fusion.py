"""The Triton kernels of `polarity_fusion` against the float64 reference, interpreted, every access checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mixpol_kernels import check_device_errors, explain, polarity_fusion
from mixpol_kernels.ops.polarity_fusion.autograd import BACKWARD, FORWARD
from mixpol_kernels.ops.polarity_fusion.triton import launch
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.inputs import Case, Config, make
from mixpol_kernels.testing.layouts import LAYOUTS
from mixpol_kernels.testing.recorder import Recorder

COUNTS = (35, 0, 7, 32)
BASE = Config(op="polarity_fusion", counts=COUNTS)
FORMS: dict[str, dict[str, Any]] = {
    "bias": {"fusion": "bias"},
    "bias, extra": {"fusion": "bias", "n_extra": 16, "n_polarity": 16},
    "product": {},
    "product, extra": {"n_extra": 3, "n_polarity": 5},
    "full": {"gate_inputs": "full", "n_polarity": 1},
    "many rows": {"n_extra": 30, "n_polarity": 20},
}


def check(case: Case, generator: torch.Generator, dtype: torch.dtype = torch.float32, **options: Any) -> None:
    __tracebackhide__ = True
    lines = budget.over_budget(case, case.place(generator, **options), generator, backend="triton", dtype=dtype)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
def test_forms_and_layouts(form: str, layout: str, generator: torch.Generator) -> None:
    counts = (19,) * 3 if layout == "full" else COUNTS
    check(make(replace(BASE, layout=layout, counts=counts, **FORMS[form]), generator), generator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_low_precision(form: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    check(make(replace(BASE, **FORMS[form]), generator, dtype), generator, dtype)


EDGES: dict[str, dict[str, Any]] = {
    "no users": {"counts": ()},
    "one token": {"counts": (1,)},
    "all empty": {"counts": (0, 0, 0)},
    "rows around a tile": {"counts": (15, 16, 17, 31, 33)},
    "more users than programs": {"counts": (2, 0, 5, 1, 3, 0, 4, 2, 1)},
    # Not two or three tokens: they may add up exactly in plain PyTorch's order only, which would leave no budget.
    "one wide": {"width": 1, "counts": (7, 11)},
    "odd": {"width": 23, "counts": (9, 20)},
    "wide, no gate": {"width": 70, "counts": (3, 18), "fusion": "bias"},
    "largest": {"width": 64, "counts": (18,)},
    "small ids": {"id_dtype": torch.uint8, "index_dtype": torch.int32},
}


@pytest.mark.parametrize("edge", EDGES)
def test_edge_shapes(edge: str, generator: torch.Generator) -> None:
    check(make(replace(BASE, n_extra=3, **EDGES[edge]), generator), generator)


def test_padded_longer_than_any_row(generator: torch.Generator) -> None:
    check(make(replace(BASE, layout="lengths"), generator), generator, length=70)


def test_strided_tokens(generator: torch.Generator) -> None:
    case = make(replace(BASE, layout="lengths", width=12), generator)
    where = case.place(generator)
    expected = case.run("triton", where)

    def wide_rows(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() < 2 or not tensor.is_floating_point():
            return tensor
        wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 5), torch.nan, dtype=tensor.dtype)
        wide[..., 2:-3] = tensor
        return wide[..., 2:-3]

    got = case.run("triton", where, view=wide_rows)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_same_bits_every_time_and_alone(generator: torch.Generator) -> None:
    case = make(replace(BASE, counts=(35, 0, 7, 32, 18, 3)), generator)
    where = case.place(generator)
    expected = case.run("triton", where)
    again = case.run("triton", where)
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    ends = torch.tensor(case.counts).cumsum(0).tolist()
    for user, layout in ((0, "lengths"), (3, "jagged")):
        alone = case.take([user])
        got = alone.run("triton", alone.place(generator, layout))
        rows = slice(ends[user] - case.counts[user], ends[user])
        assert torch.equal(got["grad target"][0], expected["grad target"][user])
        for name in ("out", "grad tokens"):
            assert torch.equal(got[name], expected[name][rows])


@pytest.mark.parametrize("form", ["bias", "product, extra"])
def test_opcheck(form: str, generator: torch.Generator) -> None:
    case = make(replace(BASE, counts=(3, 0, 5), **FORMS[form]), generator)
    where = case.place(generator)
    with Recorder() as recorder:
        case.call(case.arguments(where, requires_grad=True), "triton").backward(case.grad_out)
    assert [call[0] for call in recorder.calls] == [FORWARD.triton, BACKWARD.triton]
    for op, args in recorder.calls:
        torch.library.opcheck(op, args)


def test_compile(generator: torch.Generator) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(polarity_fusion, fullgraph=True, dynamic=True, backend="aot_eager")
    for counts in ((5, 0, 9), (2, 18, 1, 4)):
        case = make(replace(BASE, counts=counts), generator)
        where = case.place(generator)
        arguments = case.arguments(where, requires_grad=True)
        compiled(**arguments, backend="triton").backward(case.grad_out)
        expected = case.run("triton", where)
        assert torch.equal(arguments["tokens"].grad, expected["grad tokens"])


def test_refusals(generator: torch.Generator) -> None:
    for change, pattern in (
        ({"width": 65}, "it takes D from 1 to 64 with a gate"),
        ({"width": 1025, "fusion": "bias"}, "it takes D from 1 to 1024, "),
    ):
        case = make(replace(BASE, **change), generator)
        with pytest.raises(ValueError, match=pattern):
            case.call(case.arguments(case.place(generator)), "triton")
    case = make(BASE, generator)
    arguments = case.arguments(case.place(generator))
    arguments["polarity"][3] = 2
    with pytest.raises(RuntimeError, match="polarity has 2 at position 3"):
        case.call(arguments, "triton")
    assert explain(polarity_fusion, **arguments, backend="triton").backend == "triton"
    for op in (FORWARD.triton, BACKWARD.triton):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CUDA")


@pytest.mark.parametrize(("name", "bad", "last"), [("polarity", 2**33 + 1, 1), ("extra_ids", -5, 2)])
def test_a_bad_id_is_clamped_and_named_later(
    name: str, bad: int, last: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where nothing looks at ids before: not wrapped to 32 bits, in either direction."""
    monkeypatch.setattr(launch, "check_range", lambda *_: None)
    case = make(replace(BASE, counts=(3, 9), n_extra=3), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    clamped = {**arguments, name: arguments[name].clone()}
    arguments[name][5], clamped[name][5] = bad, max(0, min(bad, last))
    found: list[torch.Tensor] = []
    expected: list[torch.Tensor] = []
    for call, grads in ((arguments, found), (clamped, expected)):
        out = case.call(call, "triton")
        if call is arguments:
            with pytest.raises(RuntimeError, match=f"{name} of an earlier call .* position 5 of"):
                check_device_errors()
        grads += [out, *torch.autograd.grad(out, [call[n] for n in ("tokens", "polarity_table", "extra_table")], out)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    check_device_errors()
