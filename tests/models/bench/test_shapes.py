"""Every shape of the registry, made small, in every eager form; and the minimal work, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mixpol_kernels.library import library
from mixpol_models.bench.case import COMPILED, CONTROL, FUSED, implementation_of
from mixpol_models.bench.cases import make_case
from mixpol_models.bench.interleave_case import interleave_case
from mixpol_models.bench.ladder import LadderRow
from mixpol_models.bench.roofline import Peaks, Work, measure_peaks, minimal_work
from mixpol_models.bench.shapes import LENGTHS, MAIN, SHAPES, Shape, main_shapes


@pytest.mark.parametrize("shape", [shape.small() for shape in SHAPES.values()], ids=list(SHAPES))
def test_every_form_is_right(shape: Shape) -> None:
    if shape.op == "interleave":
        merge = interleave_case(shape.batch, shape.length // 2, shape.length)
        for form in ("one sort", "search", *([FUSED] if library.loaded else [])):
            merge.check(form)
        return
    case = make_case(shape)
    forms = [form for form in case.forms if not implementation_of(form).endswith(COMPILED)]
    assert FUSED in forms
    for form in forms:
        if form != FUSED or library.loaded:
            case.check(form)
    assert all(leaf.grad is None for leaf in case.leaves.values())
    assert ("broadcast" in forms) == (shape.op == "dot_target_attention" and shape.candidates > 1)
    if case.tokens > 2:
        assert set(case.exact) == {"output", *case.leaves}


def test_registry() -> None:
    assert max(shape.length for shape in SHAPES.values()) == 10_000
    for main in MAIN:
        assert [shape.length for shape in SHAPES.values() if shape.case == main.case] == list(LENGTHS)
    assert all(shape.batch * shape.length <= 256_000 for shape in main_shapes())


def test_an_op_without_a_case_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'interleave, L=200' was 'interleave'"):
        make_case(SHAPES["interleave, L=200"])


@pytest.mark.parametrize(
    ("case", "forward", "both"),
    [
        # 2 D H on a row of D floats; backward twice that, a row read and a row written
        ("DIN ReLU, L=50", (8192, 256), (8192 + 16384, 256 + 512)),
        # statistics and scores; three products in the backward, which writes the pre-activations and reads them again
        ("DIN Dice in training, L=50", (16384, 512), (16384 + 24576, 512 + 768 + 512)),
        # four heads: scores and sums; backward five products
        ("softmax heads, L=50", (4 * 64 * 4, 256), (14 * 64 * 4, 256 + 512)),
        # keys and values, then one narrow head after another; backward those again, and their gradients to x and W
        ("100 candidates, L=1000", (41_984, 256), (41_984 + 113_152, 256 + 512)),
    ],
)
def test_minimal_work(case: str, forward: tuple[float, float], both: tuple[float, float]) -> None:
    shape = SHAPES[case]
    assert minimal_work(shape) == (Work(*forward), Work(*both))


@pytest.mark.parametrize("last", [32, 80])
def test_bits_stand_in_for_a_last_layer_of_up_to_64_units(last: int) -> None:
    deep = replace(SHAPES["DIN ReLU, L=50"], hidden=(64, last))
    layers = 2 * (64 * 64 + 64 * last)
    saved = 2 * 64 * last if last <= 64 else 0
    assert [work.operations for work in minimal_work(deep)] == [layers, 4 * layers - saved]


def test_share_of_the_roof() -> None:
    peaks = Peaks(gflops=10, gbytes=5)
    assert peaks.share(Work(1e9, 1e6), 200) == pytest.approx(0.5), "bound by operations: 100 ms"
    assert peaks.share(Work(1e6, 1e9), 400) == pytest.approx(0.5), "bound by memory: 200 ms"
    measured = measure_peaks(seconds=0)
    assert measured.gflops > 0
    assert measured.gbytes > 0


def test_rates_of_a_row(rows: list[LadderRow]) -> None:
    row = replace(rows[0], tokens=500, total_ms=2.0, total_work=Work(4e6, 8e6))
    assert (row.tokens_per_s, row.gflops, row.gbytes) == pytest.approx((250_000, 2.0, 4.0))


@pytest.mark.parametrize("case", ["DIN ReLU", "TAPF + DIN from ids", "softmax heads"])
def test_the_control_is_held_to_itself(case: str) -> None:
    made = make_case(SHAPES[f"{case}, L=10"].small())
    right = made.controls[CONTROL]()
    wrong = replace(made, controls={CONTROL: lambda: {**right, "output": right["output"] * 1.001}})
    with pytest.raises(RuntimeError, match="mean pool in L=10"):
        wrong.check(CONTROL)
