"""Tables of a store: seeds, users, and the published values beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mixpol_models.experiments.tables import NONE, ResultTable
from mixpol_models.files import check_output_file, write_atomically
from mixpol_models.pnfrec.evaluation import TOP
from mixpol_models.pnfrec.intervals import Interval, user_intervals
from mixpol_models.pnfrec.published import METRICS, published
from mixpol_models.pnfrec.store import Record, Store
from mixpol_models.pnfrec.variants import VARIANTS

BASELINES = ("sasrec_p", "sasrec")  # positives only, and everything: what the paper compares with
_ALL = ("HR_p", "HR_n", "ΔHR", "NDCG_p", "NDCG_n", "ΔNDCG", "MRR_p", "MRR_n", "ΔMRR", "coverage")


def tables(records: Sequence[Record], resamples: int = 2000) -> list[ResultTable]:
    """Per configuration: all metrics, the published comparison with user intervals, and paired differences."""
    found = []
    for digest in sorted({record.digest for record in records}):
        runs: dict[str, list[Record]] = {}
        for name in VARIANTS:
            chosen = [r for r in records if r.digest == digest and r.model == name]
            if chosen:
                runs[name] = sorted(chosen, key=lambda r: r.seed)
        found += [_metrics_table(runs, digest), _published_table(runs, digest, resamples)]
        found += [_paired_table(runs, base, digest, resamples) for base in BASELINES if base in runs and len(runs) > 1]
    return found


def write_report(folder: Path, output: Path | None = None, resamples: int = 2000) -> tuple[Path, list[ResultTable]]:
    """Reads a store and writes its tables as Markdown.

    Args:
        folder: of the store.
        output: the file; None is report.md in the folder.
        resamples: of the bootstrap.

    Raises:
        ValueError: no records, or the file cannot be written.
    """
    path = output or folder / "report.md"
    records = Store(folder).read()
    check_output_file(path)
    found = tables(records, resamples)
    write_atomically(path, "\n".join(table.markdown() for table in found))
    return path, found


def _metrics_table(runs: dict[str, list[Record]], digest: str) -> ResultTable:
    first = next(iter(runs.values()))[0]
    rows = []
    for name, records in runs.items():
        values = [record.metrics for record in records]
        cells = [_spread([value[metric] for value in values]) for metric in _ALL]
        timing = [
            f"{np.mean([getattr(record, key) for record in records]):.0f}"
            for key in ("seconds", "cpu_seconds", "best_epoch")
        ]
        rows.append((name, str(len(records)), *cells, *timing))
    positive = int(np.sum(first.positive))
    setting = first.config
    threads = "/".join(str(t) for t in sorted({record.threads for records in runs.values() for record in records}))
    notes = (
        f"Top {TOP}, mean ± SD over seeds. _p: {positive} users with a positive target, _n: "
        f"{len(first.positive) - positive} with a negative one; Δ = p − n. time, CPU: fit with validation, s on the "
        f"wall clock and of the process, {threads} CPU thread(s); epoch: of the best checkpoint.",
        f"width {setting['width']}, batch {setting['batch_size']}, {setting['max_length']} per stream, "
        f"{setting['mixed_length']} mixed, at most {setting['epochs']} epochs, patience {setting['patience']}, "
        f"a {setting['negative_weight']}, b {setting['contrast_weight']}.",
        *(f"{name}: {VARIANTS[name].meaning}." for name in runs),
    )
    columns = ("model", "seeds", *_ALL, "time", "CPU", "epoch")
    return ResultTable(f"{setting['dataset']}, settings {digest}", columns, tuple(rows), notes)


def _published_table(runs: dict[str, list[Record]], digest: str, resamples: int) -> ResultTable:
    rows = []
    for name, records in runs.items():
        dataset = records[0].config["dataset"]
        found = user_intervals([r.ranking for r in records], resamples=resamples)
        for metric in METRICS:
            theirs = published(dataset, name, metric)
            ours, interval = _spread([r.metrics[metric] for r in records]), found[metric]
            inside = NONE if theirs is None else ("yes" if interval.low <= theirs[0] <= interval.high else "no")
            text = NONE if theirs is None else f"{theirs[0]:.4f} ± {theirs[1]:.4f}"
            rows.append((name, metric, ours, f"[{interval.low:.4f}, {interval.high:.4f}]", text, inside))
    notes = (
        f"interval: 95 %, bootstrap over test users within each group, {resamples} resamples, averaged over seeds.",
        "published: mean ± SD over five seeds of the authors' README; inside: whether its mean is in our interval.",
    )
    columns = ("model", "metric", "ours", "interval over users", "published", "inside")
    return ResultTable(f"Beside the published values, settings {digest}", columns, tuple(rows), notes)


def _paired_table(runs: dict[str, list[Record]], baseline: str, digest: str, resamples: int) -> ResultTable:
    base = [record.ranking for record in runs[baseline]]
    rows = []
    for name, records in runs.items():
        if name != baseline:
            gaps = user_intervals([r.ranking for r in records], base, resamples=resamples)
            rows.append((name, *(_gap(gaps[metric]) for metric in METRICS)))
    notes = (
        f"Difference to {baseline} on the same users, [95 %] by paired bootstrap; * where 0 is outside. Each of these "
        f"{len(rows) * len(METRICS)} intervals stands alone: one in twenty is expected to exclude 0 by chance.",
    )
    return ResultTable(f"Against {baseline}, settings {digest}", ("model", *METRICS), tuple(rows), notes)


def _gap(interval: Interval) -> str:
    star = "*" if interval.excludes_zero() else ""
    return f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]{star}"


def _spread(values: Sequence[float]) -> str:
    text = f"{np.mean(values):.4f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.4f}"
