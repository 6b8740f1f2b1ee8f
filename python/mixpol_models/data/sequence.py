"""Length budget and polarities of a history."""

from __future__ import annotations

import math
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from mixpol_models.choices import SequenceKind


class SequenceConfig(BaseModel):
    """A length budget and what fills it, always with the newest events strictly before the target.

    Attributes:
        kind: "mixed" reads both polarities; "positive" only the positives, so the budget reaches further
            back.
        budget: most events per history, at least 1.
        negative_share: None takes the most recent events of either polarity. A share r in [0, 1] takes the
            newest r * budget negatives (rounded half up) and the newest positives for the rest, merged by
            time. What one polarity cannot fill goes to the other, so a history is below the budget only if
            the user's past is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: SequenceKind = "mixed"
    budget: int = 50
    negative_share: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.budget < 1:
            raise ValueError(f"budget is {self.budget}, expected at least 1: give the history some room")
        share = self.negative_share
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"negative_share is {share}, expected None or a share in [0, 1]: 0.5 is a good start")
        if share is not None and self.kind == "positive":
            raise ValueError(f"negative_share is {share} with kind='positive', expected None: use kind='mixed'")
        return self

    @property
    def n_negative(self) -> int:
        """The negatives' quota; only with a negative share."""
        if self.negative_share is None:
            raise ValueError("n_negative needs a negative_share, which is None: set it to a share in [0, 1]")
        return math.floor(self.negative_share * self.budget + 0.5)
