"""The extra additive table: wrong arguments and ids out of range, in every op that takes one, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mixpol_kernels.testing.inputs import Config, make

OPS = ("polarity_embedding", "polarity_fusion", "mixed_polarity_attention")
BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "extra ids alone": (
        lambda a: {"extra_table": None}, ValueError, r"extra_table was None and extra_ids was not.*both or neither",
    ),
    "extra table alone": (
        lambda a: {"extra_ids": None}, ValueError, r"extra_ids was None and extra_table was not.*both or neither",
    ),
    "extra ids shape": (lambda a: {"extra_ids": a["extra_ids"][1:]}, ValueError, r"extra_ids.*\[8\].*\[9\]"),
    "extra ids dtype": (lambda a: {"extra_ids": a["extra_ids"].float()}, TypeError, r"extra_ids.*float32.*integer"),
    "extra ids elsewhere": (lambda a: {"extra_ids": a["extra_ids"].to("meta")}, ValueError, r"extra_ids.*meta.*cpu"),
    "extra table width": (
        lambda a: {"extra_table": a["extra_table"][:, 1:]}, ValueError, r"extra_table.*\[3, 5\].*\[R, 6\]",
    ),
    "flat extra table": (lambda a: {"extra_table": a["extra_table"][0]}, ValueError, r"extra_table.*\[6\].*\[R, 6\]"),
    "extra table dtype": (
        lambda a: {"extra_table": a["extra_table"].double()}, TypeError, r"extra_table.*float64.*float32",
    ),
    "extra table elsewhere": (
        lambda a: {"extra_table": a["extra_table"].to("meta")}, ValueError, r"extra_table.*meta.*cpu",
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", BAD)
@pytest.mark.parametrize("op", OPS)
def test_bad_arguments(op: str, label: str, backend: str, refuses: Callable[..., None]) -> None:
    change, error, pattern = BAD[label]

    def detached(arguments: dict[str, Any]) -> None:
        arguments.update({k: v.detach() if torch.is_tensor(v) else v for k, v in change(arguments).items()})

    refuses(Config(op=op, counts=(3, 0, 4, 2), width=6, n_extra=3), detached, error, pattern, backend)


@pytest.mark.parametrize("op", OPS[1:])
def test_fusion_none_has_no_place_for_it(op: str, backend: str, refuses: Callable[..., None]) -> None:
    def none(arguments: dict[str, Any]) -> None:
        arguments |= {"fusion": "none", "gate": []}

    pattern = r"extra_table.*'none'.*'bias'.*'tapf'.*neither"
    refuses(Config(op=op, n_extra=3), none, ValueError, pattern, backend)


@pytest.mark.parametrize("id_dtype", [torch.int8, torch.int32, torch.int64])
@pytest.mark.parametrize("value", [-1, 3, 127])
@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_left"])
@pytest.mark.parametrize("op", OPS)
def test_ids_out_of_range(
    op: str, layout: str, value: int, id_dtype: torch.dtype, backend: str, generator: torch.Generator
) -> None:
    """The message names extra_ids, the position, pads included, and the value; -1 and 3 are no other row's id."""
    case = make(Config(op=op, layout=layout, counts=(3, 0, 4, 2), n_extra=3, id_dtype=id_dtype), generator)
    where = case.place(generator)
    token = int(torch.randint(9, (), generator=generator))
    position = token if where.index is None else int(where.index[token])
    arguments = case.arguments(where)
    arguments["extra_ids"].view(-1)[position] = value
    with pytest.raises(RuntimeError, match=rf"extra_ids.*{value}.*position {position}\b.*0 \.\.\. 2"):
        case.call(arguments, backend)


@pytest.mark.parametrize("op", OPS)
def test_ids_at_pads_are_not_read(op: str, backend: str, generator: torch.Generator) -> None:
    """They may be anything; what the kept ones say is what counts."""
    case = make(Config(op=op, layout="mask_holes", counts=(2, 0, 5), n_extra=3), generator)
    where = case.place(generator, length=9)
    arguments = case.arguments(where)
    assert not where.pads((arguments["extra_ids"] >= 0) & (arguments["extra_ids"] < 3)).any()
    expected = case.call(arguments, backend)
    keep = arguments["mask"]
    arguments["extra_ids"] = torch.where(keep, arguments["extra_ids"], 1)
    assert torch.equal(case.call(arguments, backend).nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("op", OPS)
def test_zero_table_changes_nothing(op: str, backend: str, generator: torch.Generator) -> None:
    case = make(Config(op=op, n_extra=3), generator)
    arguments = case.arguments(case.place(generator))
    arguments["extra_table"].zero_()
    with_extra = case.call(arguments, backend)
    del arguments["extra_ids"], arguments["extra_table"]
    assert torch.equal(case.call(arguments, backend), with_extra)
