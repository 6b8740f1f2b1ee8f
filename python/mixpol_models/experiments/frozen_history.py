"""Test examples whose histories stop where the test days begin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mixpol_models.data import Examples, ExampleSet


def frozen_test(examples: Examples) -> ExampleSet:
    """The test examples, in order, each with the history that its user has at the user's first test row.

    A history that goes on during the test days holds the outcomes of the user's earlier test rows. Within a user,
    a row ranked after its own positives is more often a negative, as in drawing without replacement, so a model that
    reads outcomes well is punished in gAUC for following them. Frozen histories are free of that, and stale.
    """
    log = examples.log
    rows = np.flatnonzero(log.frame["split"].cast(str).to_numpy() == "test")
    user = log.frame["user"].to_numpy()[rows]
    first_of_user = np.ones(len(rows), bool)
    first_of_user[1:] = user[1:] != user[:-1]
    first_row = rows[first_of_user][np.cumsum(first_of_user) - 1]
    store = log.history_store()
    before = store.before.copy()
    before[rows] = store.before[first_row]
    return replace(examples.test, histories=replace(store, before=before).select(rows, examples.sequence))
