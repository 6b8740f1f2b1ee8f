"""Batch statistics and Dice in training in Triton, interpreted, against the float64 references."""

from __future__ import annotations

from typing import Any

import pytest
import statistics_cases
import torch
from torch import Tensor

from mixpol_kernels import explain
from mixpol_kernels.ops.target_attention._dice import autograd as dice
from mixpol_kernels.ops.target_attention._dice.api import dice_attention
from mixpol_kernels.ops.target_attention._statistics import autograd as statistics
from mixpol_kernels.ops.target_attention._statistics.api import unit_statistics
from mixpol_kernels.ops.target_attention.triton import staged, support
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.layouts import place
from mixpol_kernels.testing.recorder import Recorder

COUNTS = (3, 0, 33, 16)


def statistics_config(**changes: Any) -> statistics_cases.Config:
    return statistics_cases.Config(**{"counts": COUNTS, "hidden": (36,), **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"pads": 3},
        {"pads": None, "layout": "mask_holes", "candidates": 2},
        {"hidden": (36, 20), "activation": "dice_row", "pads": 0, "layout": "lengths"},
        {"hidden": (20, 9, 33), "activation": "dice", "dropout": 0.3},
        {"counts": (0, 0), "pads": 2, "layout": "lengths"},
        {"counts": (0, 0), "layout": "lengths"},
        {"counts": ()},
    ],
    ids=str,
)
def test_statistics(changes: dict[str, Any], generator: torch.Generator) -> None:
    case = statistics_cases.make(statistics_config(**changes), generator)
    lines = budget.over_budget(case, case.place(generator), generator, backend="triton")  # type: ignore[arg-type]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_in_low_precision(dtype: torch.dtype, generator: torch.Generator) -> None:
    case = statistics_cases.make(statistics_config(pads=3), generator)
    where = case.place(generator)
    truth = case.run("reference", where, torch.float64)
    ours, plain = (case.run(backend, where, dtype) for backend in ("triton", "reference"))
    for name, want in truth.items():
        errors = [float((found[name] - want).abs().max() / want.abs().max()) for found in (ours, plain)]
        assert ours[name].dtype == dtype
        assert errors[0] <= 2 * errors[1] + 4 * torch.finfo(dtype).eps, (name, errors)


def test_statistics_far_from_zero(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variance that a sum of squares would lose, over several chunks, the same every time."""
    monkeypatch.setattr(staged, "MOST_ROWS", 64)
    case = statistics_cases.make(statistics_config(counts=(70, 41)), generator)
    case.floats["biases[0]"].add_(1e4)
    where = case.place(generator)
    arguments, exact = case.arguments(where), case.arguments(where, torch.float64)
    found, again = case.call(arguments, "triton"), case.call(arguments, "triton")
    assert torch.equal(found, again)
    torch.testing.assert_close(found.double(), case.call(exact, "reference"), rtol=2e-3, atol=0)


def dice_inputs(generator: torch.Generator, candidates: int | None = None, affine: bool = True) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    batch, width, units = len(COUNTS), 10, 36
    given = {
        "target": normal(batch, width) if candidates is None else normal(batch, candidates, width),
        "history": normal(sum(COUNTS), width),
        "hidden": normal(units, 4 * width) / (2 * width**0.5),
        "output": normal(1, units) / units**0.5,
        "hidden_bias": normal(units),
        "output_bias": normal(1),
        "alpha": normal(units),
    }
    return given | ({"norm_weight": normal(units), "norm_bias": normal(units)} if affine else {})


def dice_run(given: dict[str, Tensor], where: Any, backend: str, dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """Results, then gradients of all inputs."""
    leaves = {name: (where.spread(t) if name == "history" else t.clone()).to(dtype) for name, t in given.items()}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    found = dice_attention(
        leaves["target"], leaves["history"], [leaves["hidden"], leaves["output"]],
        [leaves["hidden_bias"], leaves["output_bias"]], leaves["alpha"], norm_weight=leaves.get("norm_weight"),
        norm_bias=leaves.get("norm_bias"), return_weights=True, backend=backend, **where.arguments, **options,
    )  # fmt: skip
    assert found.attention is not None
    upstream = [torch.linspace(-1, 2, t.numel(), dtype=dtype).view(t.shape) for t in (found.pooled, found.attention)]
    torch.autograd.backward([found.pooled, found.attention], upstream)
    grads = {name: leaf.grad for name, leaf in leaves.items()}
    assert not where.pads(grads["history"]).count_nonzero()
    grads["history"] = where.gather(grads["history"])
    # The output bias has one number, which may be a sum that cancels: held to the size of the other bias's gradient.
    grads["hidden_bias"] = torch.cat([grads["hidden_bias"], grads.pop("output_bias")])
    results = [found.pooled, where.gather(found.attention), found.mean, found.variance]
    return [*(t.detach() for t in results), *grads.values()]


@pytest.mark.parametrize(
    ("layout", "pad_to", "normalize", "candidates", "affine", "fused", "dtype"),
    [
        ("jagged", None, "softmax", None, True, False, torch.float32),
        ("jagged", 40, "none", 2, True, True, torch.float32),
        ("jagged", 40, "softmax", None, True, True, torch.bfloat16),
        ("lengths", 33, "sigmoid", None, False, False, torch.float16),
        ("mask_holes", 35, "softmax", 2, True, False, torch.float32),
    ],
)
def test_dice(
    layout: str, pad_to: int | None, normalize: str, candidates: int | None, affine: bool, fused: bool,
    dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not fused:
        monkeypatch.setattr(support, "fused", lambda *_: False)
    monkeypatch.setattr(staged, "MOST_ROWS", 64 if layout == "jagged" else staged.MOST_ROWS)
    given = {name: t.to(dtype) for name, t in dice_inputs(generator, candidates, affine).items()}
    where = place(COUNTS, layout, generator)
    options = {"pad_to": pad_to, "normalize": normalize, "scale": 0.7, "eps": 1e-3}
    ours, plain, exact = (
        dice_run(given, where, backend, kind, **options)
        for backend, kind in (("triton", dtype), ("reference", dtype), ("reference", torch.float64))
    )
    eps = torch.finfo(dtype).eps
    for i, (found, other, want) in enumerate(zip(ours, plain, exact, strict=True)):
        errors = [float((t - want).abs().max() / want.abs().max()) for t in (found, other)]
        assert found.dtype == dtype
        assert errors[0] <= 5 * errors[1] + 16 * eps, (i, errors)


def test_dice_is_registered(generator: torch.Generator) -> None:
    """Schemas, fakes and the dispatcher's rules of all four ops; what is said of them."""
    given = dice_inputs(generator)
    given["history"] = given["history"][:5]
    where = place((3, 0, 2, 0), "jagged", generator)
    with Recorder() as recorder:
        dice_run(given, where, "triton", torch.float32, pad_to=40)
        case = statistics_cases.make(statistics_config(hidden=(4,), width=3, counts=(2, 3)), generator)
        case.run("triton", case.place(generator))
    wanted = {op.triton for module in (dice, statistics) for op in (module.FORWARD, module.BACKWARD)}
    calls = [call for call in recorder.calls if call[0] in wanted]
    assert {call[0] for call in calls} == wanted
    for op, args in calls:
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))
    arguments = case.arguments(case.place(generator))
    assert explain(unit_statistics, **arguments, backend="triton").backend == "triton"


def test_bad_values_are_found(generator: torch.Generator) -> None:
    case = statistics_cases.make(statistics_config(), generator)
    arguments = case.arguments(case.place(generator)) | {"pad_to": 9}
    with pytest.raises(RuntimeError, match="pad_to is 9 and user 2 has 33 tokens"):
        case.call(arguments, "triton")
