"""The protocol on tiny shapes, and that its correctness gate finds what is wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixpol_kernels.library import library
from mixpol_models.bench import IMPLEMENTATIONS, GateError, Implementation, LadderRow, run_ladder, strongest
from mixpol_models.bench.implementations import Concat, PerTarget
from mixpol_models.bench.padding import Padding


class LostOffset(PerTarget):
    """Refactored, but the target is forgotten in c(t): W_d is not added to W_q."""

    def forward(self, target: Tensor, history: Tensor, padding: Padding) -> Tensor:
        width = target.shape[1]
        first = self.attention.layers[0]
        w_d = first.weight[:, 2 * width : 3 * width]
        with torch.no_grad():
            first.bias -= (target @ w_d.t()).mean(0)
        pooled = super().forward(target, history, padding)
        with torch.no_grad():
            first.bias += (target @ w_d.t()).mean(0)
        return pooled


class WeakGradient(Concat):
    """Right forward; the gradient of the history is 0.1% too small."""

    def forward(self, target: Tensor, history: Tensor, padding: Padding) -> Tensor:
        blended = history.detach() + 0.999 * (history - history.detach())
        return super().forward(target, blended, padding)


class NotANumber(Concat):
    """Infinity minus infinity somewhere."""

    def forward(self, target: Tensor, history: Tensor, padding: Padding) -> Tensor:
        return super().forward(target, history, padding) * float("nan")


class WrongWhenServing(Concat):
    """Right while training, 0.1% off without gradients."""

    def forward(self, target: Tensor, history: Tensor, padding: Padding) -> Tensor:
        pooled = super().forward(target, history, padding)
        return pooled if torch.is_grad_enabled() else pooled * 1.001


def test_rows(rows: list[LadderRow]) -> None:
    implementations = ["concat", "refactored", "mean pool"]
    assert [(row.length, row.implementation) for row in rows] == [
        (length, implementation) for length in (3, 7) for implementation in implementations
    ]
    for row in rows:
        assert 0 < row.forward_min_ms <= row.forward_ms
        assert 0 < row.total_min_ms <= row.total_ms
        assert row.variant in IMPLEMENTATIONS[row.implementation].variants
        assert (row.compile_s, row.rounds, row.threads) == (0, 3, 1)
        assert row.total_ratio is None, "there is no fused implementation to compare with"


def test_only_concat_keeps_four_widths(rows: list[LadderRow]) -> None:
    """By hand: concat keeps [B, L, 4 D] for the first layer, and less than twice that in all."""
    for length in (3, 7):
        kept = {row.implementation: row.saved_mib * 2**20 for row in rows if row.length == length}
        wide = 6 * length * 4 * 8 * 4
        assert kept["mean pool"] < kept["refactored"]
        assert wide < kept["concat"] < 2 * wide


def test_strongest(rows: list[LadderRow]) -> None:
    fast, *slow = (replace(row, total_ms=ms) for row, ms in zip(rows, (3.0, 4.0, 1.0), strict=False))
    assert strongest([fast, *slow], 3).implementation == fast.implementation, "the control is no baseline"
    with pytest.raises(ValueError, match="length 11"):
        strongest(rows, 11)


@pytest.mark.parametrize("planted", [LostOffset, WeakGradient, NotANumber, WrongWhenServing])
def test_a_wrong_rung_turns_the_gate_red(planted: type[nn.Module], tiny: dict[str, Any]) -> None:
    with pytest.raises(GateError, match=r"wrong in L=3 .*no number"):
        run_ladder(**tiny, implementations=["concat", Implementation("wrong", {"": planted})])


@pytest.mark.parametrize("activation", ["prelu", "sigmoid", "silu"])
def test_other_units_pass_the_gate(activation: str, tiny: dict[str, Any]) -> None:
    options = tiny | {"hidden": (5, 4), "lengths": (7,)}
    rows = run_ladder(**options, activation=activation, implementations=["concat", "refactored"])
    assert {row.hidden for row in rows} == {(5, 4)}


def test_compiled_rungs(monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]) -> None:
    """Through the tracing of torch.compile, without its code generation, which takes most of its time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    rows = run_ladder(
        **(tiny | {"lengths": (4,)}), implementations=["concat+compile", "refactored+compile", "mean pool"]
    )
    assert [row.compile_s > 0 for row in rows] == [True, True, False]
    assert all(row.saved_mib > 0 for row in rows)


@pytest.mark.skipif(not library.loaded, reason=library.reason)
def test_fused_rung(tiny: dict[str, Any]) -> None:
    for row in run_ladder(**tiny, implementations=["concat", "fused"]):
        assert row.total_ratio_low <= row.total_ratio <= row.total_ratio_high
        if row.implementation == "fused":
            assert row.total_ratio == row.forward_ratio == 1
            # 12 bytes a token, and the pooled vector with one number a user
            assert row.saved_mib * 2**20 <= 12 * 6 * row.length + 4 * 6 * (8 + 1)


def test_fused_rung_without_the_library_says_so(monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]) -> None:
    monkeypatch.setattr(library, "reason", "planted: not built")
    with pytest.raises(RuntimeError, match=r"backend='cpu'.*planted: not built"):
        run_ladder(**tiny, implementations=["concat", "fused"])


def test_global_generator_is_left_alone(tiny: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    run_ladder(**(tiny | {"lengths": (2,)}), implementations=["mean pool"])
    assert torch.equal(torch.get_rng_state(), before)
