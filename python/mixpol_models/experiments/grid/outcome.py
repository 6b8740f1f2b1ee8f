"""One run, one row: training, and all that a report or an analysis asks of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mixpol_models.data import Examples, InteractionLog
from mixpol_models.data.locks import temporary_folder
from mixpol_models.experiments.baselines import RateBaseline
from mixpol_models.experiments.bootstrap import auc_resamples
from mixpol_models.experiments.frozen_history import frozen_test
from mixpol_models.experiments.grid.ablations import ablate
from mixpol_models.experiments.grid.config import ExperimentConfig, Run
from mixpol_models.experiments.grid.strata import strata
from mixpol_models.training import evaluate, group_auc, prepare, train
from mixpol_models.training.checkpoints import load_model
from mixpol_models.training.metrics import auc
from mixpol_models.training.run import predict

# Attention is averaged over so many test examples, the same ones for all runs.
_ATTENTION_EXAMPLES, _ATTENTION_BATCH = 8192, 1024
_PACKAGES = ("mixpol-kernels", "torch", "lightning", "numpy", "polars")


def run_row(log: InteractionLog, run: Run, experiment: ExperimentConfig) -> dict[str, Any]:
    """Trains one run in a temporary folder and measures it.

    Returns:
        The row's values by column of `store.SCHEMA`, but for those that say which run it is.
    """
    examples = ablate(prepare(log, run.config), run.ablation)
    with temporary_folder("mixpol-run-") as folder:
        config = run.config.model_copy(update={"output": str(folder), "workers": 0})
        result = train(config, examples=examples, callbacks=[])
        module, _ = load_model(result.checkpoint)
        frozen = None
        if run.ablation == "none":
            frozen = evaluate(examples.test.user, examples.test.label, predict(config, module, frozen_test(examples)))
    test, logit = examples.test, result.test_logit
    return {
        **{name: getattr(result.test, name) for name in ("auc", "gauc", "logloss")},
        "tab_auc": group_auc(test.context, test.label, logit).mean,
        "auc_frozen": frozen and frozen.auc,
        "gauc_frozen": frozen and frozen.gauc,
        "valid_auc": result.valid and result.valid.auc,
        "test_examples": len(test),
        "test_users": len(np.unique(test.user)),
        "train_examples": result.train_examples,
        "epochs": result.epochs,
        "kept": result.kept,
        "seconds": result.seconds,
        "examples_per_second": result.train_examples * result.epochs / result.seconds,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "threads": torch.get_num_threads(),
        "versions": json.dumps(_versions()),
        **attention(module.model, examples),
        **resampled(log, examples, logit, experiment),
    }


def rate_row(
    log: InteractionLog, examples: Examples, rates: RateBaseline, experiment: ExperimentConfig
) -> dict[str, Any]:
    """A product of rates measured as a run is. A rate is no probability: there is no logloss."""
    test = examples.test
    return {
        "auc": rates.auc,
        "gauc": rates.gauc,
        "tab_auc": group_auc(test.context, test.label, rates.score).mean,
        "test_examples": len(test),
        "test_users": len(np.unique(test.user)),
        **resampled(log, examples, rates.score, experiment),
    }


def resampled(log: InteractionLog, examples: Examples, score: NDArray, experiment: ExperimentConfig) -> dict[str, Any]:
    """AUC under resamples of the users, of all test rows and within each stratum."""
    test = examples.test
    parts = []
    for part in strata(log, examples):
        label, rows = test.label[part.rows], int(part.rows.sum())
        values = auc_resamples(test.user, test.label, score, experiment.strata_resamples, rows=part.rows)
        positives = int(label.sum())
        parts.append(
            {
                "kind": part.kind, "name": part.name, "rows": rows, "positives": positives,
                "auc": auc(label, score[part.rows]) if 0 < positives < rows else None, "resamples": values.tolist(),
            }
        )  # fmt: skip
    return {
        "auc_resamples": auc_resamples(test.user, test.label, score, experiment.resamples).tolist(),
        "strata": parts,
    }


@torch.no_grad()
def attention(model: torch.nn.Module, examples: Examples) -> dict[str, float | None]:
    """Attention of the test examples by polarity.

    Per example with a history: |attention| of its negatives over that of all its events. (DIN's weights need not be
    positive nor add up to 1.) Averaged over examples, beside the share of negatives among events.

    Returns:
        "attention_on_negatives", None for a backbone without `history_attention`, and "negatives_in_history".
    """
    n = len(examples.test)
    chosen = np.sort(np.random.default_rng(0).permutation(n)[:_ATTENTION_EXAMPLES])
    tell = getattr(model, "history_attention", None)
    shares: list[NDArray] = []
    counts: list[NDArray] = []
    for start in range(0, len(chosen), _ATTENTION_BATCH):
        batch = examples.test[chosen[start : start + _ATTENTION_BATCH]]
        owner = np.repeat(np.arange(len(batch)), np.diff(batch.offsets.numpy()))
        negative = batch.polarity.numpy() == 0

        def share(
            weight: NDArray, owner: NDArray = owner, negative: NDArray = negative, n: int = len(batch)
        ) -> NDArray:
            total = np.bincount(owner, weight, n)
            return (np.bincount(owner, weight * negative, n) / np.where(total > 0, total, np.nan))[total > 0]

        counts.append(share(np.ones(len(owner))))
        if tell is not None:
            shares.append(share(tell(batch).abs().double().numpy()))
    return {
        "attention_on_negatives": float(np.concatenate(shares).mean()) if shares else None,
        "negatives_in_history": float(np.concatenate(counts).mean()) if sum(map(len, counts)) else None,
    }


def about(run: Run, key: str, log_name: str, fingerprint: str, experiment: ExperimentConfig) -> dict[str, Any]:
    """The columns that say which run a row is of."""
    config = run.config
    return {
        "key": key,
        "kind": "run",
        "experiment": experiment.name,
        "data": log_name,
        "fingerprint": fingerprint,
        "backbone": config.backbone,
        "variant": run.variant,
        "ablation": run.ablation,
        "budget": config.budget,
        "negative_share": config.negative_share,
        "seed": config.seed,
        "settings": config.model_dump_json(exclude={"data", "output", "workers"}),
    }


@cache
def _versions() -> Mapping[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
