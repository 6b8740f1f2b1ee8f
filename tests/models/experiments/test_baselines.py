"""Rates alone, against a hand count and against the data's own notes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from mixpol_models.data import InteractionLog, load_kuairand
from mixpol_models.experiments.baselines import rate_baselines
from mixpol_models.experiments.subset import some_users


def small_log() -> InteractionLog:
    frame = pl.DataFrame(
        {
            "user": [0, 0, 1, 1, 0, 1, 2],
            "item": [0, 1, 0, 1, 1, 0, 5],
            "time": [1, 2, 3, 4, 5, 6, 7],
            "label": [1, 0, 1, 1, 0, 1, 0],
            "polarity": [1, 0, 1, 1, 0, 1, 0],
            "split": ["history", "history", "train", "train", "test", "test", "test"],
            "context": [None, None, 1, 0, 1, 0, 1],
        }
    )
    return InteractionLog.from_frame(frame, name="test", polarity_rule="as given", source="a test")


def test_by_hand() -> None:
    m = 3 / 4
    item = {0: (2 + 20 * m) / 22, 1: (1 + 20 * m) / 22, 5: m}
    user = {0: (1 + 10 * m) / 12, 1: (2 + 10 * m) / 12, 2: m}
    tab = {0: (1 + 20 * m) / 21, 1: (1 + 20 * m) / 21}
    plain, with_tab = rate_baselines(small_log())
    rows = sorted([(0, 1, 1), (1, 0, 0), (2, 5, 1)])
    assert plain.score == pytest.approx([item[i] * user[u] for u, i, _ in rows])
    assert with_tab.score == pytest.approx([item[i] * user[u] * tab[c] for u, i, c in rows])
    assert (plain.uses_context, with_tab.uses_context) == (False, True)
    assert plain.auc == 1


def test_no_tab_floor_without_contexts(log: InteractionLog) -> None:
    assert [rates.name for rates in rate_baselines(log)] == ["item × user"]


def test_published_floors(real_kuairand: Path) -> None:
    """The figures of the data's README: .7403 and .7545 on 29 + 30 April, .7408 on 30 April."""
    log = load_kuairand(real_kuairand)
    assert rate_baselines(log)[0].auc == pytest.approx(0.7408, abs=6e-5)
    test = pl.lit("test", log.frame.schema["split"])
    both_days = pl.when(pl.col("split") == "valid").then(test).otherwise(pl.col("split"))
    plain, with_tab = rate_baselines(replace(log, frame=log.frame.with_columns(split=both_days)))
    assert (plain.auc, with_tab.auc) == pytest.approx((0.7403, 0.7545), abs=6e-5)


def test_some_users_keeps_whole_users(log: InteractionLog) -> None:
    part = some_users(log, log.frame.height // 3)
    assert 0.2 < part.frame.height / log.frame.height < 0.5
    kept = part.frame["user"].unique().to_list()
    assert part.frame.equals(log.frame.filter(pl.col("user").is_in(kept)))
    assert some_users(log, 10**9) is log
