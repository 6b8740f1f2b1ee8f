"""The four models that the demo compares."""

from __future__ import annotations

from dataclasses import dataclass

from mixpol_models.choices import Fusion, SequenceKind


@dataclass(frozen=True)
class Variant:
    """A model of the comparison: the settings in which it differs from the others.

    Attributes:
        name: in tables.
        sequence: which events its history holds, within the same budget.
        fusion: how polarity marks them.
    """

    name: str
    sequence: SequenceKind
    fusion: Fusion


BASELINE = Variant("positive-only", "positive", "none")
VARIANTS = (
    BASELINE,
    Variant("mixed", "mixed", "none"),
    Variant("mixed + bias", "mixed", "bias"),
    Variant("mixed + TAPF", "mixed", "tapf"),
)
