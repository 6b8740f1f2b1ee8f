"""Options of `nn.Embedding` and embeddings of other kinds as the item table: as a model that calls the embedding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixpol_kernels.nn import MixedPolarityAttention

ITEMS, WIDTH, USERS, LENGTH = 12, 4, 3, 5
LENGTHS = torch.tensor([5, 2, 0])


class Doubling(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return 2 * super().forward(ids)


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.up = nn.Embedding(ITEMS, 2), nn.Linear(2, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return self.up(self.table(ids))


def hooked() -> nn.Module:
    table = nn.Embedding(ITEMS, WIDTH)
    table.register_forward_hook(lambda m, x, y: y + 1)
    return table


def parametrized() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Embedding(ITEMS, WIDTH))


MAKES: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Embedding(ITEMS, WIDTH),
    "padding_idx": lambda: nn.Embedding(ITEMS, WIDTH, padding_idx=3),
    "max_norm": lambda: nn.Embedding(ITEMS, WIDTH, max_norm=0.7),
    "norm_type": lambda: nn.Embedding(ITEMS, WIDTH, max_norm=0.7, norm_type=1.0),
    "scale_grad_by_freq": lambda: nn.Embedding(ITEMS, WIDTH, scale_grad_by_freq=True),
    "sparse": lambda: nn.Embedding(ITEMS, WIDTH, sparse=True),
    "sparse padding_idx": lambda: nn.Embedding(ITEMS, WIDTH, sparse=True, padding_idx=3),
    "subclass": lambda: Doubling(ITEMS, WIDTH),
    "wrapper": Projected,
    "hook": hooked,
    "parametrized": parametrized,
}
every_table = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


def dense(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.to_dense()


@every_table
@pytest.mark.parametrize("target_ids", [False, True], ids=["target rows", "target ids"])
@pytest.mark.parametrize("masked", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("options", [{}, {"activation": "dice"}, {"fusion": "none"}], ids=str)
def test_is_the_model_that_calls_it(
    make: Callable[[], nn.Module], target_ids: bool, masked: bool, options: dict[str, Any], generator: torch.Generator
) -> None:
    """Ids that are not pads are looked up, each as often as it stands there."""
    layer = MixedPolarityAttention(ITEMS, WIDTH, [6], **options)
    layer.item_embedding = make()
    other = copy.deepcopy(layer)
    ids, polarity = (torch.randint(n, (USERS, LENGTH), generator=generator) for n in (ITEMS, 2))
    ids[0, :3] = torch.tensor([3, 3, 7])
    keep = torch.arange(LENGTH) < LENGTHS[:, None] if masked else torch.ones(USERS, LENGTH, dtype=torch.bool)
    where = {"lengths": LENGTHS} if masked else {}
    target = torch.tensor([3, 7, 1]) if target_ids else torch.randn(USERS, WIDTH, generator=generator)
    for train in (True, False):
        layer.train(train), other.train(train)
        got = layer(target, ids.where(keep, torch.tensor(ITEMS + 5)), polarity, **where)
        t = other.item_embedding(target) if target_ids else target
        rows = torch.zeros(USERS, LENGTH, WIDTH).index_put((keep,), other.item_embedding(ids[keep]))
        want = other.attention(t, other.fusion(t, rows, polarity, **where), **where)
        torch.testing.assert_close(got, want)
        for m, out in ((layer, got), (other, want)):
            m.zero_grad()
            (out * torch.linspace(1, 2, out.numel()).view(out.shape)).sum().backward()
        for (name, p), q in zip(layer.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(dense(p.grad), dense(q.grad), msg=lambda m, name=name: f"{name}: {m}")
            torch.testing.assert_close(p, q)  # a table with max_norm is written on
        with torch.no_grad():
            direct = layer(target, ids.where(keep, torch.tensor(ITEMS + 5)), polarity, **where)
            t = other.item_embedding(target) if target_ids else target
            torch.testing.assert_close(direct, other.attention(t, other.fusion(t, rows, polarity, **where), **where))


def test_the_padding_row_has_no_gradient(generator: torch.Generator) -> None:
    layer = MixedPolarityAttention(ITEMS, WIDTH, [6], backend="cpu")
    layer.item_embedding.padding_idx = 0
    ids = torch.zeros(USERS, LENGTH, dtype=torch.int64)
    layer(torch.zeros(USERS, dtype=torch.int64), ids, ids).sum().backward()
    assert not layer.item_embedding.weight.grad.any()
