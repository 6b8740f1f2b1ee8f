"""`polarity_embedding`: its own arguments, wrong and right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mixpol_kernels
from mixpol_kernels.testing.inputs import Config

JAGGED = Config(op="polarity_embedding", counts=(3, 0, 4, 2), width=6, items=20)
BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "float ids": (lambda a: {"item_ids": a["item_ids"].float()}, TypeError, r"item_ids.*float32.*integer"),
    "bool polarity": (lambda a: {"polarity": a["polarity"].bool()}, TypeError, r"polarity.*bool.*integer"),
    "fewer polarities": (lambda a: {"polarity": a["polarity"][1:]}, ValueError, r"polarity.*\[8\].*\[9\]"),
    "ids elsewhere": (lambda a: {"item_ids": a["item_ids"].to("meta")}, ValueError, r"item_ids.*meta.*cpu"),
    "polarity elsewhere": (lambda a: {"polarity": a["polarity"].to("meta")}, ValueError, r"polarity.*meta.*cpu"),
    "flat item table": (lambda a: {"item_table": a["item_table"][0]}, ValueError, r"item_table.*\[6\].*\[V, D\]"),
    "flat polarity table": (
        lambda a: {"polarity_table": a["polarity_table"][0]}, ValueError, r"polarity_table.*\[6\].*\[P, 6\]",
    ),
    "narrow polarity table": (
        lambda a: {"polarity_table": a["polarity_table"][:, 1:]}, ValueError, r"polarity_table.*\[2, 5\].*\[P, 6\]",
    ),
    "double polarity table": (
        lambda a: {"polarity_table": a["polarity_table"].double()}, TypeError, r"polarity_table.*float64.*float32",
    ),
    "polarity table elsewhere": (
        lambda a: {"polarity_table": a["polarity_table"].to("meta")}, ValueError, r"polarity_table.*meta.*cpu",
    ),
    "integer item table": (lambda a: {"item_table": a["item_table"].int()}, TypeError, r"item_table.*int32.*float32"),
    "ids without dimensions": (
        lambda a: {"item_ids": torch.tensor(1), "polarity": torch.tensor(1)}, ValueError, r"item_ids.*\[\]",
    ),
    "ids without dimensions or offsets": (
        lambda a: {"item_ids": torch.tensor(1), "polarity": torch.tensor(1), "offsets": None},
        ValueError,
        r"item_ids.*\[\].*\[N\]",
    ),
    "offsets without dimensions": (lambda a: {"offsets": torch.tensor(0)}, ValueError, r"offsets.*\[\]"),
    "no offsets at all": (lambda a: {"offsets": torch.zeros(0).long()}, ValueError, r"offsets.*\[0\]"),
}  # fmt: skip


@pytest.mark.parametrize("label", BAD)
def test_bad_arguments(label: str, backend: str, refuses: Callable[..., None]) -> None:
    change, error, pattern = BAD[label]
    refuses(JAGGED, lambda a: a.update(_detached(change(a))), error, pattern, backend)


def _detached(changed: dict[str, Any]) -> dict[str, Any]:
    return {k: v.detach() if torch.is_tensor(v) else v for k, v in changed.items()}


@pytest.mark.parametrize("id_dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("value", [-1, 20, 127])
@pytest.mark.parametrize("name", ["item_ids", "polarity"])
def test_ids_out_of_range(
    name: str, value: int, id_dtype: torch.dtype, backend: str, refuses: Callable[..., None]
) -> None:
    """The message names the argument, the position and the value."""

    def poke(arguments: dict[str, Any]) -> None:
        arguments[name] = arguments[name].to(id_dtype)
        arguments[name][5] = value

    rows = 20 if name == "item_ids" else 2
    refuses(JAGGED, poke, RuntimeError, rf"{name}.*{value}.*position 5.*0 \.\.\. {rows - 1}", backend)


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**62, -(2**63)])
@pytest.mark.parametrize("name", ["item_ids", "polarity"])
def test_ids_far_out_of_range(name: str, value: int, backend: str, refuses: Callable[..., None]) -> None:
    """Nothing is narrowed to 32 bits before the check."""

    def poke(arguments: dict[str, Any]) -> None:
        arguments[name][8] = value

    refuses(JAGGED, poke, RuntimeError, rf"{name}.*{value}.*position 8", backend)


def test_position_in_a_padded_history(backend: str) -> None:
    """Positions count the pads: b * L + l."""
    ids, polarity = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)
    ids[1, 2], ids[0, 3] = 7, 9
    tables = torch.randn(5, 3), torch.randn(2, 3)
    with pytest.raises(RuntimeError, match=r"item_ids.*7.*position 6"):
        mixpol_kernels.polarity_embedding(ids, polarity, *tables, lengths=torch.tensor([3, 3]), backend=backend)


@pytest.mark.parametrize("shape", [(0,), (7,), (3, 0), (3, 4)])
def test_shapes(shape: tuple[int, ...], backend: str) -> None:
    ids, polarity = torch.randint(5, shape), torch.randint(2, shape)
    items, polarities = torch.randn(5, 3), torch.randn(2, 3)
    out = mixpol_kernels.polarity_embedding(ids, polarity, items, polarities, backend=backend)
    assert torch.equal(out, items[ids] + polarities[polarity])
