"""What else every kernel promises: the same bits in any batch, layout, view and order of threads; clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from emulation import Emulation, RefusedError
from torch import Tensor

from mixpol_kernels.testing.inputs import OPS, Case, Config, make
from mixpol_kernels.testing.layouts import LAYOUTS

# Row lengths on both sides of a chunk, empty ones among them.
COUNTS = (5, 0, 31, 64, 1, 33)
VARIANTS: list[Config] = [
    Config(op="polarity_embedding", width=24, n_extra=5),
    Config(op="polarity_fusion", fusion="bias", width=7),
    Config(op="polarity_fusion", width=40, gate_inputs="full", n_extra=5),
    Config(width=40, hidden=(36,), gate_inputs="full", n_extra=5, normalize="softmax", candidates=2),
    Config(width=20, hidden=(16,), fusion="none", activation="sigmoid"),
    Config(op="target_attention", width=16, hidden=(36,)),
    Config(op="target_attention", width=24, hidden=(80, 40), activation="silu", normalize="softmax"),
    Config(op="target_attention", width=7, hidden=(8, 5, 3), activation="prelu", normalize="sigmoid"),
]
IDS = [f"{c.op}-D{c.width}-{'x'.join(map(str, c.hidden))}-{c.fusion}-{c.gate_inputs}" for c in VARIANTS]


def per_user(cuda: Emulation, case: Case, layout: str = "jagged", **options: Any) -> list[Tensor]:
    """The output of each user."""
    out = cuda.outputs(case, case.place(torch.Generator().manual_seed(0), layout, **options))["out"]
    return list(out if case.config.has_unit else out.split(case.counts))


def build(config: Config, generator: torch.Generator) -> Case:
    return make(replace(config, counts=COUNTS), generator)


@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
def test_any_batch_and_layout(config: Config, cuda: Emulation, generator: torch.Generator) -> None:
    """A user's result is the same, bitwise, alone, among others in any order, jagged or padded."""
    case = build(config, generator)
    expected = per_user(cuda, case)
    for users in ([2], [3, 3, 1], [5, 4, 3, 2, 1, 0]):
        for user, got in zip(users, per_user(cuda, case.take(users)), strict=True):
            assert torch.equal(got, expected[user]), f"user {user} in batch {users}"
    for layout in LAYOUTS[1:-1]:
        for user, got in enumerate(per_user(cuda, case, layout, length=max(COUNTS) + 37)):
            assert torch.equal(got, expected[user]), f"user {user} in layout {layout!r}"


@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
def test_any_order_of_threads(config: Config, cuda: Emulation, generator: torch.Generator) -> None:
    case = build(config, generator)
    backwards = per_user(replace(cuda, backwards=True), case, "mask_holes")
    for got, expected in zip(backwards, per_user(cuda, case, "mask_holes"), strict=True):
        assert torch.equal(got, expected)


def least_limit(cuda: Emulation, case: Case) -> int:
    """The least shared memory with which a case runs at all: room for a few columns of a table at a time."""
    low, high = 0, cuda.shared_limit // 16
    while low + 1 < high:
        middle = (low + high) // 2
        try:
            per_user(replace(cuda, shared_limit=16 * middle), case.take([1]))
            high = middle
        except RefusedError:
            low = middle
    return 16 * high


@pytest.mark.parametrize("config", [c for c in VARIANTS if c.op != "polarity_embedding" and c.fusion != "bias"])
def test_tables_that_do_not_fit(config: Config, cuda: Emulation, generator: torch.Generator) -> None:
    """Built anew for every chunk, a few columns at a time, they give the same bits."""
    case = build(config, generator)
    expected = per_user(cuda, case)
    small = replace(cuda, shared_limit=least_limit(cuda, case))
    if case.config.has_unit:
        arguments = case.arguments(case.place(generator))
        assert cuda.attention(case, arguments)["resident"].item() == 1
        assert small.attention(case, arguments)["resident"].item() == 0
    for got, wanted in zip(per_user(small, case), expected, strict=True):
        assert torch.equal(got, wanted)


def test_bits_of_tables_that_do_not_fit(cuda: Emulation, generator: torch.Generator) -> None:
    case = build(Config(op="target_attention", width=20, hidden=(44,)), generator)
    arguments = case.arguments(case.place(generator))
    small = replace(cuda, shared_limit=least_limit(cuda, case))
    expected, got = (c.attention(case, arguments, save_bits=True) for c in (cuda, small))
    assert (expected["resident"], got["resident"]) == (1, 0)
    assert torch.equal(got["bits"], expected["bits"])


@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
def test_any_view(config: Config, cuda: Emulation, generator: torch.Generator) -> None:
    """Rows at other strides and off their alignment."""

    def gaps(values: Tensor) -> Tensor:
        wide = torch.full((*values.shape[:-1], values.shape[-1] + 8), torch.nan)
        return wide[..., 4 : 4 + values.shape[-1]].copy_(values)

    def shifted(values: Tensor) -> Tensor:
        return torch.full((values.numel() + 1,), torch.nan)[1:].view(values.shape).copy_(values)

    def swapped(values: Tensor) -> Tensor:
        return values.transpose(0, 1).contiguous().transpose(0, 1) if values.dim() > 1 else values

    case = build(config, generator)
    where = case.place(generator, "lengths")
    expected = cuda.output(case, case.arguments(where))
    views: list[Callable[[Tensor], Tensor]] = [gaps, shifted, swapped]
    for change in views:
        arguments = case.arguments(where, view=lambda _, t, f=change: f(t) if t.is_floating_point() else t)
        assert torch.equal(cuda.output(case, arguments), expected)


def test_candidates_do_not_see_each_other(cuda: Emulation, generator: torch.Generator) -> None:
    case = build(Config(width=24, hidden=(36,), candidates=3, normalize="softmax"), generator)
    out = cuda.attention(case, case.arguments(case.place(generator)))["pooled"]
    for m in ([0], [2, 1], [1, 1, 0, 2]):
        some = replace(case, floats={**case.floats, "target": case.floats["target"][:, m]})
        assert torch.equal(cuda.attention(some, some.arguments(some.place(generator)))["pooled"], out[:, m])


@pytest.mark.parametrize("op", OPS)
def test_refusals(op: str, cuda: Emulation, generator: torch.Generator) -> None:
    """What the CPU launchers refuse on the host, the device refuses in the same words."""

    def refused(layout: str, pattern: str, **changes: Tensor) -> None:
        arguments = case.arguments(case.place(torch.Generator().manual_seed(0), layout))
        with pytest.raises(RefusedError, match=pattern):
            cuda.output(case, {**arguments, **changes})

    case = make(Config(op=op, counts=(3, 0, 4)), generator)
    refused("jagged", r"offsets run from 1 to 7; expected 0 to 7", offsets=torch.tensor([1, 3, 3, 7]))
    refused("jagged", r"offsets run from 0 to 6; expected 0 to 7", offsets=torch.tensor([0, 3, 3, 6]))
    refused(
        "jagged", r"offsets\[2\] is 2, below offsets\[1\] = 3; expected offsets that never fall",
        offsets=torch.tensor([0, 3, 2, 7]),
    )  # fmt: skip
    refused("lengths", r"lengths\[2\] is 5; expected 0 \.\.\. 4, the padded length", lengths=torch.tensor([3, 0, 5]))
    refused("lengths", r"lengths\[0\] is -1; expected 0 \.\.\. 4", lengths=torch.tensor([-1, 0, 4]))
    if not case.config.has_tokens:
        ids = torch.tensor([1, 2, 3, 50, 1, 1, 1])
        refused("jagged", r"item_ids has 50 at position 3; expected 0 \.\.\. 49, a row of the table", item_ids=ids)
    if case.config.has_polarity:
        rows = torch.tensor([0, 1, 0, 0, -1, 1, 1])
        refused("jagged", r"polarity has -1 at position 4; expected 0 \.\.\. 1, a row of the table", polarity=rows)
