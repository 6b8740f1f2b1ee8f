"""One training run, from the configuration to the test metrics."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from numpy.typing import NDArray

from mixpol_models.data import Examples, ExampleSet, InteractionLog, resolve
from mixpol_models.data.locks import locked
from mixpol_models.files import check_free, check_output_folder, claim, write_atomically
from mixpol_models.training.checkpoints import (
    EarlyStopping,
    KeepBest,
    KeepLast,
    Resumption,
    WholeFiles,
    find_resume,
    load_model,
    note_kept,
    read_checkpoint,
)
from mixpol_models.training.config import BEST, CONFIG, LAST, LOGS, METRICS, TrainConfig
from mixpol_models.training.distributed import check_processes, train_loader, trainer_options
from mixpol_models.training.metrics import Metrics, evaluate
from mixpol_models.training.module import CTRModule
from mixpol_models.training.preparation import prepare
from mixpol_models.training.progress import EpochLines, ProgressBar, StopsBetweenSteps

_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_EVALUATION_BATCH = 4096
_OF_A_RUN = (BEST, LAST, CONFIG, METRICS)


@dataclass(frozen=True)
class TrainResult:
    """Result of a training run.

    Attributes:
        config: of the run.
        valid, test: metrics of the kept checkpoint; valid is None without validation examples.
        test_logit: [n] float32, in the order of the test examples.
        checkpoint: the kept one: the best, or the last without validation examples.
        epochs: trained, those before a resume included.
        best_epoch: of the kept checkpoint, from 1.
        train_examples: examples per epoch.
        seconds: of fitting, validation included, on the wall clock, since the last resume.
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
    force: bool = False,
) -> TrainResult:
    """Trains, keeps the checkpoint with the best validation AUC, and evaluates that one on the test rows.

    Without validation examples nothing is chosen: all epochs are trained and the last one is kept.

    The run's folder holds best.ckpt, last.ckpt (both at the end of an epoch), config.yaml, logs/ and, once all is done,
    metrics.json. Each file is there whole or as it was before. On a CPU the same configuration gives the same bits with
    the same number of threads.

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
        force: replace an earlier run in `config.output`.

    Raises:
        ValueError: no training or no test examples, a checkpoint that does not fit, a folder with an earlier run, a
            device or precision that is not there, or settings that several processes cannot train with.
        RuntimeError: another run is writing into the folder.
    """
    check_device(config)
    going_on = find_resume(resume, config) if resume else None
    if going_on is None and config.output is not None:
        _check_folder(config.output, force)
    if examples is None:
        examples = prepare(resolve(config.data) if log is None else log, config)
    _check(examples)
    check_processes(config, processes)
    sizes = {name: getattr(examples.log, name) for name in ("n_items", "n_users", "n_contexts")}
    if going_on:
        going_on.check(CTRModule(config.model_dump(mode="json"), sizes), sizes)
    settings = config.model_copy(update={"output": None}).to_yaml()
    with _folder(config, going_on, force) as folder, _quiet():
        config = config.model_copy(update={"output": str(folder)})
        write_atomically(folder / CONFIG, settings)
        L.seed_everything(config.seed, workers=True, verbose=False)
        module = CTRModule(config.model_dump(mode="json"), sizes)
        chosen, shown = len(examples.valid) > 0, callbacks is None
        keep = [EarlyStopping(config.patience), KeepBest(folder)] if chosen else []
        terminal = sys.stdout.isatty()
        told = list(callbacks) if callbacks is not None else [ProgressBar() if terminal else EpochLines()]
        begun = _Begun()
        trainer = _trainer(
            config,
            max_epochs=config.epochs,
            callbacks=[*told, StopsBetweenSteps(), begun, *keep, KeepLast(folder, note=shown)],
            logger=CSVLogger(folder, LOGS, version=0),
            enable_progress_bar=shown and terminal,
            plugins=[WholeFiles()],
            **trainer_options(config, processes),
        )
        batches = train_loader(examples.train, config, processes)
        # Lightning tells the sampler too, but on a resume only after it has drawn the order.
        batches.sampler.set_epoch(going_on.done if going_on else 0)
        started = time.perf_counter()
        valid = _in_order(examples.valid) if chosen else None
        if going_on and shown:
            note_kept(folder, going_on.done, config.epochs)
        if not (going_on and going_on.ended):
            try:
                trainer.fit(module, batches, valid, ckpt_path=going_on and going_on.file, weights_only=True)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                if not going_on or begun.yes:
                    raise
                raise ValueError(
                    f"{going_on.file} cannot be gone on from ({type(error).__name__}: {error}): give another checkpoint"
                ) from error
        seconds = time.perf_counter() - started
        checkpoint = folder / (BEST if chosen else LAST)
        kept, best_epoch = load_model(checkpoint)
        test_logit = predict(config, kept, examples.test)
        valid_logit = predict(config, kept, examples.valid) if chosen else None
        result = TrainResult(
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
        _write_metrics(result, folder)
    return result


def check_device(config: TrainConfig) -> None:
    """Refuses what this machine lacks.

    Raises:
        ValueError: a GPU is asked for and there is none, or fp16 without one.
    """
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if config.accelerator == "gpu" and not gpu:
        raise ValueError("accelerator was 'gpu', and torch finds no GPU here; expected 'cpu' or 'auto'")
    if config.precision == "fp16" and not gpu:
        raise ValueError(
            "precision was 'fp16', which needs a GPU, and torch finds none here; expected 'bf16' or 'fp32' on a CPU"
        )


def _check_folder(output: str, force: bool) -> None:
    check_output_folder(output)
    if not force:
        on = (Path(output) / LAST).is_file()
        resume = f"go on with it by --resume {output}, " if on else ""
        check_free(output, _OF_A_RUN, f"{resume}replace it with --force, or give another folder")


@contextmanager
def _folder(config: TrainConfig, going_on: Resumption | None, force: bool) -> Iterator[Path]:
    """The run's folder, locked. Without a checkpoint at its end, what was put there goes, and what was made."""
    if going_on:
        folder, made = going_on.file.parent, False
    elif config.output is None:
        folder, made = claim(config.folder), True
    else:
        folder, made = config.folder, not config.folder.exists()
    with locked(folder, "mixpol train"):
        if going_on is None and not made:
            _check_folder(str(folder), force)  # again, now that nobody else writes
            if force:
                _remove_run(folder)
        (folder / METRICS).unlink(missing_ok=True)  # of an earlier end, which would pass for this run's
        try:
            yield folder
        except BaseException:
            if not (folder / LAST).exists():
                if made:
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    _remove_run(folder)
            raise


def _remove_run(folder: Path) -> None:
    # First what others would go on from.
    for name in (LAST, BEST, METRICS, CONFIG):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / LOGS / "version_0", ignore_errors=True)
    with suppress(OSError):  # there is none, or it holds what is not ours
        (folder / LOGS).rmdir()


def _write_metrics(result: TrainResult, folder: Path) -> None:
    numbers = {
        "valid": result.valid and asdict(result.valid),
        "test": asdict(result.test),
        "seconds": result.seconds,
    }
    write_atomically(folder / METRICS, json.dumps(numbers, indent=2) + "\n")


class _Begun(Callback):
    """Whether the state of a checkpoint has been taken up, and steps have begun."""

    yes = False

    def on_train_start(self, *_: object) -> None:
        self.yes = True


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
