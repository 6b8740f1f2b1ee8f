"""Trains one variant with one seed.

A plain loop: one optimizer, a validation metric that ranks a catalogue, and models that train in minutes. Lightning's
checkpoints and devices have nothing to do here, and its per-step cost shows at these sizes.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mixpol_models.pnfrec.config import PNFRecConfig
from mixpol_models.pnfrec.evaluation import Ranking, evaluate, metrics
from mixpol_models.pnfrec.events import Split
from mixpol_models.pnfrec.model import PNFRec
from mixpol_models.pnfrec.objective import Batches, Objective
from mixpol_models.pnfrec.variants import Variant, variant

MOST_VALIDATION_USERS = 10_000
Tick = Callable[[int, int, int, float], None]


@dataclass(frozen=True)
class TrainedRun:
    """Result of a training run.

    Attributes:
        model: with the weights of the best epoch.
        ranking: of the test users.
        validation: NDCG@10 per epoch.
        best_epoch: from 1.
        seconds, cpu_seconds: of training and validation, on the wall clock and of the process.
        seconds_per_epoch: of training alone, mean.
        losses: terms of the last step, by name.
    """

    model: PNFRec
    ranking: Ranking
    validation: tuple[float, ...]
    best_epoch: int
    seconds: float
    cpu_seconds: float
    seconds_per_epoch: float
    losses: dict[str, float]


def pick_device(name: str) -> torch.device:
    """ "auto" is a GPU if there is one.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device was 'cuda', and torch finds no GPU here; expected 'cpu' or 'auto'")
    return torch.device(name)


def build(split: Split, config: PNFRecConfig, chosen: Variant, seed: int) -> PNFRec:
    """A fresh model on the configured device."""
    return PNFRec(split.n_items, config, chosen, seed).to(pick_device(config.device))


def optimizer_of(model: torch.nn.Module, config: PNFRecConfig) -> torch.optim.Optimizer:
    """Adam in one kernel per parameter, with PyTorch's default settings."""
    return torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)


def train(split: Split, config: PNFRecConfig, name: str, seed: int, tick: Tick | None = None) -> TrainedRun:
    """Trains until the validation NDCG@10 has not improved for `patience` epochs, and ranks the test users.

    On a CPU the same settings and number of threads give the same bits.

    Args:
        split: the data.
        config: settings.
        name: of the variant.
        seed: of weights, order and dropout.
        tick: told (epoch from 1, step from 1, steps an epoch, best NDCG so far) after every step.

    Raises:
        ValueError: an unknown variant.
        RuntimeError: the loss is not finite.
    """
    chosen = variant(name)
    model = build(split, config, chosen, seed)
    device = model.item_table.device
    torch.manual_seed(seed)
    batches, objective = Batches(split.train, config, chosen), Objective(config, chosen, device)
    optimizer = optimizer_of(model, config)
    train_items = len(np.unique(split.train.item))
    validation: list[float] = []
    best, kept, training = -1.0, copy.deepcopy(model.state_dict()), 0.0
    terms: dict[str, torch.Tensor] = {}
    started, cpu_started = time.perf_counter(), time.process_time()
    for epoch in range(1, config.epochs + 1):
        model.train()
        begun = time.perf_counter()
        steps = batches.epoch(config.batch_size, seed, epoch)
        for step, users in enumerate(steps, 1):
            loss, terms = objective(model, batches.of(users).to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if tick:
                tick(epoch, step, len(steps), best)
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"the loss of {name}, seed {seed}, was {loss.item()} in epoch {epoch}: lower learning_rate "
                f"({config.learning_rate}), or take precision 'fp32'"
            )
        training += time.perf_counter() - begun
        ranking = evaluate(model, split.validation, config, chosen, train_items, MOST_VALIDATION_USERS)
        validation.append(metrics(ranking)["NDCG_p"])
        if validation[-1] > best:
            best, kept = validation[-1], copy.deepcopy(model.state_dict())
        elif epoch - (int(np.argmax(validation)) + 1) >= config.patience:
            break
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    model.load_state_dict(kept)
    return TrainedRun(
        model=model,
        ranking=evaluate(model, split.test, config, chosen, train_items),
        validation=tuple(validation),
        best_epoch=int(np.argmax(validation)) + 1,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        seconds_per_epoch=training / len(validation),
        losses={key: float(value.detach()) for key, value in terms.items()},
    )
