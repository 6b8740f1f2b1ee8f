"""Rows of a store, gathered: seeds of one model together, and each model against positive-only and the rates."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mixpol_models.experiments.bootstrap import Difference
from mixpol_models.experiments.compare import auc_ratio, rela_impr
from mixpol_models.experiments.grid.config import ExperimentConfig
from mixpol_models.experiments.significance import paired_t, sign_flip
from mixpol_models.experiments.variants import BASELINE, VARIANTS

ALL = "all backbones"
# Settings that have a place of their own, or that the variant decides.
_NAMED = {"backbone", "sequence", "fusion", "budget", "seed"}
_ORDER = {variant.name: i for i, variant in enumerate(VARIANTS)}


@dataclass(frozen=True, eq=False)
class Report:
    """Runs and rate baselines read from a store.

    Attributes:
        experiment: of the store.
        runs: finished runs of its grid, columns of `store.SCHEMA`.
        rates: products of rates, the hardest last.
        failed: runs that ended with an error.
        expected: runs of the whole grid.
    """

    experiment: ExperimentConfig
    runs: pl.DataFrame
    rates: pl.DataFrame
    failed: pl.DataFrame
    expected: int


@dataclass(frozen=True)
class Gap(Difference):
    """A difference of AUCs over seeds.

    Attributes:
        p: of a test over seeds; NaN without one.
        seeds: pairs behind it.
    """

    p: float
    seeds: int


@dataclass(frozen=True, eq=False)
class Cell:
    """One model: all of its seeds.

    Attributes:
        backbone, variant: of it.
        extra: other settings in which the grid's models differ, in words.
        runs: one row per seed, ascending.
        relative: RelaImpr and plain ratio against positive-only, %, means over seeds; None for positive-only itself.
        gap, to_rates: AUC minus positive-only of the same seeds, and minus the hardest rate baseline.
    """

    backbone: str
    variant: str
    extra: str
    runs: pl.DataFrame
    relative: tuple[float, float] | None
    gap: Gap | None
    to_rates: Gap | None

    @property
    def label(self) -> str:
        return ", ".join(part for part in (self.backbone, self.variant, self.extra) if part)

    def mean(self, column: str) -> float | None:
        """Over seeds."""
        return self.runs[column].mean()

    def half_range(self, column: str) -> float:
        """Half of the range over seeds."""
        return (self.runs[column].max() - self.runs[column].min()) / 2


def cells(report: Report, runs: pl.DataFrame) -> list[Cell]:
    """The models among some runs, by backbone, then variant; behind them the means over backbones, if there are
    several.

    A gap needs the same seeds of both models; seeds that one of them lacks are left out of it.

    Args:
        report: rates are taken from it.
        runs: of one budget.
    """
    runs = with_extra(runs)
    hardest = report.rates.row(-1, named=True) if report.rates.height else None
    order = list(dict.fromkeys(report.experiment.grid.get("backbone", []))) or sorted(runs["backbone"].unique())
    found: list[Cell] = []
    for (backbone, variant, extra), group in runs.group_by("backbone", "variant", "extra"):
        mine = group.sort("seed")
        base = baseline_of(runs, mine)
        relative = gap = None
        if base is not None:
            mine_too, base = same_seeds(mine, base)
            if mine_too.height:
                pairs = list(zip(mine_too["auc"], base["auc"], strict=True))
                relative = tuple(float(np.mean([f(*pair) for pair in pairs])) for f in (rela_impr, auc_ratio))
                gap = gap_of(mine_too, base, paired_t)
        against = None
        if hardest is not None:
            draws = resamples(mine) - np.array(hardest["auc_resamples"])
            against = _gap([auc - hardest["auc"] for auc in mine["auc"]], draws, float("nan"))
        found.append(Cell(backbone, variant, extra, mine, relative, gap, against))
    found.sort(key=lambda cell: (order.index(cell.backbone), cell.extra, _ORDER[cell.variant]))
    return found + _over_backbones(found)


def with_extra(runs: pl.DataFrame) -> pl.DataFrame:
    """Adds the column "extra": the settings, but for backbone, variant, budget and seed, in which the runs differ.

    A setting that is tied to the backbone or the variant is theirs, and is not told.
    """
    settings = [json.loads(text) for text in runs["settings"]]
    ablations = runs["ablation"].to_list()
    owners = list(zip(runs["backbone"], runs["variant"], strict=True))
    told: list[list[str]] = [[] for _ in settings]
    names = [name for name in (settings[0] if settings else {}) if name not in _NAMED]
    columns = {name: [str(one[name]) for one in settings] for name in names} | {"": ablations}
    for name, values in columns.items():
        by_owner: dict[tuple[str, str], set[str]] = {}
        for owner, value in zip(owners, values, strict=True):
            by_owner.setdefault(owner, set()).add(value)
        if all(len(some) == 1 for some in by_owner.values()):
            continue
        for place, value in zip(told, values, strict=True):
            if value not in ("None", "none"):
                place.append(f"{name.replace('_', ' ')} {value}".strip())
    return runs.with_columns(extra=pl.Series([", ".join(parts) for parts in told], dtype=pl.String))


def baseline_of(runs: pl.DataFrame, mine: pl.DataFrame) -> pl.DataFrame | None:
    """Positive-only of the same backbone, settings and budget; of whatever ablation or share, which it has not."""
    one = mine.row(0, named=True)
    if one["variant"] == BASELINE.name:
        return None
    free = {"sequence", "fusion", "negative_share", "seed"}

    def plain(text: str) -> str:
        return json.dumps({name: value for name, value in json.loads(text).items() if name not in free})

    chosen = runs.filter((pl.col("variant") == BASELINE.name) & (pl.col("ablation") == "none"))
    wanted = plain(one["settings"])
    chosen = chosen.filter(pl.Series([plain(text) == wanted for text in chosen["settings"]], dtype=pl.Boolean))
    return chosen.sort("seed") if chosen.height else None


def resamples(runs: pl.DataFrame) -> NDArray[np.float64]:
    """[R]: AUC under each resample of the users, averaged over runs."""
    return np.mean([np.array(values, float) for values in runs["auc_resamples"]], axis=0)


def gap_of(mine: pl.DataFrame, base: pl.DataFrame, test: Callable[[Sequence[float]], float] = paired_t) -> Gap:
    """Rows of the same length, paired in order."""
    differences = (mine["auc"] - base["auc"]).to_list()
    return _gap(differences, resamples(mine) - resamples(base), test(differences))


def _gap(differences: Sequence[float], draws: NDArray, p: float) -> Gap:
    return Gap(**vars(Difference.of(float(np.mean(differences)), draws)), p=p, seeds=len(differences))


def pooled(mine: NDArray, base: NDArray) -> Gap:
    """The gap of two [1 + R]: an AUC as it is, then under each resample."""
    return _gap([float(mine[0] - base[0])], mine[1:] - base[1:], float("nan"))


def same_seeds(a: pl.DataFrame, b: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The runs of both whose seed the other has too, ascending."""
    both = set(a["seed"]) & set(b["seed"])
    return a.filter(pl.col("seed").is_in(both)).sort("seed"), b.filter(pl.col("seed").is_in(both)).sort("seed")


def _over_backbones(found: Sequence[Cell]) -> list[Cell]:
    """Per variant and extra the mean over the backbones that have it, and a test over all their seeds."""
    backbones = {cell.backbone for cell in found}
    if len(backbones) < 2:
        return []
    over = []
    for variant, extra in dict.fromkeys((cell.variant, cell.extra) for cell in found):
        some = [cell for cell in found if (cell.variant, cell.extra) == (variant, extra)]
        if {cell.backbone for cell in some} != backbones:
            continue
        runs = pl.concat([cell.runs for cell in some])
        relative = gap = None
        if all(cell.gap is not None for cell in some):
            everything = pl.concat([cell.runs for cell in found])
            pairs = [same_seeds(cell.runs, baseline_of(everything, cell.runs)) for cell in some]
            mine, base = (pl.concat(side) for side in zip(*pairs, strict=True))
            gap = gap_of(mine, base, sign_flip)
            relative = tuple(float(np.mean([cell.relative[i] for cell in some])) for i in (0, 1))
        over.append(Cell(ALL, variant, extra, runs, relative, gap, None))
    return over
