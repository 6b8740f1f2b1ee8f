"""Ranks of the targets in the whole catalogue, and the published metrics on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixpol_models.pnfrec.config import PNFRecConfig
from mixpol_models.pnfrec.events import Events
from mixpol_models.pnfrec.model import PNFRec
from mixpol_models.pnfrec.streams import Stream
from mixpol_models.pnfrec.variants import Variant

TOP = 10
_BATCH = 512


@dataclass(frozen=True)
class Ranking:
    """Ranks of the targets.

    Attributes:
        rank: [users] int64 from 1; 0 where the target itself was removed as seen.
        positive: [users] bool, polarity of the target.
        coverage: distinct items in the users' top 10, over the items of the training part.
    """

    rank: NDArray[np.int64]
    positive: NDArray[np.bool_]
    coverage: float


def gains(rank: NDArray[np.int64], top: int = TOP) -> dict[str, NDArray[np.float64]]:
    """Per user HR, NDCG and MRR at `top` with one relevant item: 1, 1 / log₂(rank + 1) and 1 / rank, else 0."""
    hit = (rank >= 1) & (rank <= top)
    place = np.where(hit, rank, 1)
    return {"HR": hit.astype(float), "NDCG": hit / np.log2(place + 1), "MRR": hit / place}


def metrics(ranking: Ranking) -> dict[str, float]:
    """HR_p, NDCG_p, MRR_p over users with a positive target, ..._n over those with a negative one, and Δ = p − n.

    NaN where there are no such users.
    """
    found: dict[str, float] = {}
    for name, gain in gains(ranking.rank).items():
        p, n = (gain[chosen].mean() if chosen.any() else np.nan for chosen in (ranking.positive, ~ranking.positive))
        found |= {f"{name}_p": float(p), f"{name}_n": float(n), f"Δ{name}": float(p - n)}
    return found | {"coverage": ranking.coverage}


def rank_targets(
    scores: Tensor, target: Tensor, seen: list[Tensor], lengths: Tensor, index_zero: str = "removed", top: int = TOP
) -> tuple[Tensor, Tensor]:
    """Ranks of the targets after every seen item is removed; of equal scores the smaller id is first.

    Args:
        scores: [B, V]; overwritten.
        target: [B].
        seen: per user the items of the whole history, both polarities.
        lengths: [B], of the whole histories.
        index_zero: "removed" never recommends the padding row. "published" removes it only for users whose history is
            shorter than the batch's longest: the published filter compares with a padded history.
        top: how many recommendations to return.

    Returns:
        ranks [B] int64, 0 where the target was seen; recommendations [B, top].
    """
    if index_zero not in ("removed", "published"):
        raise ValueError(f"index_zero is {index_zero!r}, expected 'removed' or 'published'")
    rows = torch.repeat_interleave(torch.arange(len(seen)), torch.tensor([len(items) for items in seen]))
    scores[rows, torch.cat(seen)] = -torch.inf
    padded = torch.ones(len(seen), dtype=torch.bool) if index_zero == "removed" else lengths < lengths.max()
    scores[padded, 0] = -torch.inf
    of_target = scores.gather(1, target[:, None])
    earlier = torch.arange(scores.shape[1]) < target[:, None]
    rank = 1 + ((scores > of_target) | ((scores == of_target) & earlier)).sum(1)
    rank[of_target[:, 0] == -torch.inf] = 0
    return rank, scores.topk(min(top, scores.shape[1]), dim=1).indices


@torch.inference_mode()
def evaluate(
    model: PNFRec, events: Events, config: PNFRecConfig, variant: Variant, train_items: int, most: int | None = None
) -> Ranking:
    """Ranks the last event of every user, given all before it.

    The model sees the newest positives (or the newest events, for a sequence of both polarities); all events before the
    target are removed from the ranking.

    Args:
        model: put into evaluation mode and left in it.
        events: histories with the target last.
        config, variant: of the model.
        train_items: items of the training part, for coverage.
        most: evaluate only the first users; None all.
    """
    model.eval()
    if most is not None and len(events) > most:
        events = events.of_users(np.arange(most))
    history = np.ones(len(events.item), bool)
    history[events.last] = False
    past = events.where(history)
    only_positives = variant.sequence == "positive"
    limit = config.max_length if only_positives else config.mixed_length
    stream = Stream.inputs(past.where(past.positive) if only_positives else past, limit)
    target = torch.from_numpy(events.item[events.last])
    seen = torch.from_numpy(past.item).split(past.counts.tolist())
    lengths = torch.from_numpy(past.counts)
    device = model.item_table.device
    ranks, shown = [], []
    for users in torch.arange(len(events)).split(_BATCH):
        states = model.last_states(stream.batch(users).to(device)).float()
        scores = (states @ model.item_table.T).cpu()
        chosen = [seen[i] for i in users.tolist()]
        rank, recommended = rank_targets(scores, target[users], chosen, lengths[users], config.index_zero)
        ranks.append(rank)
        shown.append(recommended)
    distinct = len(torch.cat(shown).unique())
    return Ranking(torch.cat(ranks).numpy(), events.positive[events.last], distinct / train_items)
