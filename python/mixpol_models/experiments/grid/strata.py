"""Parts of the test rows: by what is known of the user, and by how often the item was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixpol_models.data import Examples, InteractionLog

ACTIVITY, COLD = "positives of the user before the row", "training rows of the item"
# First number of each stratum; the paper's low-activity users have 0 or 1 positives.
_EDGES = {ACTIVITY: (0, 2, 5, 10, 20), COLD: (0, 1, 5, 20, 100)}


@dataclass(frozen=True, eq=False)
class Stratum:
    """Some of the test rows.

    Attributes:
        kind: by what they were chosen, `ACTIVITY` or `COLD`.
        name: range of that number, both ends included.
        rows: [n] booleans over the test examples.
    """

    kind: str
    name: str
    rows: NDArray[np.bool_]


def strata(log: InteractionLog, examples: Examples) -> list[Stratum]:
    """All strata of both kinds, in ascending order within a kind. Within a kind every row is in one of them.

    Args:
        log: of the examples.
        examples: their training rows are what an item's rows are counted in.
    """
    trained = np.bincount(examples.train.item, minlength=log.n_items)
    counts = {ACTIVITY: past_positives(log), COLD: trained[examples.test.item]}
    found = []
    for kind, count in counts.items():
        edges = _EDGES[kind]
        for low, next_low in zip(edges, [*edges[1:], None], strict=True):
            last = next_low is None
            name = f"{low}+" if last else f"{low}" if next_low == low + 1 else f"{low}–{next_low - 1}"
            found.append(Stratum(kind, name, (count >= low) & (True if last else count < next_low)))
    return found


def past_positives(log: InteractionLog) -> NDArray[np.int64]:
    """[n]: how many positive events each test row's user has strictly before it."""
    rows = np.flatnonzero((log.frame["split"] == "test").to_numpy())
    store = log.history_store()
    total = np.concatenate([[0], np.cumsum(store.polarity, dtype=np.int64)])
    return total[store.before[rows]] - total[store.offsets[store.user[rows]]]
