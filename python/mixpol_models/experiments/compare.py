"""Trains the variants with several seeds and holds them against each other on the test rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from mixpol_models.data import Examples, InteractionLog
from mixpol_models.experiments.baselines import RateBaseline, rate_baselines
from mixpol_models.experiments.bootstrap import Difference, paired_bootstrap
from mixpol_models.experiments.frozen_history import frozen_test
from mixpol_models.experiments.variants import BASELINE, VARIANTS, Variant
from mixpol_models.training import Metrics, TrainConfig, TrainResult, evaluate, train
from mixpol_models.training.checkpoints import load_model
from mixpol_models.training.preparation import prepare
from mixpol_models.training.run import predict

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Spread:
    """A number over seeds: the mean, and half of the range (0 with one seed)."""

    mean: float
    half_range: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(float(np.mean(values)), float(np.ptp(values)) / 2)


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        seeds: of each variant.
        runs: per variant one result a seed.
        frozen: the metrics of the same models with histories that stop where the test days begin.
        rates: rate baselines, on the same rows.
        to_baseline: AUC difference to positive-only, per other variant.
        to_rates: AUC difference to the last (hardest) rate baseline, per variant.
        resamples: of the bootstrap.
        test_rows, test_users: behind every number.
    """

    seeds: tuple[int, ...]
    runs: dict[Variant, list[TrainResult]]
    frozen: dict[Variant, list[Metrics]]
    rates: list[RateBaseline]
    to_baseline: dict[str, Difference]
    to_rates: dict[str, Difference]
    resamples: int
    test_rows: int
    test_users: int

    def metric(self, variant: Variant, name: str) -> Spread:
        """A field of `Metrics` on the test rows."""
        return Spread.of([getattr(run.test, name) for run in self.runs[variant]])

    def relative(self, variant: Variant) -> tuple[Spread, Spread]:
        """RelaImpr and plain ratio against positive-only of the same seed, %."""
        pairs = [
            (run.test.auc, base.test.auc) for run, base in zip(self.runs[variant], self.runs[BASELINE], strict=True)
        ]
        return Spread.of([rela_impr(*pair) for pair in pairs]), Spread.of([auc_ratio(*pair) for pair in pairs])


def rela_impr(auc: float, baseline: float) -> float:
    """((auc - 0.5) / (baseline - 0.5) - 1) * 100 %: the convention since DIN. NaN if the baseline is at chance."""
    return ((auc - 0.5) / (baseline - 0.5) - 1) * 100 if baseline != 0.5 else float("nan")


def auc_ratio(auc: float, baseline: float) -> float:
    """(auc / baseline - 1) * 100 %: smaller than RelaImpr by the factor baseline / (baseline - 0.5)."""
    return (auc / baseline - 1) * 100


def compare(
    log: InteractionLog,
    base: TrainConfig,
    seeds: Sequence[int],
    folder: Path,
    *,
    resamples: int = 400,
    tick: Tick | None = None,
) -> Comparison:
    """Trains every variant with every seed on the same examples, budget and settings.

    Args:
        log: the data.
        base: settings shared by all; sequence, fusion, seed and output are replaced.
        seeds: of weights and order.
        folder: for the runs.
        resamples: of the bootstrap.
        tick: told (what is trained, steps done, steps in total) now and then.
    """
    runs: dict[Variant, list[TrainResult]] = {variant: [] for variant in VARIANTS}
    frozen: dict[Variant, list[Metrics]] = {variant: [] for variant in VARIANTS}
    examples = {
        kind: prepare(log, base.model_copy(update={"sequence": kind}))
        for kind in dict.fromkeys(variant.sequence for variant in VARIANTS)
    }
    test = examples[BASELINE.sequence].test
    steps = -(-len(examples[BASELINE.sequence].train) // base.batch_size) * base.epochs
    total, done = steps * len(VARIANTS) * len(seeds), 0
    for seed in seeds:
        for variant in VARIANTS:
            chosen = base.model_dump() | {"sequence": variant.sequence, "fusion": variant.fusion, "seed": seed}
            config = TrainConfig(**chosen | {"output": str(folder / f"{variant.sequence}-{variant.fusion}-{seed}")})
            label = f"{variant.name}, seed {seed}"
            watchers = [_Steps(lambda step, label=label, done=done: tick(label, done + step, total))] if tick else []
            result = train(config, examples=examples[variant.sequence], callbacks=watchers)
            runs[variant].append(result)
            frozen[variant].append(_frozen(examples[variant.sequence], result))
            done += steps
            if tick:
                tick(label, done, total)
    rates = rate_baselines(log)
    scores: dict[str, NDArray] = {
        variant.name: np.stack([run.test_logit for run in results]) for variant, results in runs.items()
    }
    to_baseline = paired_bootstrap(test.user, test.label, scores, BASELINE.name, resamples)
    hardest = rates[-1]
    to_rates = paired_bootstrap(test.user, test.label, scores | {hardest.name: hardest.score}, hardest.name, resamples)
    return Comparison(
        seeds=tuple(seeds),
        runs=runs,
        frozen=frozen,
        rates=rates,
        to_baseline=to_baseline,
        to_rates=to_rates,
        resamples=resamples,
        test_rows=len(test),
        test_users=len(np.unique(test.user)),
    )


def _frozen(examples: Examples, result: TrainResult) -> Metrics:
    test = frozen_test(examples)
    model, _ = load_model(result.checkpoint)
    return evaluate(test.user, test.label, predict(result.config, model, test))


class _Steps(Callback):
    """Tells the number of steps done."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.tell = tell

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.tell(trainer.global_step)
