"""Training throughput of the backbones, with the fused operations and with the reference in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mixpol_models.backbones import build_backbone
from mixpol_models.bench.timing import interleaved
from mixpol_models.data import InteractionLog
from mixpol_models.experiments.grid.config import ExperimentConfig, Run
from mixpol_models.experiments.step_time import check_same, training_step
from mixpol_models.experiments.tables import ResultTable, count
from mixpol_models.training import TrainConfig, prepare


@dataclass(frozen=True)
class Throughput:
    """One model, both ways. Medians over interleaved rounds.

    Attributes:
        backbone, variant: which model.
        fused, reference: examples per second of whole training steps.
        ratio, low, high: time of the reference over that of the fused one, median and quartiles of the rounds.
        batch, events: examples and history events of the batch.
        rounds, threads: of the measurement.
    """

    backbone: str
    variant: str
    fused: float
    reference: float
    ratio: float
    low: float
    high: float
    batch: int
    events: int
    rounds: int
    threads: int


def throughput(
    log: InteractionLog,
    experiment: ExperimentConfig,
    *,
    rounds: int = 15,
    seconds: float = 2.0,
    progress: Callable[[str], None] | None = None,
) -> list[Throughput]:
    """Times a training step of every backbone and variant of an experiment, at its largest budget.

    Args:
        log: the batch is of its test examples, whose histories are the longest.
        experiment: gives models and settings; its first seed is taken.
        rounds: at most this many.
        seconds: of timing per model and form.
        progress: gets a line of text per model.

    Raises:
        StepMismatch: loss or gradients of the two forms differ (see `step_time`); nothing is timed then.
    """
    chosen: dict[tuple[str, str], Run] = {}
    for run in sorted(experiment.runs(), key=lambda run: -run.config.budget):
        if run.ablation == "none":
            chosen.setdefault((run.config.backbone, run.variant), run)
    found = []
    for run in chosen.values():
        if progress:
            progress(run.label)
        found.append(_measure(log, run, rounds, seconds))
    return found


def throughput_table(rows: list[Throughput]) -> ResultTable:
    """Fused against reference."""
    cells = tuple(
        (
            f"{row.backbone}, {row.variant}",
            f"{row.fused:,.0f}",
            f"{row.reference:,.0f}",
            f"{row.ratio:.2f}",
            f"{row.low:.2f} to {row.high:.2f}",
        )
        for row in rows
    )
    first = rows[0]
    notes = (
        f"Whole training steps (forward, loss, backward, clipping, optimizer) on one batch of {first.batch:,} "
        f"examples, {count(first.threads, 'thread')}; medians over interleaved rounds "
        f"({min(row.rounds for row in rows)} or more).",
        "reference: the same model with backend='reference' (plain PyTorch); loss and gradients of the two were "
        "compared before timing. Above 1 fused is faster.",
    )
    columns = ("model", "fused, examples/s", "reference, examples/s", "reference / fused", "quartiles")
    return ResultTable("Training throughput", columns, cells, notes)


def _measure(log: InteractionLog, run: Run, rounds: int, seconds: float) -> Throughput:
    config = run.config
    examples = prepare(log, config)
    batch = next(iter(examples.test.loader(config.batch_size, shuffle=True, seed=config.seed)))
    sizes = {name: getattr(examples.log, name) for name in ("n_items", "n_users", "n_contexts")}
    models = {backend: _model(config, sizes, backend) for backend in ("auto", "reference")}
    check_same(models["auto"], models["reference"], batch)
    steps = {name: training_step(model, batch, config) for name, model in models.items()}
    times = interleaved(steps, rounds, seconds)
    low, ratio, high = times.ratio("reference", "auto")
    return Throughput(
        backbone=config.backbone,
        variant=run.variant,
        fused=len(batch) / times.median("auto"),
        reference=len(batch) / times.median("reference"),
        ratio=ratio,
        low=low,
        high=high,
        batch=len(batch),
        events=len(batch.item_ids),
        rounds=len(times),
        threads=torch.get_num_threads(),
    )


def _model(config: TrainConfig, sizes: dict[str, int], backend: str) -> torch.nn.Module:
    """The model with every parameter off its start, where W_t = 0 would hide the gate; the same one every time."""
    torch.manual_seed(config.seed)
    options = config.backbone_options() | {"backend": backend, "dropout": 0.0}
    model = build_backbone(config.backbone, **sizes, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model
