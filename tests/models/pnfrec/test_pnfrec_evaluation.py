"""Ranks and metrics on cases computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pnfrec_helpers import N_ITEMS, make_events, model_and_batches

from mixpol_models.pnfrec.config import PNFRecConfig
from mixpol_models.pnfrec.evaluation import Ranking, evaluate, gains, metrics, rank_targets
from mixpol_models.pnfrec.intervals import user_intervals
from mixpol_models.pnfrec.variants import VARIANTS, variant


def test_gains() -> None:
    found = gains(np.array([1, 3, 10, 11, 0]))
    assert found["HR"].tolist() == [1, 1, 1, 0, 0]
    assert found["NDCG"].tolist() == pytest.approx([1, 0.5, 1 / math.log2(11), 0, 0])
    assert found["MRR"].tolist() == pytest.approx([1, 1 / 3, 0.1, 0, 0])


def test_metrics_by_hand() -> None:
    found = metrics(Ranking(np.array([1, 20, 3, 0]), np.array([True, True, False, False]), 0.5))
    assert found["HR_p"] == 0.5
    assert found["HR_n"] == 0.5
    assert found["ΔNDCG"] == pytest.approx(0.5 - 0.25)
    assert found["ΔMRR"] == pytest.approx(0.5 - 1 / 6)
    assert found["coverage"] == 0.5


def scores() -> torch.Tensor:
    return torch.tensor([[9.0, 5.0, 4.0, 3.0, 3.0], [9.0, 5.0, 4.0, 3.0, 3.0]])


def test_seen_items_are_removed() -> None:
    seen = [torch.tensor([1]), torch.tensor([1, 2])]
    rank, top = rank_targets(scores(), torch.tensor([4, 4]), seen, torch.tensor([1, 2]), top=2)
    # Items 3 and 4 tie, the smaller id is first; of the second user, 2 is gone too.
    assert rank.tolist() == [3, 2]
    assert top[0, 0] == 2
    assert sorted(top[1].tolist()) == [3, 4]


def test_index_zero() -> None:
    seen, lengths = [torch.tensor([1]), torch.tensor([1, 2])], torch.tensor([1, 2])
    rank, _ = rank_targets(scores(), torch.tensor([4, 4]), seen, lengths, "published")
    # The longest history has no padding, so that padding may be recommended to it.
    assert rank.tolist() == [3, 3]
    with pytest.raises(ValueError, match="index_zero is 'kept'"):
        rank_targets(scores(), torch.tensor([4, 4]), seen, lengths, "kept")


def test_a_seen_target_has_no_rank() -> None:
    rank, _ = rank_targets(scores()[:1], torch.tensor([1]), [torch.tensor([1])], torch.tensor([1]))
    assert rank.tolist() == [0]


@pytest.mark.parametrize("name", list(VARIANTS))
def test_evaluate_against_a_slow_reading(name: str, config: PNFRecConfig) -> None:
    """The states of the user's own window, all of its history removed, one user at a time."""
    events = make_events(["+-+--+-+", "++-", "-+-+++", "--++-+++-+-", "+++-"], seed=3)
    model, _ = model_and_batches(name, config, events)
    found = evaluate(model, events, config, variant(name), train_items=N_ITEMS)
    positives_only = variant(name).sequence == "positive"
    top = set()
    for user, (start, end) in enumerate(zip(events.offsets, events.offsets[1:], strict=False)):
        past, target = events.item[start : end - 1], events.item[end - 1]
        window = [
            (i, int(p)) for i, p in zip(past, events.positive[start : end - 1], strict=True) if p or not positives_only
        ]
        window = window[-(config.max_length if positives_only else config.mixed_length) :]
        x = torch.tensor([i for i, _ in window])
        embedded = config.width**0.5 * model.item_table[x] + model.positions[0][: len(x)]
        if model.polarity_table is not None:
            embedded = embedded + model.polarity_table[torch.tensor([p for _, p in window])]
        state = plain_encoder(model, embedded)[-1]
        order = [i for i in (model.item_table @ state).argsort(descending=True).tolist() if i != 0 and i not in past]
        top |= set(order[:10])
        assert found.rank[user] == (order.index(target) + 1 if target in order else 0)
    assert found.positive.tolist() == [True, False, True, False, False]
    assert found.coverage == pytest.approx(len(top) / N_ITEMS)


def plain_encoder(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """One user's states by PyTorch's own attention module."""
    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    with torch.no_grad():
        for block in model.encoders["positive"]:
            q = block.query_norm(x)
            z = block.feed_norm(q + block.attention(q, x, x, attn_mask=later, need_weights=False)[0])
            x = z + block.feed_out(torch.relu(block.feed_in(z)))
        return model.final_norm(x)


def ranking(rank: list[int], positive: list[int]) -> Ranking:
    return Ranking(np.array(rank), np.array(positive, bool), 0.1)


def test_user_intervals() -> None:
    positive = [1] * 40 + [0] * 40
    good, bad = ranking([1] * 40 + [20] * 40, positive), ranking([1, 20] * 20 + [20] * 40, positive)
    certain = user_intervals([good], resamples=200)
    assert (certain["HR_p"].low, certain["HR_p"].high) == (1, 1)
    assert certain["ΔHR"].value == 1
    half = user_intervals([bad], resamples=2000)["HR_p"]
    assert half.low == pytest.approx(0.5 - 1.96 * math.sqrt(0.25 / 40), abs=0.03)
    paired = user_intervals([good], [bad], resamples=200)["HR_p"]
    assert paired.value == 0.5
    assert paired.excludes_zero()
    both = user_intervals([good, bad], resamples=200)["HR_p"]
    assert both.value == pytest.approx(0.75)
    same = user_intervals([bad], [bad], resamples=200)["ΔNDCG"]
    assert (same.low, same.value, same.high) == (0, 0, 0)
    assert not same.excludes_zero()


def test_user_intervals_need_the_same_users() -> None:
    with pytest.raises(ValueError, match="different users"):
        user_intervals([ranking([1, 1], [1, 0])], [ranking([1, 1], [0, 1])])
