"""From a log to the examples that a configuration asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from mixpol_models.data import Examples, InteractionLog, build_examples
from mixpol_models.data.log import HISTORY
from mixpol_models.training.config import TrainConfig


def prepare(log: InteractionLog, config: TrainConfig) -> Examples:
    """The example sets of a run; validation and test rows are the same whatever the configuration."""
    if config.train_on_history:
        log = with_history_targets(log, config.history_share)
    return build_examples(log, config.history)


def with_history_targets(log: InteractionLog, share: float = 1.0) -> InteractionLog:
    """Makes the impressions before the training days training examples too.

    Their labels are older than any validation or test row, so nothing leaks. Where the log does not know their
    context, they get one more id of their own, `log.n_contexts`, rather than pass for context 0.

    Args:
        log: may be without such impressions; then it is returned as it is.
        share: of them, in (0, 1]; which ones is drawn at random, the same ones in every call.
    """
    past = pl.col("split") == HISTORY
    if share < 1:
        drawn = np.random.default_rng(0).random(log.frame.height) < share
        past &= pl.lit(pl.Series(drawn))
    contexts = log.frame.filter(past)["context"]
    if contexts.is_empty():
        return log
    columns = {"split": pl.when(past).then(pl.lit("train", log.frame.schema["split"])).otherwise(pl.col("split"))}
    n_contexts = log.n_contexts
    if n_contexts > 1 and contexts.max() == 0:
        columns["context"] = pl.when(past).then(pl.lit(n_contexts, pl.Int64)).otherwise(pl.col("context"))
        n_contexts += 1
    return replace(log, frame=log.frame.with_columns(**columns), n_contexts=n_contexts)
