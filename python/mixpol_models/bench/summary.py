"""Summary of a ladder: the ratios against fused per length, in words and with their noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixpol_models.bench.case import COMPILED, CONTROL, FUSED
from mixpol_models.bench.ladder import REFACTORED, LadderRow, strongest

# Upper over lower quartile of a ratio.
_NOISY = 1.3


@dataclass(frozen=True)
class Summary:
    """Ratios to the fused form at one length; above 1, fused is better. None: not measured.

    Attributes:
        length: L.
        eager: the form that most libraries write, "" without one: "concat" of the activation unit.
        total_eager: forward and backward, that one over fused.
        total_strongest: the same for the strongest baseline.
        strongest: which one that is.
        forward_eager: forward without gradients, eager over fused.
        saved_eager: memory kept for backward, eager over fused.
        fused_ms, floor_ms: forward and backward of fused and of the mean-pool control.
    """

    length: int
    eager: str
    total_eager: float | None
    total_strongest: float | None
    strongest: str
    forward_eager: float | None
    saved_eager: float | None
    fused_ms: float | None
    floor_ms: float | None


def summarize(rows: Sequence[LadderRow]) -> list[Summary]:
    """One `Summary` a length, in the order of the rows, which are of one case."""
    found = []
    for length in dict.fromkeys(row.length for row in rows):
        at = {row.implementation: row for row in rows if row.length == length}
        fused, floor = at.get(FUSED), at.get(CONTROL)
        plain = [row for row in at.values() if row.implementation not in (FUSED, CONTROL)]
        eager = next(
            (r for r in plain if not (r.implementation.endswith(COMPILED) or r.implementation.startswith(REFACTORED))),
            None,
        )
        best = strongest(rows, length) if plain else None
        found.append(
            Summary(
                length=length,
                eager=eager.implementation if eager else "",
                total_eager=eager and eager.total_ratio,
                total_strongest=best and best.total_ratio,
                strongest=name(best) if best else "",
                forward_eager=eager and eager.forward_ratio,
                saved_eager=eager.saved_mib / fused.saved_mib if eager and fused and fused.saved_mib else None,
                fused_ms=fused and fused.total_ms,
                floor_ms=floor and floor.total_ms,
            )
        )
    return found


def sentences(rows: Sequence[LadderRow]) -> list[str]:
    """The must-show ratios in words: the strongest baseline stands beside the eager form in every claim."""
    said = []
    for line in summarize(rows):
        eager = line.eager if line.eager == "eager" else f"{line.eager} eager"
        if line.total_eager is not None and line.total_strongest is not None:
            said.append(
                f"L = {line.length}, forward and backward, in times of fused: {eager} "
                f"{line.total_eager:.2f}, strongest baseline ({line.strongest}) {line.total_strongest:.2f}."
            )
        if line.length == 200 and line.forward_eager is not None:
            said.append(f"L = 200, forward alone, in times of fused: {eager} {line.forward_eager:.2f}.")
    return said


def noise(rows: Sequence[LadderRow]) -> str:
    """A warning if the ratios behind a claim scatter too much to be quoted, else ""."""
    wide = [
        row
        for row in rows
        if row.implementation != CONTROL
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
    """Implementation and variant, as the tables write them."""
    return f"{row.implementation}, {row.variant}" if row.variant else row.implementation


def caption(rows: Sequence[LadderRow]) -> str:
    """Shape, law of the lengths, protocol."""
    if not rows:
        return "No rows"
    row = rows[0]
    unit = f"units [{', '.join(map(str, row.hidden))}], {row.activation}, " if row.activation else ""
    rounds = sorted({row.rounds for row in rows})
    batches = sorted({row.batch for row in rows})
    batch = str(batches[0]) if len(batches) == 1 else f"{batches[0]} to {batches[-1]}"
    count = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    return (
        f"{row.case}, B = {batch}, D = {row.width}, {unit}float32, "
        f"lengths uniform in 1..L, {row.threads} threads; medians over {count} interleaved rounds; every "
        "form checked against float64 in this run"
    )
