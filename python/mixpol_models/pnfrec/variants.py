"""The models of the comparison by name: what they see, and which terms their loss has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Variant:
    """One model.

    Attributes:
        name: as in the published table, with ours behind.
        sequence: "positive": the newest positives, predicting the next positive. "all": the newest events of both
            polarities, unmarked, predicting the next event. "mixed": the same events, predicting the next positive.
        negative_encoder: a second encoder over the negatives, predicting the next negative.
        marks: a learned vector of the event's polarity is added to its input.
        contrast: "opposing": `contrast`, the user's negatives against the next positive. "infonce": `infonce`.
        meaning: one line.
    """

    name: str
    sequence: Literal["positive", "all", "mixed"]
    meaning: str
    negative_encoder: bool = False
    marks: bool = False
    contrast: Literal["opposing", "infonce"] | None = None


# TAPF is missing on purpose. Its gate and its signed residual are functions of the target item, and next-item
# prediction scores the whole catalogue from one state: with a target in the encoder every history would be encoded
# once per item. Putting the previous state in the target's place would be another method under the same name.
VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("pnfrec", "positive", "CE_p + a CE_n + b L_c", negative_encoder=True, contrast="opposing"),
        Variant("pnfrec_pn", "positive", "CE_p + a CE_n", negative_encoder=True),
        Variant("pnfrec_pc", "positive", "CE_p + b L_c, one encoder", contrast="opposing"),
        Variant("sasrec_p", "positive", "positives only"),
        Variant("sasrec_c", "all", "SASRec + InfoNCE against skipped items", contrast="infonce"),
        Variant("sasrec", "all", "all events, unmarked, next event of either polarity"),
        Variant("mixed_bias", "mixed", "all events with polarity marks, next positive", marks=True),
        Variant("mixed_bias_c", "mixed", "mixed_bias + b L_c", marks=True, contrast="opposing"),
    )
}


def variant(name: str) -> Variant:
    """A variant by name.

    Raises:
        ValueError: no such name; for TAPF it says why.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    reason = (
        ". TAPF changes a history by the target item, which next-item prediction does not have: take 'mixed_bias'"
        if "tapf" in name
        else ""
    )
    raise ValueError(f"model is {name!r}, expected one of {tuple(VARIANTS)}{reason}")
