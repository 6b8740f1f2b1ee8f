"""What a training run can be told: defaults, then a YAML file, then flags.

Imports neither torch nor Lightning, so that `mixpol train --print-config` is quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

if TYPE_CHECKING:
    from mixpol_models.data import SequenceConfig

BackboneName = Literal[
    "din", "din_two_lists", "din_action", "transact", "transformer", "onetrans", "hyformer", "mixformer"
]
Fusion = Literal["none", "bias", "tapf"]
Kind = Literal["mixed", "positive"]
Precision = Literal["fp32", "bf16", "fp16"]
Accelerator = Literal["auto", "cpu", "gpu"]
Backend = Literal["auto", "cpu", "reference"]
# Settings of their own, from when DIN was the only backbone.
_OF_DIN = ("attention_units", "activation", "normalize")
# What a backbone's constructor may refuse beyond the ranges here.
_OF_BACKBONE = ("options", "embedding_dim", "tower_units", "user_embedding", *_OF_DIN)
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
        embedding_dim, tower_units, dropout, user_embedding: see `Backbone`.
        attention_units, activation, normalize: see `DIN`; of the backbones whose name begins with "din".
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
        backend: of the attention.
        workers: processes that build batches; 0 builds them in this one.
        output: folder of the run, without an earlier one; None is `mixpol_runs/<name>`, or the first of <name>-2,
            <name>-3, ... that is not there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str | None = None
    train_on_history: bool = True
    history_share: float = Field(1.0, gt=0, le=1)

    sequence: Kind = "mixed"
    budget: int = Field(50, ge=1)
    negative_share: float | None = Field(None, ge=0, le=1)
    fusion: Fusion = "tapf"

    backbone: BackboneName = "din"
    options: dict[str, Any] = Field(default_factory=dict)
    embedding_dim: int = Field(16, ge=1)
    attention_units: tuple[int, ...] = Field((64,), min_length=1, max_length=3)
    tower_units: tuple[int, ...] = (128, 64)
    activation: Literal["relu", "prelu", "leaky_relu", "sigmoid", "silu", "tanh", "gelu", "dice", "dice_row"] = "relu"
    normalize: Literal["none", "softmax", "sigmoid"] = "none"
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
    backend: Backend = "auto"
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
        self._check_backbone()
        return self

    def _check_backbone(self) -> None:
        shipped = _of_backbone(self.backbone)
        if all(getattr(self, name) == shipped[name] for name in _OF_BACKBONE):
            return  # known to be right, and torch is not needed to say so
        import torch

        from mixpol_models.backbones import build_backbone, own_options

        taken = own_options(self.backbone)
        for name in _OF_DIN:
            default = type(self).model_fields[name].default
            if name not in taken and getattr(self, name) != default:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, which backbone {self.backbone!r} does not take: leave it out"
                )
        offered = tuple(name for name in taken if name not in (*_OF_DIN, "max_length"))
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
        """The data side's part."""
        from mixpol_models.data import SequenceConfig

        return SequenceConfig(kind=self.sequence, budget=self.budget, negative_share=self.negative_share)

    def backbone_options(self) -> dict[str, Any]:
        """What the backbone takes beside the table sizes."""
        from mixpol_models.backbones import own_options

        taken = own_options(self.backbone)
        names = ("embedding_dim", "tower_units", "fusion", "dropout", "user_embedding", "backend")
        chosen = {name: getattr(self, name) for name in (*names, *(name for name in _OF_DIN if name in taken))}
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
    origin, settings = ("flags", dict(saved or {})) if file is None else (str(file), _read(file))
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        return TrainConfig(**{**settings, **given})
    except ValidationError as error:
        raise ValueError(f"{origin}: {'; '.join(_explain(item) for item in error.errors())}") from None


def checkpoint_of(resume: str | Path) -> Path:
    """The checkpoint to go on from: `resume` itself, or the last one of the run in that folder.

    Raises:
        ValueError: there is none.
    """
    file = Path(resume) / LAST if Path(resume).is_dir() else Path(resume)
    if not file.is_file():
        raise ValueError(f"resume is {str(resume)!r}, where there is no checkpoint; expected a file or a run's folder")
    return file


def saved_settings(resume: str | Path) -> dict[str, Any]:
    """The settings of the run that a checkpoint or a run's folder is of, but for its place.

    Raises:
        ValueError: there is no checkpoint, or what is there is not readable.
    """
    file = checkpoint_of(resume)
    if (file.parent / CONFIG).is_file():
        settings = _read(file.parent / CONFIG)
    else:  # a checkpoint that was moved
        from mixpol_models.training.checkpoints import read_checkpoint

        settings = read_checkpoint(file)["hyper_parameters"]["config"]
    if not settings:
        raise ValueError(f"{file.parent / CONFIG} is empty, expected the settings of the run: give them with --config")
    return settings | {"output": None}


@cache
def _of_backbone(backbone: str) -> dict[str, Any]:
    """The settings in `_OF_BACKBONE` of the backbone's shipped file."""
    given = yaml.safe_load(_shipped()[backbone].read_text(encoding="utf-8"))
    fields = TrainConfig.model_fields
    values = {name: given.get(name, fields[name].get_default(call_default_factory=True)) for name in _OF_BACKBONE}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _read(file: str | Path) -> dict[str, Any]:
    path, shipped = Path(file), _shipped()
    if path.is_file():
        source: Any = path
    elif str(file) in shipped:
        source = shipped[str(file)]
    else:
        raise ValueError(f"config is {str(file)!r}, where there is no file; expected a path or one of {tuple(shipped)}")
    try:
        settings = yaml.safe_load(source.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not readable as text ({error.reason} at byte {error.start})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not readable as YAML ({' '.join(str(error).split())})") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"{file}: holds a {type(settings).__name__}, expected 'name: value' lines")
    return settings


def _shipped() -> dict[str, Any]:
    folder = resources.files("mixpol_models") / "configs"
    return {entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}


def _explain(error: Mapping[str, Any]) -> str:
    """One pydantic error in the house's words: the argument, what it was, what was expected."""
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        close = get_close_matches(name, TrainConfig.model_fields, n=1)
        return f"{name!r} is no setting" + (
            f": did you mean {close[0]!r}?" if close else "; `mixpol train --print-config` shows all"
        )
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    return f"{name} is {error['input']!r}, expected {message.removeprefix('Input should be ')}"
