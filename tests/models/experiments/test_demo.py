"""The demo's quick form, on every source that is there."""

from __future__ import annotations

import io
import json
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from mixpol_kernels.library import library
from mixpol_models.data import synthetic_log
from mixpol_models.experiments import VARIANTS, run_demo
from mixpol_models.experiments.compare import auc_ratio, rela_impr

ALWAYS = {"results.md", "metrics.json", "auc.png"}
WITH_KERNELS = {"ladder.png", "step.png"}


def demo(data: str | None, folder: Path, **options: object) -> tuple[str, dict[str, object]]:
    text = io.StringIO()
    run_demo(data, folder, quick=True, console=Console(file=text, width=100), **options)
    return text.getvalue(), json.loads((folder / "metrics.json").read_text())


def assert_accuracy_is_told(text: str, numbers: dict[str, object], folder: Path) -> None:
    models = numbers["accuracy"]["models"]
    assert list(models) == [variant.name for variant in VARIANTS]
    report = (folder / "results.md").read_text()
    for name, model in models.items():
        aucs = [run["test"]["auc"] for run in model["runs"]]
        cell = f"{sum(aucs) / len(aucs):.4f}"
        for place in (text, report):
            assert any(line.strip("| ").startswith(name) and cell in line for line in place.splitlines())
    assert "RelaImpr = ((AUC − 0.5) / (AUC₀ − 0.5) − 1) · 100 %" in report
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.slow
def test_synthetic(tmp_path: Path) -> None:
    text, numbers = demo("synthetic", tmp_path)
    assert_accuracy_is_told(text, numbers, tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    if library.loaded:
        assert files == ALWAYS | WITH_KERNELS
        assert numbers["ladder"]
        assert numbers["step"]
    else:
        assert files == ALWAYS
        assert "No layer times: the fused implementation needs the compiled kernels" in text
    assert {"cpu", "torch", "threads"} <= numbers["machine"].keys()


@pytest.mark.slow
def test_kuairand(tmp_path: Path, real_kuairand: Path) -> None:
    text, numbers = demo(str(real_kuairand), tmp_path, skip_bench=True)
    assert_accuracy_is_told(text, numbers, tmp_path)
    assert list(numbers["accuracy"]["floors"]) == ["item × user", "item × user × tab"]


@pytest.mark.slow
def test_what_data_get_leaves_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official CSV files, made from a synthetic log, where `mixpol data get kuairand-pure` puts them."""
    monkeypatch.setenv("MIXPOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MIXPOL_DATA", "")
    write_official_csv(tmp_path / "cache" / "kuairand-pure" / "data")
    text, numbers = demo(None, tmp_path / "out", seeds=2, skip_bench=True)
    assert numbers["accuracy"]["seeds"] == [0, 1]
    assert "±" in text
    assert "KuaiRand-Pure" in text
    assert "found in the cache" in text
    assert_accuracy_is_told(text, numbers, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == ALWAYS


def write_official_csv(folder: Path) -> None:
    """KuaiRand-Pure's two log files, 19 columns, with a synthetic log's events on the days of its splits."""
    log = synthetic_log(0, n_users=300, n_items=200).frame.sort("time")
    day = {"train": 20220426, "valid": 20220429, "test": 20220430}
    zeros = ("is_like", "is_follow", "is_comment", "is_forward", "is_hate")
    more = ("profile_stay_time", "comment_stay_time", "is_profile_enter", "is_rand")
    rows = log.select(
        pl.col("user").alias("user_id"),
        pl.col("item").alias("video_id"),
        pl.col("split").cast(pl.String).replace_strict(day).alias("date"),
        pl.lit(1200).alias("hourmin"),
        pl.col("time").alias("time_ms"),
        pl.col("label").alias("is_click"),
        *(pl.lit(0).alias(name) for name in zeros),
        pl.col("label").alias("long_view"),
        (pl.col("label") * pl.lit(18_000, pl.Int64)).alias("play_time_ms"),
        pl.lit(20_000).alias("duration_ms"),
        *(pl.lit(0).alias(name) for name in more),
        pl.lit(1).alias("tab"),
    )
    folder.mkdir(parents=True)
    early = rows.height // 2
    before = rows.head(early).with_columns(pl.lit(20220420).alias("date"))
    before.write_csv(folder / "log_standard_4_08_to_4_21_pure.csv")
    rows.tail(rows.height - early).write_csv(folder / "log_standard_4_22_to_5_08_pure.csv")


def test_no_seeds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seeds is 0, expected at least 1"):
        run_demo("synthetic", tmp_path, seeds=0)


def test_relative_auc() -> None:
    """From 0.20 above chance to 0.25 above it is a quarter more."""
    assert rela_impr(0.75, 0.70) == pytest.approx(25.0)
    assert auc_ratio(0.75, 0.70) == pytest.approx(100 * 0.05 / 0.70)
