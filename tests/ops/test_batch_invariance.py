"""Contract 3: what a user gets does not depend, in any bit, on the batch, its order, the padding or the layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mixpol_kernels.testing.inputs import OPS, Case, Config, make
from mixpol_kernels.testing.layouts import LAYOUTS, Placement

# More users than are worked on together, with row lengths on both sides of the tile sizes, empty ones among them.
COUNTS = (5, 0, 37, 64, 1, 130, 16, 47, 48, 49, 2, 3, 0, 97, 9, 8)
UNITS = ("target_attention", "mixed_polarity_attention")
VARIANTS: list[Config] = [
    Config(op="polarity_embedding", width=24),
    Config(op="polarity_fusion", fusion="bias", width=7),
    Config(op="polarity_fusion", width=40),
    Config(op="polarity_embedding", width=7, n_extra=5),
    Config(op="polarity_fusion", width=24, gate_inputs="full", n_extra=5),
    Config(width=40, hidden=(36,), gate_inputs="full", n_extra=5, normalize="softmax", candidates=2),
    Config(width=64, hidden=(64,), gate_inputs="full"),
    *[Config(op=op, width=16, hidden=(36,)) for op in UNITS],
    *[Config(op=op, width=64, hidden=(64,), normalize="softmax", candidates=3) for op in UNITS],
    *[Config(op=op, width=7, hidden=(80, 40), activation="silu", normalize="softmax") for op in UNITS],
    *[Config(op=op, width=24, hidden=(8, 5, 3), activation="prelu", candidates=2) for op in UNITS],
    Config(width=100, hidden=(130,), activation="sigmoid", fusion="bias"),
    Config(width=40, hidden=(16,), fusion="none"),
]
IDS = [f"{c.op}-D{c.width}-{'x'.join(map(str, c.hidden))}-{c.fusion}-{c.gate_inputs}" for c in VARIANTS]


def build(config: Config, generator: torch.Generator, counts: Sequence[int] = COUNTS) -> Case:
    """A case where no two tokens share an item, so that each row of the table gradient belongs to one user."""
    case = make(replace(config, counts=tuple(counts), items=sum(counts)), generator)
    return replace(case, ids=torch.randperm(sum(counts), generator=generator))


def per_user(case: Case, where: Placement) -> list[dict[str, Tensor]]:
    """Output and gradients of each user's own inputs."""
    results = case.run("cpu", where)
    starts = [sum(case.counts[:b]) for b in range(len(case.counts))]
    users = []
    for b, (start, count) in enumerate(zip(starts, case.counts, strict=True)):
        token, row = slice(start, start + count), slice(b, b + 1)
        user = {"out": results["out"][row if case.config.has_unit else token]}
        for name, grad in results.items():
            if name == "grad target":
                user[name] = grad[row]
            elif name == "grad tokens":
                user[name] = grad[token]
            elif name == "grad item_table":
                user[name] = grad[case.ids[token]]
        users.append(user)
    return users


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), f"{what}: {name} differs by up to {(got[name] - value).abs().max():.1e}"


@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
def test_any_batch(config: Config, generator: torch.Generator) -> None:
    """Alone, permuted, with users dropped, repeated or appended."""
    case = build(config, generator)
    expected = per_user(case, case.place(generator))
    users = list(range(len(COUNTS)))
    batches = [[b] for b in users]
    batches += [users[::-1], torch.randperm(len(users), generator=generator).tolist(), users[1::2]]
    if config.op in ("polarity_fusion", "target_attention"):  # elsewhere repeated users share items
        batches += [[3, 3, 0, 3], users + users + [5]]
    for batch in batches:
        part = case.take(batch)
        for b, got in zip(batch, per_user(part, part.place(generator)), strict=True):
            assert_same(got, expected[b], f"user {b} in batch {batch}")


@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
def test_any_layout(config: Config, generator: torch.Generator) -> None:
    """Jagged, padded on either side or with holes, and padded more."""
    case = build(config, generator)
    expected = per_user(case, case.place(generator))
    for layout in LAYOUTS[1:-1]:
        for length in (max(COUNTS), max(COUNTS) + 45):
            for b, got in enumerate(per_user(case, case.place(generator, layout, length=length))):
                assert_same(got, expected[b], f"user {b} in layout {layout!r} of length {length}")


@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
def test_full(config: Config, generator: torch.Generator) -> None:
    """Without pads: no layout argument, lengths, mask and offsets agree."""
    case = build(config, generator, (33, 33, 33))
    expected = per_user(case, case.place(generator, "full"))
    for layout in LAYOUTS[:-1]:
        for b, got in enumerate(per_user(case, case.place(generator, layout))):
            assert_same(got, expected[b], f"user {b} in layout {layout!r}")


@pytest.mark.parametrize("op", OPS)
def test_with_two_threads(op: str, generator: torch.Generator) -> None:
    """The split of a batch over threads does not matter either."""
    torch.set_num_threads(2)
    case = build(Config(op=op, width=40, hidden=(36,)), generator, (20, 3, 0, 41) * 10)
    expected = per_user(case, case.place(generator))
    for b in (0, 7, 19, 39):
        part = case.take([b])
        assert_same(per_user(part, part.place(generator))[0], expected[b], f"user {b} alone")


@pytest.mark.parametrize("op", UNITS)
def test_candidates_do_not_see_each_other(op: str, generator: torch.Generator) -> None:
    """The pooled vector of a candidate is the same, bitwise, among any others."""
    case = build(Config(op=op, width=24, hidden=(36,), candidates=5, normalize="softmax"), generator)
    out = case.run("cpu", case.place(generator))["out"]
    for m in ([0], [4, 1], [2, 2, 3]):
        floats = {**case.floats, "target": case.floats["target"][:, m]}
        some = replace(case, floats=floats, grad_out=case.grad_out[:, m])
        assert torch.equal(some.run("cpu", some.place(generator))["out"], out[:, m])
    one = {**case.floats, "target": case.floats["target"][:, 1]}
    single = replace(case, floats=one, grad_out=case.grad_out[:, 1], config=replace(case.config, candidates=None))
    assert torch.equal(single.run("cpu", single.place(generator))["out"], out[:, 1])
