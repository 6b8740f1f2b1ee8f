"""Settings of a training run: defaults, then a YAML file, then flags.

Imports neither torch nor Lightning, so that `mixpol train --print-config` is quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mixpol_models.choices import Accelerator, BackboneName, Fusion, Precision, SequenceKind
from mixpol_models.configuration import explain, read

if TYPE_CHECKING:
    from mixpol_models.data import SequenceConfig

# Settings that a backbone's constructor may refuse beyond the ranges here.
_OF_CONSTRUCTORS = (
    "options", "embedding_dim", "tower_units", "user_embedding", "attention_units", "activation", "normalize"
)  # fmt: skip
# In the folder of a run.
BEST, LAST, CONFIG, METRICS, LOGS = "best.ckpt", "last.ckpt", "config.yaml", "metrics.json", "logs"


class TrainConfig(BaseModel):
    """One training run. The defaults were chosen on KuaiRand-Pure's validation day, for all variants at once.

    Attributes:
        data: a folder with KuaiRand-Pure or a source's name, as in `mixpol_models.data.resolve`; None looks around.
        train_on_history: impressions before the training days are training examples too, each with the past strictly
            before it. Does nothing where the log has none.
        history_share: how many of those impressions, as a share; drawn at random, the same ones in every run.
        sequence, budget, negative_share: see `SequenceConfig`.
        fusion: how polarity marks a history event.
        backbone: a name in `mixpol_models.backbones.BACKBONES`.
        options: what that backbone takes beyond the settings here (layers, heads, ...), by its constructor's names; not
            `max_length`, which is the budget.
        embedding_dim, tower_units, dropout, user_embedding: see `BackboneOptions`.
        attention_units, activation, normalize: see `TargetAttentionBackbone`; for backbones of that class.
        epochs: at most.
        batch_size: examples per step.
        learning_rate: of the dense layers (AdamW).
        table_learning_rate: of the item and user tables; None takes `learning_rate`, as tables that are not sparse do.
        weight_decay: of the dense layers, decoupled. The tables have none.
        gradient_clip: largest total gradient norm; None does not clip.
        patience: epochs without a better validation AUC before training stops.
        sparse_tables: sparse gradients and SparseAdam for item and user tables: only the rows of the batch move. False
            trains them densely with AdamW, at a cost that grows with the vocabulary.
        seed: of weights, order and dropout.
        precision: "bf16" and "fp16" (GPU only) are autocast for the MLP; attention and tables stay float32.
        accelerator: where to train.
        backend: of the fused ops: "auto" or a name in `mixpol_kernels.backend.BACKENDS`.
        workers: processes that build batches; 0 builds them in this one.
        output: folder of the run, without an earlier one; None is `mixpol_runs/<name>`, or the first of <name>-2,
            <name>-3, ... that is not there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str | None = None
    train_on_history: bool = True
    history_share: float = Field(1.0, gt=0, le=1)

    sequence: SequenceKind = "mixed"
    budget: int = Field(50, ge=1)
    negative_share: float | None = Field(None, ge=0, le=1)
    fusion: Fusion = "tapf"

    backbone: BackboneName = "din"
    options: dict[str, Any] = Field(default_factory=dict)
    embedding_dim: int = Field(16, ge=1)
    attention_units: tuple[int, ...] = Field((64,), min_length=1, max_length=3)
    tower_units: tuple[int, ...] = (128, 64)
    activation: str = "relu"
    normalize: str = "none"
    dropout: float = Field(0.0, ge=0, lt=1)
    user_embedding: bool = True

    epochs: int = Field(2, ge=1)
    batch_size: int = Field(2048, ge=1)
    learning_rate: float = Field(4e-3, gt=0)
    table_learning_rate: float | None = Field(None, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float | None = Field(10.0, gt=0)
    patience: int = Field(2, ge=1)
    sparse_tables: bool = True
    seed: int = Field(0, ge=0)

    precision: Precision = "fp32"
    accelerator: Accelerator = "auto"
    backend: str = "auto"
    workers: int = Field(0, ge=0)
    output: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sequence == "positive" and self.negative_share is not None:
            raise ValueError(
                f"negative_share is {self.negative_share} with sequence 'positive', expected none: "
                "leave it out, or take sequence 'mixed'"
            )
        if self.table_learning_rate is not None and not self.sparse_tables:
            raise ValueError(
                f"table_learning_rate is {self.table_learning_rate} with sparse_tables false, which trains the tables "
                "at learning_rate; expected none: leave it out, or take sparse_tables"
            )
        if self.precision == "fp16" and self.accelerator == "cpu":
            raise ValueError("precision is 'fp16' with accelerator 'cpu', which has none: take 'bf16'")
        self._check_backend()
        self._check_backbone()
        return self

    def _check_backend(self) -> None:
        if self.backend != "auto":  # known to be right, and torch is not needed to say so
            from mixpol_kernels.backend import BACKENDS

            if self.backend not in BACKENDS:
                raise ValueError(f"backend is {self.backend!r}, expected one of {('auto', *BACKENDS)}: mend the name")

    def _check_backbone(self) -> None:
        shipped = _shipped(self.backbone)
        if all(getattr(self, name) == shipped[name] for name in _OF_CONSTRUCTORS):
            return  # known to be right, as above
        import torch

        from mixpol_models.backbones import BACKBONES, build_backbone, own_options

        settings = type(self).model_fields
        own = {name for backbone in BACKBONES for name in own_options(backbone)}.difference(own_options(self.backbone))
        for name in settings:
            if name in own and getattr(self, name) != settings[name].default:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, which backbone {self.backbone!r} does not take: leave it out"
                )
        offered = tuple(name for name in own_options(self.backbone) if name not in (*settings, "max_length"))
        for name in self.options:
            if name not in offered:
                raise ValueError(
                    f"options has {name!r}, which backbone {self.backbone!r} does not take there, expected some of "
                    f"{offered}: mend the name or leave it out"
                )
        # Built once without memory, so that a wrong value is found before the data are read.
        try:
            with torch.device("meta"):
                build_backbone(self.backbone, n_items=1, n_users=1, n_contexts=1, **self.backbone_options())
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"backbone {self.backbone!r} with options {self.options}: {error}") from None

    @property
    def name(self) -> str:
        """Short name of the run."""
        return f"{self.backbone}-{self.sequence}-{self.fusion}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        """Where the run is saved, unless `output` is None and an earlier run is there."""
        return Path(self.output) if self.output else Path("mixpol_runs") / self.name

    @property
    def history(self) -> SequenceConfig:
        """The settings of histories."""
        from mixpol_models.data import SequenceConfig

        return SequenceConfig(kind=self.sequence, budget=self.budget, negative_share=self.negative_share)

    def backbone_options(self) -> dict[str, Any]:
        """Arguments of the backbone beside the table sizes."""
        from mixpol_models.backbones import BackboneOptions, own_options

        taken = [field.name for field in fields(BackboneOptions)] + list(own_options(self.backbone))
        chosen = {name: getattr(self, name) for name in taken if name in type(self).model_fields}
        if "max_length" in taken:
            chosen["max_length"] = self.budget
        return chosen | {"sparse": self.sparse_tables} | self.options

    def to_yaml(self) -> str:
        """The whole configuration; `load_config` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, default_flow_style=None)


def load_config(
    file: str | Path | None = None,
    flags: Mapping[str, Any] | None = None,
    *,
    saved: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Defaults, overridden by a YAML file, overridden by flags.

    Args:
        file: path of a YAML file, or the name of one that comes with the package ("din"); None for the defaults.
        flags: values by name; None means "not given".
        saved: settings of an earlier run instead of a file, from `saved_settings`.

    Raises:
        ValueError: no such file, not a mapping, unknown keys, or values out of range; each is named.
    """
    origin, settings = ("flags", dict(saved or {})) if file is None else (str(file), read(file))
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        return TrainConfig(**{**settings, **given})
    except ValidationError as error:
        hint = "; `mixpol train --print-config` shows all"
        raise ValueError(f"{origin}: {explain(error, TrainConfig, hint)}") from None


def checkpoint_of(resume: str | Path) -> Path:
    """The checkpoint to go on from: `resume` itself, or the last one of the run in that folder.

    Raises:
        ValueError: there is none.
    """
    file = Path(resume) / LAST if Path(resume).is_dir() else Path(resume)
    if not file.is_file():
        raise ValueError(f"resume is {str(resume)!r}, where there is no checkpoint; expected a file or a run's folder")
    return file


@cache
def _shipped(backbone: str) -> dict[str, Any]:
    """The settings in `_OF_CONSTRUCTORS` of the file that comes with a backbone."""
    given, known = read(backbone), TrainConfig.model_fields
    values = {name: given.get(name, known[name].get_default(call_default_factory=True)) for name in _OF_CONSTRUCTORS}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
