"""Polarity in a FuxiCTR-like DIN that was written for one list of items.

`pos_items` and `neg_items`, as FuxiCTR's KuaiVideo data has them, are merged by time into one history within one length
budget. KuaiVideo's own lists have no times; build them from the samples' timestamps. Here the log is made up: whether a
user likes an item depends on both lists.

    python examples/fuxictr_polarity.py
"""

from __future__ import annotations

import argparse

import torch
from fuxictr_din import DIN
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mixpol_kernels import interleave
from mixpol_kernels.drop_in import given_polarity, with_polarity


def lists(batch: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Jagged lists of items with times, oldest first: items [N], times [N], offsets [batch + 1]."""
    counts = torch.randint(0, 40, (batch,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    times = torch.cat([torch.randint(10_000, (int(n),)).sort().values for n in counts])
    return torch.randint(1, vocabulary, (int(offsets[-1]),)), times, offsets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--budget", type=int, default=50, help="events a user, of both polarities together")
    a = parser.parse_args()
    vocabulary, genres = 500, 10
    pos_items, pos_times, pos_offsets = lists(a.batch, vocabulary)
    neg_items, neg_times, neg_offsets = lists(a.batch, vocabulary)
    mixed = interleave(pos_times, pos_offsets, neg_times, neg_offsets, budget=a.budget)
    counts = mixed.offsets.diff().tolist()
    history = pad_sequence(mixed.take(pos_items, neg_items).split(counts), batch_first=True)
    polarity = pad_sequence(mixed.polarity.long().split(counts), batch_first=True)

    target = torch.randint(1, vocabulary, (a.batch,))
    same = (history % genres == target[:, None] % genres) & (history != 0)
    label = ((same * (2 * polarity - 1)).sum(1) > 0).float()

    torch.manual_seed(0)
    model = DIN(vocabulary, width=16)
    print(with_polarity(model, fusion="tapf"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(a.steps):
        with given_polarity(model, polarity):
            loss = F.binary_cross_entropy_with_logits(model(target, history), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step + 1 == a.steps:
            print(f"step {step}: loss {float(loss.detach()):.4f}")


if __name__ == "__main__":
    main()
