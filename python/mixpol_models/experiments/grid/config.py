"""`ExperimentConfig`: data, settings and the grid of runs of one experiment."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mixpol_models.configuration import explain, load, shipped
from mixpol_models.experiments.grid.ablations import ABLATIONS, ON_NEGATIVES, Ablation
from mixpol_models.experiments.variants import VARIANTS, Variant
from mixpol_models.training.config import TrainConfig

VARIANT, ABLATION = "variant", "ablation"
_FOLDER = "experiments"
# What the variant, the data or the machine decides, and a grid may not.
_NOT_AXES = {"sequence", "fusion", "data", "output", "workers"}
# What changes neither data nor model: two runs that differ here alone are the same run.
_NOT_IN_KEY = {"data", "output", "workers"}
# Counts up when a row would come out otherwise for the same configuration.
_PROTOCOL = 1


class Days(BaseModel):
    """First and last day (yyyymmdd) of each split of KuaiRand-Pure; see `DateSplit`. Without `valid` no epoch is chosen
    by validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    train: tuple[int, int]
    valid: tuple[int, int] | None = None
    test: tuple[int, int]


class Planted(BaseModel):
    """Arguments of `planted_log`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    seed: int = 0
    effect: bool = True
    n_users: int = Field(1000, ge=1)
    length: int = Field(40, ge=10)
    n_groups: int = Field(4, ge=2)
    items_per_group: int = Field(5, ge=1)


class ExperimentConfig(BaseModel):
    """One experiment.

    Attributes:
        name: in reports.
        data: as in `mixpol_models.data.resolve`.
        days: split of KuaiRand-Pure, which is then looked for in `data`, MIXPOL_DATA and the cache.
        planted: draw this log instead of reading one.
        grid: values by axis; the runs are all combinations. Axes: "variant" (names of `VARIANTS`), "ablation" (names of
            `ABLATIONS`) and every field of `TrainConfig` but those that the variant and the data decide.
        train: settings of all runs, fields of `TrainConfig`.
        backbones: settings by backbone, which go before `train`.
        resamples: of the users, behind every interval.
        strata_resamples: the same within strata.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: str | None = None
    days: Days | None = None
    planted: Planted | None = None
    grid: dict[str, list[Any]]
    train: dict[str, Any] = {}
    backbones: dict[str, dict[str, Any]] = {}
    resamples: int = Field(400, ge=20)
    strata_resamples: int = Field(100, ge=20)

    @model_validator(mode="after")
    def _check(self) -> Self:
        axes = (VARIANT, ABLATION, *(name for name in TrainConfig.model_fields if name not in _NOT_AXES))
        for name, values in self.grid.items():
            if name not in axes:
                raise ValueError(f"grid has the axis {name!r}, expected one of {axes}: mend the name")
            if not values or any(values.count(value) > 1 for value in values):
                raise ValueError(f"grid: {name} is {values}, expected one or more different values")
        for place, settings in (("train", self.train), *((f"backbones: {b}", s) for b, s in self.backbones.items())):
            for name in settings:
                if name not in axes or name in (VARIANT, ABLATION):
                    raise ValueError(f"{place}: {name!r} is no setting here, expected one of {axes[2:]}: mend the name")
                if place != "train" and name in self.grid:
                    raise ValueError(f"{place}: {name!r} is an axis of the grid too: leave it out of one of them")
        for value in self.grid.get(VARIANT, []):
            variant_named(value)
        for value in self.grid.get(ABLATION, []):
            if value not in ABLATIONS:
                raise ValueError(f"grid: ablation is {value!r}, expected one of {ABLATIONS}: mend the name")
        if self.planted is not None and (self.data is not None or self.days is not None):
            raise ValueError("planted is given together with data or days, expected one source: leave the others out")
        return self

    def with_data(self, data: str) -> ExperimentConfig:
        """A copy of the experiment with other data.

        Raises:
            ValueError: its log is drawn, so that it reads no data.
        """
        if self.planted is not None:
            raise ValueError(
                f"data was {data!r}, and the experiment {self.name!r} draws its own log (planted); expected no data: "
                "leave --data out, or take an experiment that reads some"
            )
        return self.model_copy(update={"data": data})

    def only(self, choices: Mapping[str, Sequence[str]]) -> ExperimentConfig:
        """A part of the grid: on each axis named the values given, as text. Seeds of the rest stay what they are."""
        grid = dict(self.grid)
        for axis, wanted in choices.items():
            if axis not in grid:
                raise ValueError(f"--only names the axis {axis!r}, expected one of {tuple(grid)}: mend the name")
            texts = {str(value): value for value in grid[axis]}
            for value in wanted:
                if value not in texts:
                    raise ValueError(f"--only is {axis}={value}, expected one of {tuple(texts)}: mend the value")
            grid[axis] = [texts[value] for value in dict.fromkeys(wanted)]
        return self.model_copy(update={"grid": grid})

    def runs(self) -> list[Run]:
        """All runs, each once: what a setting does not touch is not repeated for it.

        A positive-only history has no share of negatives, and no ablation of negatives reaches it.

        Raises:
            ValueError: a combination is no valid `TrainConfig`.
        """
        found: dict[tuple[str, str], Run] = {}
        for values in itertools.product(*self.grid.values()):
            axes = dict(zip(self.grid, values, strict=True))
            variant = variant_named(axes.pop(VARIANT, "mixed + TAPF"))
            ablation = axes.pop(ABLATION, "none")
            backbone = axes.get("backbone", self.train.get("backbone", TrainConfig.model_fields["backbone"].default))
            settings = {**self.train, **self.backbones.get(backbone, {}), **axes}
            settings |= {"sequence": variant.sequence, "fusion": variant.fusion}
            if variant.sequence == "positive":
                settings["negative_share"] = None
                ablation = "none" if ablation in ON_NEGATIVES else ablation
            try:
                config = TrainConfig(**settings)
            except ValidationError as error:
                raise ValueError(
                    f"{self.name}: the run {axes}, {variant.name}: {explain(error, TrainConfig)}"
                ) from None
            found.setdefault((config.model_dump_json(), ablation), Run(config, variant.name, ablation))
        return list(found.values())


@dataclass(frozen=True)
class Run:
    """One point of the grid.

    Attributes:
        config: of the training; data and output are left open.
        variant: name of the sequence and fusion.
        ablation: what is done to the histories.
    """

    config: TrainConfig
    variant: str
    ablation: Ablation

    def key(self, fingerprint: str, experiment: ExperimentConfig) -> str:
        """16 hexadecimal digits that change with any setting or the data."""
        return digest(
            {
                "protocol": _PROTOCOL,
                "train": self.config.model_dump(mode="json", exclude=_NOT_IN_KEY),
                "ablation": self.ablation,
                "data": fingerprint,
                "resamples": [experiment.resamples, experiment.strata_resamples],
            }
        )

    @property
    def label(self) -> str:
        """For progress and errors."""
        spoiled = "" if self.ablation == "none" else f", {self.ablation}"
        return f"{self.config.backbone}, {self.variant}, budget {self.config.budget}, seed {self.config.seed}{spoiled}"


def digest(value: Any) -> str:
    """16 hexadecimal digits of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def variant_named(name: str) -> Variant:
    """A member of `VARIANTS`; case and spaces do not matter ("mixed+tapf")."""

    def plain(text: str) -> str:
        return text.replace(" ", "").lower()

    for variant in VARIANTS:
        if plain(variant.name) == plain(str(name)):
            return variant
    raise ValueError(f"variant is {name!r}, expected one of {tuple(v.name for v in VARIANTS)}: mend the name")


def load_experiment(file: str | Path) -> ExperimentConfig:
    """Reads an experiment.

    Args:
        file: path of a YAML file, or the name of one that comes with the package ("kuairand_pure").

    Raises:
        ValueError: no such file, not YAML, unknown keys or values out of range; each is named.
    """
    return load(ExperimentConfig, file, _FOLDER)


def shipped_experiments() -> dict[str, Any]:
    """The experiments of the package, by name."""
    return shipped(_FOLDER)
