"""Progress of a training run, on a terminal or line by line."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from mixpol_models import stopping
from mixpol_models.progress import clock


class ProgressBar(RichProgressBar):
    """Lightning's rich bar, one line per epoch that stays, within 100 columns."""

    def __init__(self) -> None:
        super().__init__(leave=True, theme=RichProgressBarTheme(metrics_format=".4f"))

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, module)
        metrics.pop("v_num", None)
        return metrics


class EpochLines(Callback):
    """A line an epoch, where there is no terminal for a bar."""

    started = 0.0
    first = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Starts the clock."""
        self.started, self.first = time.perf_counter(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Prints the line."""
        done, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        elapsed = time.perf_counter() - self.started
        found = trainer.callback_metrics.get("valid/auc")
        auc = "" if found is None else f", valid AUC {float(found):.4f}"
        rest = elapsed / (done - self.first) * (epochs - done)
        left = f", at most {clock(rest)} left" if done < epochs else ""
        print(f"epoch {done} of {epochs}{auc}, {clock(elapsed)}{left}", flush=True)


class StopsBetweenSteps(Callback):
    """Ends a run whose signal came while a library caught everything."""

    def on_train_batch_start(self, *_: object) -> None:
        """Looks for it."""
        stopping.check()
