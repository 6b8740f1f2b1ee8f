"""The four models that the demo compares."""

from __future__ import annotations

from dataclasses import dataclass

from mixpol_models.settings import Fusion, Kind


@dataclass(frozen=True)
class Variant:
    """What sets one model apart; all else is the same.

    Attributes:
        name: in tables.
        sequence: which events its history holds, within the same budget.
        fusion: how polarity marks them.
    """

    name: str
    sequence: Kind
    fusion: Fusion


BASELINE = Variant("positive-only", "positive", "none")
VARIANTS = (
    BASELINE,
    Variant("mixed", "mixed", "none"),
    Variant("mixed + bias", "mixed", "bias"),
    Variant("mixed + TAPF", "mixed", "tapf"),
)
