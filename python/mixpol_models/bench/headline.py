"""The few ratios that a reader wants first, per length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixpol_models.bench.ladder import LadderRow, strongest

# Upper over lower quartile of a ratio.
_NOISY = 1.3


@dataclass(frozen=True)
class Headline:
    """How the fused rung compares at one length; above 1, fused is better. None: a rung was not measured.

    Attributes:
        length: L.
        total_concat: forward and backward, concat eager over fused.
        total_strongest: the same for the faster of the refactored rungs.
        strongest: which one that is.
        forward_concat: forward without gradients, concat eager over fused.
        saved_concat: memory kept for backward, concat eager over fused.
        fused_ms, floor_ms: forward and backward of fused and of the mean-pool control.
    """

    length: int
    total_concat: float | None
    total_strongest: float | None
    strongest: str
    forward_concat: float | None
    saved_concat: float | None
    fused_ms: float | None
    floor_ms: float | None


def headlines(rows: Sequence[LadderRow]) -> list[Headline]:
    """One `Headline` a length, in the order of the rows."""
    found = []
    for length in dict.fromkeys(row.length for row in rows):
        at = {row.rung: row for row in rows if row.length == length}
        concat, fused, floor = at.get("concat"), at.get("fused"), at.get("mean pool")
        best = strongest(rows, length) if {"refactored", "refactored+compile"} & at.keys() else None
        found.append(
            Headline(
                length=length,
                total_concat=concat and concat.total_ratio,
                total_strongest=best and best.total_ratio,
                strongest=name(best) if best else "",
                forward_concat=concat and concat.forward_ratio,
                saved_concat=concat.saved_mib / fused.saved_mib if concat and fused and fused.saved_mib else None,
                fused_ms=fused and fused.total_ms,
                floor_ms=floor and floor.total_ms,
            )
        )
    return found


def sentences(rows: Sequence[LadderRow]) -> list[str]:
    """The must-show ratios in words: the strongest baseline stands beside concat in every claim."""
    said = []
    for line in headlines(rows):
        if line.total_concat is not None and line.total_strongest is not None:
            said.append(
                f"L = {line.length}, forward and backward, in times of fused: concat eager "
                f"{line.total_concat:.2f}, strongest baseline ({line.strongest}) {line.total_strongest:.2f}."
            )
        if line.length == 200 and line.forward_concat is not None:
            said.append(f"L = 200, forward alone, in times of fused: concat eager {line.forward_concat:.2f}.")
    return said


def noise(rows: Sequence[LadderRow]) -> str:
    """A warning if the ratios behind a claim scatter too much to be quoted, else ""."""
    wide = [
        row
        for row in rows
        if row.rung != "mean pool"
        and row.total_ratio_low
        and row.total_ratio_high
        and row.total_ratio_high > _NOISY * row.total_ratio_low
    ]
    if not wide:
        return ""
    worst = max(wide, key=lambda row: (row.total_ratio_high or 0) / (row.total_ratio_low or 1))
    return (
        f"Noisy: the middle half of the rounds puts {name(worst)} at L = {worst.length} anywhere from "
        f"{worst.total_ratio_low:.2f} to {worst.total_ratio_high:.2f} times fused. Something else uses the "
        "cores; measure again before quoting."
    )


def name(row: LadderRow) -> str:
    """Rung and variant, as the tables write them."""
    return f"{row.rung}, {row.variant}" if row.variant else row.rung
