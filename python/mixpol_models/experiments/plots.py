"""The demo's pictures: test AUC of the variants, and step times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixpol_models.bench.figure import new_figure, save_figure
from mixpol_models.experiments.compare import Comparison
from mixpol_models.experiments.step_time import StepRow
from mixpol_models.experiments.tables import count
from mixpol_models.experiments.variants import BASELINE, VARIANTS

COLORS = {"positive-only": "#8a8a8a", "mixed": "#d9824a", "mixed + bias": "#5a7fb5", "mixed + TAPF": "#12805c"}
_EAGER, _FUSED = "#9c2f2f", "#12805c"


def plot_auc(found: Comparison, path: str | Path, data: str) -> None:
    """Writes a picture, 1400 by 600 pixels: AUC per seed with the rate baselines, and the difference to positive-only.

    Args:
        found: from `compare`.
        path: of a PNG.
        data: name of the data set, for the title.
    """
    figure, (left, right) = new_figure(14.0, 6.0, 2)
    for y, variant in enumerate(VARIANTS):
        values, color = [run.test.auc for run in found.runs[variant]], COLORS[variant.name]
        mean = sum(values) / len(values)
        left.plot(values, [y] * len(values), "o", color=color, markersize=9, alpha=0.55, markeredgewidth=0)
        left.plot([mean, mean], [y - 0.18, y + 0.18], color=color, linewidth=3)
        left.annotate(f"{mean:.4f}", (mean, y - 0.22), ha="center", va="bottom", color=color, fontweight="bold")
        gap = found.to_baseline.get(variant.name)
        if gap is None:
            right.annotate("  the reference", (0, y), va="center", color=color)
            continue
        right.plot([gap.low, gap.high], [y, y], color=color, linewidth=5, alpha=0.5, solid_capstyle="butt")
        right.plot(gap.mean, y, "o", color=color, markersize=10)
        text = f"{gap.mean:+.4f}  [{gap.low:+.4f}, {gap.high:+.4f}]"
        right.annotate(text, (gap.mean, y - 0.15), ha="center", va="bottom", color=color)
    for rates in found.rates:
        left.axvline(rates.auc, color="#000000", linestyle=":", linewidth=1.2)
        left.annotate(
            f"rates: {rates.name}  {rates.auc:.4f}", (rates.auc, len(VARIANTS) - 0.42), rotation=90, fontsize=9,
            ha="right", va="bottom", xytext=(-3, 0), textcoords="offset points",
        )  # fmt: skip
    right.axvline(0, color=COLORS[BASELINE.name], linewidth=1.2)
    names = [variant.name for variant in VARIANTS]
    for axes in (left, right):
        axes.set_ylim(len(VARIANTS) - 0.4, -0.6)
        axes.set_yticks(range(len(VARIANTS)), names if axes is left else [""] * len(names))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.25)
        axes.margins(x=0.12)
    dots = "one dot a seed, bar: mean" if len(found.seeds) > 1 else "one seed"
    left.set_title(f"AUC on the test rows ({dots})", loc="left", fontsize=12)
    right.set_title("AUC minus positive-only, 95 % bootstrap over users", loc="left", fontsize=12)
    save_figure(figure, path, f"DIN on {data}: {found.test_rows:,} test rows of {found.test_users:,} users")


def plot_step(rows: Sequence[StepRow], path: str | Path) -> None:
    """Writes a picture, 1000 by 500 pixels: a pair of bars per model, ms of a whole training step."""
    figure, (axes,) = new_figure(10.0, 0.7 * len(rows) + 1.2, 1)
    height = 0.38
    for y, row in enumerate(rows):
        for offset, value, color, label in (
            (-height / 2, row.eager_ms, _EAGER, f"eager {row.eager_ms:.1f} ms"),
            (height / 2, row.fused_ms, _FUSED, f"fused {row.fused_ms:.1f} ms  (eager takes {row.ratio:.2f} ×)"),
        ):
            axes.barh(y + offset, value, height, color=color)
            axes.annotate(
                label, (value, y + offset), xytext=(5, 0), textcoords="offset points", va="center", color=color
            )
    labels = [f"{row.fusion}\n{'sparse' if row.sparse_tables else 'dense'} tables" for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(max(row.eager_ms, row.fused_ms) for row in rows))
    axes.set_xlabel("ms per step")
    first = rows[0]
    threads = count(first.threads, "thread")
    title = f"A whole training step of DIN: {first.batch} examples, {first.events:,} events, {threads}"
    save_figure(figure, path, title)
