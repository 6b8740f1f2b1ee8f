"""Small logs by hand, and what is in them."""

import os
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from mixpol_models.data import ExampleSet, InteractionLog

REPOSITORY = Path(__file__).parents[3]
REAL_DATA = Path(os.environ.get("MIXPOL_DATA") or REPOSITORY.parent / "shared" / "data")
Event = tuple[int, int, int, int]
CSV_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)


def log_of(events: Iterable[Event]) -> InteractionLog:
    """A log of (user, item, time, polarity) events, every one a training example."""
    frame = pl.DataFrame(list(events), schema=["user", "item", "time", "polarity"], orient="row")
    frame = frame.cast(pl.Int64).with_columns(label="polarity", split=pl.lit("train"))
    return InteractionLog.from_frame(frame, name="test", polarity_rule="as given", source="a test")


def histories(examples: ExampleSet) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """(user, target item) -> history as (item, polarity), oldest first. Targets must be distinct."""
    result = {}
    for batch in examples.batches(3):
        ends = batch.offsets.tolist()
        pairs = list(zip(batch.item_ids.tolist(), batch.polarity.tolist(), strict=True))
        for b in range(len(batch)):
            result[batch.user[b].item(), batch.target_item[b].item()] = pairs[ends[b] : ends[b + 1]]
    assert len(result) == len(examples)
    return result


def csv_row(user: int, item: int, date: int, time_ms: int, long_view: int, *, play: int = 0, tab: int = 1) -> str:
    return f"{user},{item},{date},900,{time_ms},1,0,0,0,0,0,{long_view},{play},20000,0,0,0,0,{tab}"
