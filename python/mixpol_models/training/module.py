"""The LightningModule: loss, optimizer, and metrics over the whole validation set."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from mixpol_models.backbones import build_backbone
from mixpol_models.data import Batch
from mixpol_models.training.clipping import clip_gradients
from mixpol_models.training.config import TrainConfig
from mixpol_models.training.metrics import evaluate
from mixpol_models.training.optimizer import SparseDenseAdam, build_optimizer


class CTRModule(L.LightningModule):
    """A backbone and how it is trained. Its checkpoint holds both arguments, so that it loads by itself.

    Args:
        config: fields of a `TrainConfig` as plain values.
        sizes: n_items, n_users and n_contexts.
    """

    def __init__(self, config: dict[str, Any], sizes: dict[str, int]) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.config = TrainConfig(**config)
        self.model = build_backbone(self.config.backbone, **sizes, **self.config.backbone_options())
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B], float32 whatever the precision."""
        return self.model(batch).float()

    def configure_optimizers(self) -> SparseDenseAdam:
        config = self.config
        return build_optimizer(self.model, config.learning_rate, config.table_learning_rate, config.weight_decay)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        # Lightning's own clipping fails on sparse gradients; its arguments come from the Trainer, which has none.
        if self.config.gradient_clip is not None:
            clip_gradients(self.parameters(), self.config.gradient_clip)

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        # A resumed run then draws the dropout masks that the uninterrupted one would have drawn. Not at the start of
        # the epoch: making the loader's iterator draws a number too, before it or after it.
        if batch_index == 0:
            torch.manual_seed(self.config.seed * 1_000_003 + self.current_epoch + 1_009 * self.global_rank)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(self(batch), batch.label)
        # Logging every step costs as much as a small model's forward pass.
        if (batch_index + 1) % self.trainer.log_every_n_steps == 0:
            self.log("train/loss", loss, prog_bar=True, batch_size=len(batch), sync_dist=self.trainer.world_size > 1)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._seen.clear()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self._seen.append((batch.user.cpu(), batch.label.cpu(), self(batch).cpu()))

    def on_validation_epoch_end(self) -> None:
        user, label, logit = (torch.cat(column).numpy() for column in zip(*self._seen, strict=True))
        self._seen.clear()
        metrics = evaluate(user, label, logit)
        # Early stopping and the best checkpoint need a number where the validation rows have one class only.
        self.log("valid/auc", float(np.nan_to_num(metrics.auc, nan=0.5)), prog_bar=True)
        self.log_dict({"valid/gauc": metrics.gauc, "valid/logloss": metrics.logloss})

    def predict_step(self, batch: Batch, batch_index: int) -> Tensor:
        return self(batch)
