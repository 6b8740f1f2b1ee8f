"""`mixpol experiment analyse`: one question to a store, answered by a table and a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mixpol_models.experiments.bootstrap import Difference
from mixpol_models.experiments.grid.strata import ACTIVITY, COLD
from mixpol_models.experiments.report import read_report
from mixpol_models.experiments.report_plots import Series, plot_series
from mixpol_models.experiments.rows import Gap, Report, baseline_of, gap_of, pooled, resamples, same_seeds
from mixpol_models.experiments.tables import NONE, ResultTable
from mixpol_models.experiments.variants import BASELINE, VARIANTS
from mixpol_models.files import check_output_folder, write_atomically

_INTERVAL = "[95 % interval]: paired bootstrap over users, AUCs averaged over seeds."
_ORDER = {variant.name: i for i, variant in enumerate(VARIANTS)}
_LEAST_SHARE = 0.01  # of the rows in a stratum of a picture: the intervals of smaller ones hide the others
Answer = tuple[ResultTable, list[Series], str, str]


def analyse(name: str, store: Path, output: Path) -> list[Path]:
    """Writes NAME.md and NAME.png.

    Args:
        name: a key of `ANALYSES`.
        store: folder of a `ResultStore`.
        output: folder, made if it is not there.

    Raises:
        ValueError: no such analysis, no store, or a store without what the analysis needs.
    """
    if name not in ANALYSES:
        raise ValueError(f"analysis is {name!r}, expected one of {tuple(ANALYSES)}: mend the name")
    check_output_folder(output)
    report = read_report(store)
    table, series, x, y = ANALYSES[name](report)
    output.mkdir(parents=True, exist_ok=True)
    text, picture = output / f"{name}.md", output / f"{name}.png"
    plot_series(series, picture, f"{report.runs['data'][0]}: {table.title}", x, y)
    missing = report.expected - report.runs.height
    state = f"**{missing} of {report.expected} runs are missing.**\n\n" if missing else ""
    write_atomically(text, f"{state}{table.markdown()}\n![{name}]({picture.name})\n")
    return [text, picture]


def negative_share(report: Report) -> Answer:
    """AUC against the share r of negatives in the budget, minus positive-only of the same budget."""
    runs = report.runs.filter(pl.col("negative_share").is_not_null())
    _need(runs["negative_share"].n_unique() > 1, "two or more values of negative_share")
    rows, series = [], []
    for (backbone, variant, budget), group in _groups(runs, "backbone", "variant", "budget"):
        points = []
        for (share,), some in _groups(group, "negative_share"):
            gap = _to_baseline(report, some)
            points.append((share, gap))
            rows.append((f"{backbone}, {variant}, budget {budget}", f"{share:g}", _auc(some), gap.text))
        series.append(_series(f"{backbone}, budget {budget}", variant, points))
    columns = ("model", "r", "AUC", "AUC − positive-only")
    return (
        ResultTable("Share of negatives in the history", columns, tuple(rows), (_INTERVAL,)),
        series,
        "share r of negatives in the budget",
        "AUC minus positive-only",
    )


def length(report: Report) -> Answer:
    """AUC against the budget, and its slope: AUC per doubling of the budget, by least squares."""
    runs = report.runs
    _need(runs["budget"].n_unique() > 2, "three or more values of budget")
    rows, series = [], []
    slopes: dict[tuple[str, str], NDArray] = {}
    for (backbone, variant), group in _groups(runs, "backbone", "variant"):
        budgets = sorted(group["budget"].unique())
        steps = np.log2(budgets)
        steps = (steps - steps.mean()) / ((steps - steps.mean()) ** 2).sum()
        parts = [group.filter(pl.col("budget") == budget) for budget in budgets]
        # Element 0 is of the rows as they are, the others of the resamples.
        curve = np.stack([np.append(part["auc"].mean(), resamples(part)) for part in parts])
        slope = slopes[backbone, variant] = steps @ curve
        base = slopes.get((backbone, BASELINE.name))
        against = NONE if base is None or variant == BASELINE.name else _interval(slope - base)
        cells = (f"{backbone}, {variant}", *(f"{value:.4f}" for value in curve[:, 0]), _interval(slope), against)
        rows.append(cells)
        low, high = np.nanquantile(curve[:, 1:], [0.025, 0.975], axis=1)
        mean, low, high = (values.tolist() for values in (curve[:, 0], low, high))
        series.append(Series(variant, variant, budgets, mean, low, high, backbone))
    budgets = sorted(runs["budget"].unique())
    columns = ("model", *(str(budget) for budget in budgets), "slope", "slope − positive-only's")
    notes = ("slope: AUC per doubling of the budget, least squares over all budgets.", _INTERVAL)
    return ResultTable("AUC against the length budget", columns, tuple(rows), notes), series, "length budget", "AUC"


def attention(report: Report) -> Answer:
    """Share of the attention that falls on negatives, with and without the marks."""
    runs = report.runs.filter(pl.col("attention_on_negatives").is_not_null() & (pl.col("variant") != BASELINE.name))
    _need(runs.height > 0, "runs of a backbone that tells its attention (`history_attention`)")
    silent = sorted(set(report.runs["backbone"]) - set(runs["backbone"]))
    rows, series = [], []
    for (backbone, budget), group in _groups(runs, "backbone", "budget"):
        parts = list(_groups(group, "variant"))
        share = {variant: part["attention_on_negatives"].to_list() for (variant,), part in parts}
        events = group["negatives_in_history"].mean()
        cells = [f"{100 * np.mean(share[v.name]):.1f} %" if v.name in share else NONE for v in VARIANTS[1:]]
        rows.append((f"{backbone}, budget {budget}", f"{100 * events:.1f} %", *cells))
        means = [float(np.mean(values)) for values in share.values()]
        lows, highs = ([f(values) for values in share.values()] for f in (min, max))
        series.append(Series(f"{backbone}, budget {budget}", None, list(share), means, lows, highs))
    notes = [
        "Per test example |attention| of its negatives over that of all its events, averaged over at most 8,192 "
        "examples and over seeds; events: share of negatives among the history's events. Bars: range over seeds."
    ]
    if silent:
        notes.append(f"Without attention to tell: {', '.join(silent)}.")
    columns = ("model", "events", *(variant.name for variant in VARIANTS[1:]))
    title = "Share of attention on negatives"
    return ResultTable(title, columns, tuple(rows), tuple(notes)), series, "", "share of attention on negatives"


def activity(report: Report) -> Answer:
    """Gains by how many positives the user has before the row."""
    return _by_strata(report, ACTIVITY, "Gain by user activity")


def cold_items(report: Report) -> Answer:
    """Gains by how often the target item was trained on."""
    return _by_strata(report, COLD, "Gain by training rows of the item")


def ablations(report: Report) -> Answer:
    """AUC of models with ablated negatives minus that of the same model with whole histories."""
    _need(report.runs["ablation"].n_unique() > 1, "two or more ablations, one of them 'none'")
    rows, series = [], []
    for (backbone, variant, budget), group in _groups(report.runs, "backbone", "variant", "budget"):
        whole = group.filter(pl.col("ablation") == "none")
        _need(whole.height > 0, "the ablation 'none' of every model")
        rows.append((f"{backbone}, {variant}, budget {budget}", "none", _auc(whole), NONE))
        points = []
        for (ablation,), some in _groups(group.filter(pl.col("ablation") != "none"), "ablation"):
            gap = gap_of(*same_seeds(some, whole))
            points.append((ablation, gap))
            rows.append((f"{backbone}, {variant}, budget {budget}", ablation, _auc(some), gap.text))
        series.append(_series(f"{backbone}, budget {budget}", variant, points))
    columns = ("model", "ablation", "AUC", "AUC − whole histories")
    notes = (_INTERVAL, "A backbone without positions cannot notice a shuffled order.")
    table = ResultTable("Spoiled negatives", columns, tuple(rows), notes)
    return table, series, "", "AUC minus whole histories"


ANALYSES: dict[str, Callable[[Report], Answer]] = {
    "negative-share": negative_share,
    "length": length,
    "attention": attention,
    "activity": activity,
    "cold-items": cold_items,
    "ablations": ablations,
}


def _by_strata(report: Report, kind: str, title: str) -> Answer:
    """Per stratum the AUC of positive-only and every variant's gain, over all backbones and per backbone."""
    runs = report.runs.filter(pl.col("ablation") == "none")
    _need(BASELINE.name in runs["variant"] and runs["variant"].n_unique() > 1, "positive-only and another variant")
    rows, series = [], []
    for (budget, backbone), group in _groups(runs, "budget", "backbone"):
        base = group.filter(pl.col("variant") == BASELINE.name)
        if base.is_empty():
            continue
        for (variant,), some in _groups(group.filter(pl.col("variant") != BASELINE.name), "variant"):
            mine, other = (_stratum_aucs(part, kind) for part in same_seeds(some, base))
            points, every = [], sum(n for n, _, _ in mine.values())
            for name, (n, positives, own) in mine.items():
                if name not in other:
                    continue
                gap = pooled(own, other[name][2])
                if n >= _LEAST_SHARE * every:
                    points.append((name, gap))
                model = f"{backbone}, {variant}, budget {budget}"
                rows.append((model, name, f"{n:,}", f"{positives / n:.3f}", f"{other[name][2][0]:.4f}", gap.text))
            series.append(_series(f"{backbone}, budget {budget}", variant, points))
    columns = ("model", kind, "rows", "positive", "AUC, positive-only", "AUC − positive-only")
    draws = report.experiment.strata_resamples
    notes = (
        f"[95 % interval]: paired bootstrap over users, {draws} resamples, AUCs averaged over seeds. Strata of less "
        f"than {_LEAST_SHARE:.0%} of the rows are in the table only.",
    )
    return ResultTable(title, columns, tuple(rows), notes), series, kind, "AUC minus positive-only"


def _stratum_aucs(runs: pl.DataFrame, kind: str) -> dict[str, tuple[int, int, NDArray]]:
    """Per stratum rows, positives and AUC: [1 + R], as it is and under resamples, averaged over seeds.

    Strata with one class have no AUC and are left out.
    """
    parts: dict[str, list[NDArray]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for strata in runs["strata"].to_list():
        for part in strata:
            if part["kind"] == kind and part["auc"] is not None:
                parts.setdefault(part["name"], []).append(np.array([part["auc"], *part["resamples"]]))
                sizes[part["name"]] = part["rows"], part["positives"]
    return {name: (*sizes[name], np.mean(values, axis=0)) for name, values in parts.items()}


def _to_baseline(report: Report, some: pl.DataFrame) -> Gap:
    base = baseline_of(report.runs, some)
    _need(base is not None, "positive-only runs of the same backbone, budget and settings")
    return gap_of(*same_seeds(some, base))


def _groups(frame: pl.DataFrame, *names: str) -> list[tuple[tuple, pl.DataFrame]]:
    """Groups in order of their keys, variants in that of `VARIANTS`, each sorted by seed."""

    def place(key: tuple) -> tuple:
        return tuple(
            _ORDER.get(value, value) if name == "variant" else value for name, value in zip(names, key, strict=True)
        )

    groups = [(key, group.sort("seed")) for key, group in frame.group_by(*names)]
    return sorted(groups, key=lambda item: place(item[0]))


def _series(panel: str, variant: str, points: Sequence[tuple[float | str, Gap]]) -> Series:
    x = [value for value, _ in points]
    means, lows, highs = ([getattr(gap, name) for _, gap in points] for name in ("mean", "low", "high"))
    return Series(variant, variant, x, means, lows, highs, panel)


def _auc(runs: pl.DataFrame) -> str:
    return f"{runs['auc'].mean():.4f}"


def _interval(values: NDArray) -> str:
    return Difference.of(values[0], values[1:]).text


def _need(there: bool, what: str) -> None:
    if not there:
        raise ValueError(f"store lacks {what}, expected for this analysis: add them to the grid and run it again")
