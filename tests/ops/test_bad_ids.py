"""Every kept id is checked, the first and the last of a row included, and no pad is."""

from __future__ import annotations

import pytest
import torch

import mixpol_kernels

LENGTHS = (3, 0, 2)
ROWS = {"item_ids": 7, "polarity": 2, "extra_ids": 4}


@pytest.mark.parametrize("place", [(0, 0), (0, 2), (2, 0), (2, 1)])
@pytest.mark.parametrize("bad", [-1, "rows"])
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask"])
def test_an_id_out_of_range(
    layout: str, name: str, bad: int | str, place: tuple[int, int], backend: str, generator: torch.Generator
) -> None:
    value = ROWS[name] if bad == "rows" else bad
    keep = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
    ids = {}
    for argument, rows in ROWS.items():
        drawn = torch.randint(rows, keep.shape, generator=generator)
        ids[argument] = torch.where(keep, drawn, 99)  # pads hold ids of no row
    ids[name][place] = value
    where = {"lengths": torch.tensor(LENGTHS)} if layout == "lengths" else {"mask": keep}
    position = 4 * place[0] + place[1]
    if layout == "jagged":
        ids = {argument: values[keep] for argument, values in ids.items()}
        where = {"offsets": torch.tensor([0, *LENGTHS]).cumsum(0)}
        position = sum(LENGTHS[: place[0]]) + place[1]
    tables = [torch.randn(rows, 8, generator=generator) for rows in ROWS.values()]

    def call() -> torch.Tensor:
        return mixpol_kernels.polarity_embedding(
            ids["item_ids"], ids["polarity"], tables[0], tables[1], extra_ids=ids["extra_ids"],
            extra_table=tables[2], backend=backend, **where,
        )  # fmt: skip

    with pytest.raises(RuntimeError, match=rf"{name} has {value} at position {position}; expected 0 \.\.\. "):
        call()
    ids[name].view(-1)[position] = 0
    assert call().isfinite().all()
