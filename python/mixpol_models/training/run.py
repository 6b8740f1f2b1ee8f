"""One training run, from the configuration to the test metrics."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from numpy.typing import NDArray

from mixpol_models.data import Examples, ExampleSet, InteractionLog, resolve
from mixpol_models.data.locks import locked
from mixpol_models.training.checkpoints import BEST, LAST, KeepBest, KeepLast, find_resume, load_model, read_checkpoint
from mixpol_models.training.config import TrainConfig
from mixpol_models.training.distributed import check_processes, train_loader, trainer_options
from mixpol_models.training.metrics import Metrics, evaluate
from mixpol_models.training.module import CTRModule
from mixpol_models.training.prepare import prepare
from mixpol_models.training.progress import ProgressBar

_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_EVALUATION_BATCH = 4096


@dataclass(frozen=True)
class TrainResult:
    """What came out of a run.

    Attributes:
        config: of the run.
        valid, test: metrics of the kept checkpoint; valid is None without validation examples.
        test_logit: [n] float32, in the order of the test examples.
        checkpoint: the kept one: the best, or the last without validation examples.
        epochs: trained, those before a resume included.
        best_epoch: of the kept checkpoint, from 1.
        train_examples: examples per epoch.
        seconds: of fitting, validation included, on the wall clock.
    """

    config: TrainConfig
    valid: Metrics | None
    test: Metrics
    test_logit: NDArray[np.float32]
    checkpoint: Path
    epochs: int
    best_epoch: int
    train_examples: int
    seconds: float

    @property
    def kept(self) -> str:
        """Which epoch the checkpoint is of, in words."""
        if self.valid is None:
            return "last epoch (no validation rows)"
        return "epoch with the best validation AUC"


def train(
    config: TrainConfig,
    *,
    log: InteractionLog | None = None,
    examples: Examples | None = None,
    resume: str | Path | None = None,
    callbacks: Sequence[Callback] | None = None,
    processes: int = 1,
) -> TrainResult:
    """Trains, keeps the checkpoint with the best validation AUC, and evaluates that one on the test rows.

    Without validation examples nothing is chosen: all epochs are trained and the last one is kept.

    The run's folder holds best.ckpt, last.ckpt (both at the end of an epoch), config.yaml and logs/. On a CPU the same
    configuration gives the same bits with the same number of threads.

    Args:
        config: see `TrainConfig`.
        log: the data; by default `resolve(config.data)`.
        examples: instead of `prepare(log, config)`, of a configuration with the same table sizes.
        resume: last.ckpt of a run, or its folder: goes on there from the end of the last epoch as if it had not
            stopped.
        callbacks: Lightning callbacks instead of the progress bar.
        processes: that train together (DDP; gloo on CPUs, NCCL on GPUs), each on its part of every batch: the same
            steps as in one process, but for rounding and the dropout masks. Each validates on all rows. The calling
            script needs the `if __name__ == "__main__"` of every program that spawns processes.

    Raises:
        ValueError: no training or no test examples, a checkpoint that does not fit, or settings that several processes
            cannot train with.
        RuntimeError: another run is writing into the folder.
    """
    if examples is None:
        examples = prepare(resolve(config.data) if log is None else log, config)
    _check(examples)
    check_processes(config, processes)
    sizes = {name: getattr(examples.log, name) for name in ("n_items", "n_users", "n_contexts")}
    checkpoint, done = find_resume(resume, config, sizes) if resume else (None, 0)
    if checkpoint:
        config = config.model_copy(update={"output": str(checkpoint.parent)})
    folder = config.folder
    with locked(folder, "mixpol train"), _quiet():
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        L.seed_everything(config.seed, workers=True, verbose=False)
        module = CTRModule(config.model_dump(mode="json"), sizes)
        chosen = len(examples.valid) > 0
        keep = [EarlyStopping("valid/auc", mode="max", patience=config.patience), KeepBest(folder)] if chosen else []
        bars = [ProgressBar()] if callbacks is None else list(callbacks)
        trainer = _trainer(
            config,
            max_epochs=config.epochs,
            callbacks=[*bars, *keep, KeepLast(folder)],
            logger=CSVLogger(folder, "logs", version=0),
            enable_progress_bar=callbacks is None,
            **trainer_options(config, processes),
        )
        batches = train_loader(examples.train, config, processes)
        # Lightning tells the sampler too, but on a resume only after it has drawn the order.
        batches.sampler.set_epoch(done)
        started = time.perf_counter()
        valid = _in_order(examples.valid) if chosen else None
        trainer.fit(module, batches, valid, ckpt_path=checkpoint, weights_only=True)
        seconds = time.perf_counter() - started
        checkpoint = folder / (BEST if chosen else LAST)
        kept, best_epoch = load_model(checkpoint)
        test_logit = predict(config, kept, examples.test)
        valid_logit = predict(config, kept, examples.valid) if chosen else None
    return TrainResult(
        config=config,
        valid=None if valid_logit is None else evaluate(examples.valid.user, examples.valid.label, valid_logit),
        test=evaluate(examples.test.user, examples.test.label, test_logit),
        test_logit=test_logit,
        checkpoint=checkpoint,
        # Not the trainer's count, which other processes may have kept.
        epochs=read_checkpoint(folder / LAST)["epoch"] + 1,
        best_epoch=best_epoch,
        train_examples=len(examples.train),
        seconds=seconds,
    )


def _trainer(config: TrainConfig, **options: Any) -> L.Trainer:
    return L.Trainer(
        **{
            "accelerator": config.accelerator,
            "devices": 1,
            "precision": _PRECISION[config.precision],
            "enable_model_summary": False,
            "log_every_n_steps": 20,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
        }
        | options
    )


def predict(config: TrainConfig, module: CTRModule, examples: ExampleSet) -> NDArray[np.float32]:
    """Logits [n] of a trained module, in the order of the examples, with the configuration's device and precision."""
    with _quiet():
        trainer = _trainer(config, logger=False, enable_progress_bar=False, enable_checkpointing=False)
        return torch.cat(trainer.predict(module, _in_order(examples))).cpu().numpy()


def _in_order(examples: ExampleSet) -> torch.utils.data.DataLoader:
    return examples.loader(_EVALUATION_BATCH)


def _check(examples: Examples) -> None:
    for name in ("train", "test"):
        if len(getattr(examples, name)) == 0:
            raise ValueError(
                f"{examples.log.name}: the {name} split has no examples, expected some: use another split or log"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Lightning's hardware report and its advice on loaders, which do not apply here, off the screen."""
    names = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in names]
    for logger in names:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
            warnings.filterwarnings("ignore", message=".*number of training batches.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
            yield
    finally:
        for logger, level in zip(names, levels, strict=True):
            logger.setLevel(level)
