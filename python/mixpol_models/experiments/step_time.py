"""Time of a whole training step of DIN, with the fused layer and with the eager one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from mixpol_models.backbones import DIN
from mixpol_models.bench.timing import interleaved
from mixpol_models.choices import Fusion
from mixpol_models.data import Batch
from mixpol_models.experiments.eager_layer import EagerAttention
from mixpol_models.training.clipping import clip_gradients
from mixpol_models.training.config import TrainConfig
from mixpol_models.training.optimizer import build_optimizer

TOLERANCE = 1e-4
# A unit of the ReLU that lies within rounding of its kink may count on one side here and on the other there.
GRADIENT_TOLERANCE = 1e-3


class StepMismatch(RuntimeError):
    """The two forms do not compute the same: nothing is timed."""


@dataclass(frozen=True)
class StepRow:
    """One model, both layers. Times are medians over interleaved rounds.

    Attributes:
        fusion: of the model.
        sparse_tables: sparse gradients and SparseAdam, or dense ones and AdamW.
        eager_ms, fused_ms: forward, loss, backward, clipping and optimizer step.
        ratio, ratio_low, ratio_high: eager over fused, median and quartiles of the rounds; above 1 fused is faster.
        loss_gap: difference of the two losses before any step.
        batch, events, length: examples, history events, padded length.
        rounds, threads: of the measurement.
    """

    fusion: str
    sparse_tables: bool
    eager_ms: float
    fused_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    loss_gap: float
    batch: int
    events: int
    length: int
    rounds: int
    threads: int


def step_time(
    batch: Batch,
    sizes: dict[str, int],
    config: TrainConfig,
    *,
    backend: str = "cpu",
    fusions: Sequence[Fusion] = ("none", "bias", "tapf"),
    rounds: int = 15,
    seconds: float = 2.0,
    progress: Callable[[str], None] | None = None,
) -> list[StepRow]:
    """Times the same step of the same model on the same batch, in interleaved rounds.

    Args:
        batch: on the CPU.
        sizes: n_items, n_users, n_contexts.
        config: of the model and the optimizer; fusion, tables and backend are replaced.
        backend: of the fused layer.
        fusions: which models.
        rounds: at most this many.
        seconds: of timing per model and layer.
        progress: gets a line of text per model.

    Raises:
        StepMismatch: losses differ by more than 1e-4, or a gradient by more than 1e-3 of its norm.
        ValueError: the backend cannot run.
    """
    rows = []
    for fusion in fusions:
        for sparse in (True, False):
            if progress:
                progress(f"whole step: fusion {fusion}, {_tables(sparse)} tables")
            rows.append(_measure(batch, sizes, config, fusion, sparse, backend, rounds, seconds))
    return rows


def _tables(sparse: bool) -> str:
    return "sparse" if sparse else "dense"


def _measure(
    batch: Batch,
    sizes: dict[str, int],
    config: TrainConfig,
    fusion: Fusion,
    sparse: bool,
    backend: str,
    rounds: int,
    seconds: float,
) -> StepRow:
    options = config.backbone_options() | {"fusion": fusion, "sparse": sparse, "backend": backend}
    torch.manual_seed(config.seed)
    fused = DIN(**sizes, **options | {"dropout": 0.0})
    with torch.no_grad():
        for parameter in fused.parameters():
            # W_t starts at zero: without this the check would not see the gate.
            parameter.add_(0.02 * torch.randn_like(parameter))
    eager = copy.deepcopy(fused)
    layer = eager.attention = EagerAttention(eager.attention, batch)
    gap = check_same(fused, eager, batch)
    steps = {"fused": training_step(fused, batch, config), "eager": training_step(eager, batch, config)}
    times = interleaved(steps, rounds, seconds)
    low, ratio, high = times.ratio("eager", "fused")
    return StepRow(
        fusion=fusion,
        sparse_tables=sparse,
        eager_ms=1e3 * times.median("eager"),
        fused_ms=1e3 * times.median("fused"),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        loss_gap=gap,
        batch=len(batch),
        events=len(batch.item_ids),
        length=layer.item_ids.shape[1],
        rounds=len(times),
        threads=torch.get_num_threads(),
    )


def training_step(model: nn.Module, batch: Batch, config: TrainConfig) -> Callable[[], None]:
    """One step on one batch, to be called again and again: forward, loss, backward, clipping, optimizer."""
    optimizer = build_optimizer(model, config.learning_rate, config.table_learning_rate, config.weight_decay)

    def step() -> None:
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(batch), batch.label).backward()
        if config.gradient_clip is not None:
            clip_gradients(model.parameters(), config.gradient_clip)
        optimizer.step()

    return step


def check_same(fused: nn.Module, eager: nn.Module, batch: Batch) -> float:
    """Compares loss and every gradient. Returns the difference of the losses.

    Raises:
        StepMismatch: see `step_time`.
    """
    losses = []
    for model in (fused, eager):
        loss = F.binary_cross_entropy_with_logits(model(batch), batch.label)
        loss.backward()
        losses.append(loss.item())
    gap = abs(losses[0] - losses[1])
    if not gap <= TOLERANCE * max(1.0, abs(losses[1])):
        raise StepMismatch(f"the loss is {losses[0]:.6f} fused and {losses[1]:.6f} eager, expected the same to 1e-4")
    for (name, a), b in zip(fused.named_parameters(), eager.parameters(), strict=True):
        first, second = (p.grad.to_dense() if p.grad.is_sparse else p.grad for p in (a, b))
        error = ((first - second).norm() / second.norm().clamp(min=1e-12)).item()
        if not error <= GRADIENT_TOLERANCE:
            raise StepMismatch(f"the gradient of {name} differs by {error:.1e} of its norm, expected at most 1e-3")
    for model in (fused, eager):
        model.zero_grad()
    return gap
