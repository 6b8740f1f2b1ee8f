"""Training, the store, the report and the command, on a small file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mixpol_models import cli
from mixpol_models.pnfrec import comparison
from mixpol_models.pnfrec.comparison import run_all
from mixpol_models.pnfrec.config import PNFRecConfig, load_config
from mixpol_models.pnfrec.events import Split
from mixpol_models.pnfrec.published import COLUMNS, METRICS, PUBLISHED, published
from mixpol_models.pnfrec.report import tables, write_report
from mixpol_models.pnfrec.sources import load_split
from mixpol_models.pnfrec.speed import compare_speed, head_memory
from mixpol_models.pnfrec.store import Store
from mixpol_models.pnfrec.training import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users who walk up through 40 items, and dislike every fourth event."""
    rng = np.random.default_rng(5)
    lines = ["userId,movieId,rating,timestamp"]
    for user in range(80):
        # Histories of 17 to 20 events: most end with a positive, some with a negative.
        item, time = int(rng.integers(40)), int(rng.integers(10_000))
        for event in range(17 + user % 4):
            lines.append(f"{user},{(item + event) % 40},{2 if event % 4 == 3 else 5},{time + event * 500}")
    path = tmp_path_factory.mktemp("ml20m") / "ratings.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def config(data: Path) -> PNFRecConfig:
    return PNFRecConfig(
        dataset="ml-20m", data=str(data), width=16, max_length=8, mixed_length=12, batch_size=16, epochs=2
    )


@pytest.fixture
def split(data: Path) -> Split:
    return load_split("ml-20m", data)


def test_training_learns(split: Split, config: PNFRecConfig) -> None:
    config = config.model_copy(update={"epochs": 12, "learning_rate": 0.01, "dropout": 0.0})
    run = train(split, config, "sasrec_p", 0)
    assert max(run.validation) > 2 * run.validation[0] or run.validation[0] > 0.5
    assert (run.ranking.rank[run.ranking.positive] <= 3).mean() > 0.5


def test_training_repeats(split: Split, config: PNFRecConfig) -> None:
    first, again = (train(split, config, "pnfrec", 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    other = train(split, config, "pnfrec", 4)
    assert not torch.equal(first.model.item_table, other.model.item_table)


def test_the_best_epoch_is_kept_and_patience_ends(
    split: Split, config: PNFRecConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixpol_models.pnfrec import training

    values = iter([0.1, 0.3, 0.2, 0.2, 0.9])
    states = []
    real = training.metrics

    def fake(ranking: object) -> dict[str, float]:
        return real(ranking) | {"NDCG_p": next(values)}  # type: ignore[arg-type]

    def remember(epoch: int, step: int, steps: int, best: float) -> None:
        if step == 1:
            states.append(epoch)

    monkeypatch.setattr(training, "metrics", fake)
    run = train(split, config.model_copy(update={"epochs": 9, "patience": 2}), "sasrec_p", 0, remember)
    assert states == [1, 2, 3, 4]
    assert run.best_epoch == 2
    monkeypatch.setattr(training, "metrics", real)
    two = train(split, config.model_copy(update={"epochs": 2, "patience": 9}), "sasrec_p", 0)
    if two.best_epoch == 2:
        assert torch.equal(run.model.item_table, two.model.item_table)


def test_a_loss_that_is_not_finite_is_an_error(split: Split, config: PNFRecConfig) -> None:
    with pytest.raises(RuntimeError, match=r"the loss of sasrec_p, seed 0, was .* in epoch"):
        train(split, config.model_copy(update={"learning_rate": 1e38}), "sasrec_p", 0)


def test_finished_runs_are_skipped(config: PNFRecConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, said = ["pnfrec", "sasrec_p"], []
    assert len(run_all(config, models, [0], tmp_path, said.append)) == 2
    trained = []
    real = comparison.train
    monkeypatch.setattr(comparison, "train", lambda *args: (trained.append(args[2:4]), real(*args))[1])
    assert len(run_all(config, models, [0, 1], tmp_path, said.append)) == 2
    assert trained == [("pnfrec", 1), ("sasrec_p", 1)]
    assert "2 of 4 runs are in" in " ".join(said)
    # Another configuration is another run; where the data lie is not.
    assert len(run_all(config.model_copy(update={"width": 8}), ["sasrec_p"], [0], tmp_path, said.append)) == 1
    assert run_all(config.model_copy(update={"data": "elsewhere"}), models, [0, 1], tmp_path, said.append) == []


def test_the_store_names_no_user_or_item(config: PNFRecConfig, tmp_path: Path) -> None:
    run_all(config, ["sasrec_p"], [0], tmp_path, lambda line: None)
    (record,) = Store(tmp_path).read()
    lists = {key: value for key, value in vars(record).items() if isinstance(value, list)}
    assert lists.keys() == {"rank", "positive"}
    assert set(record.positive) <= {0, 1}
    assert "data" not in record.config


def test_the_store_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no records"):
        Store(tmp_path).read()
    (tmp_path / "pnfrec-seed0-abc.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(ValueError, match="not a record of version 1"):
        Store(tmp_path).read()


def test_report(config: PNFRecConfig, tmp_path: Path) -> None:
    run_all(config, ["pnfrec", "sasrec_p", "mixed_bias"], [0, 1], tmp_path, lambda line: None)
    path, found = write_report(tmp_path, tmp_path / "docs" / "table.md", resamples=50)
    text = path.read_text()
    assert len(found) == 3
    assert ".0933 ± .0045".replace(".", "0.") in text
    assert "| mixed_bias | HR_p |" in text
    rows = {row[0]: row for row in tables(Store(tmp_path).read(), 50)[0].rows}
    values = [record.metrics["HR_p"] for record in Store(tmp_path).read() if record.model == "pnfrec"]
    assert rows["pnfrec"][2] == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def test_published_table_is_whole() -> None:
    for dataset in PUBLISHED.values():
        assert dataset.keys() == set(METRICS)
        assert all(len(row) == len(COLUMNS) for row in dataset.values())
    assert published("ml-1m", "pnfrec", "HR_p") == (0.1716, 0.0083)
    assert published("ml-1m", "sasrec", "ΔHR") == (-0.0160, 0.0061)
    assert published("ml-1m", "mixed_bias", "HR_p") is None


def test_speed_compares_the_same_model(split: Split, config: PNFRecConfig) -> None:
    found = compare_speed(split, config, steps=2, rounds=2)
    assert (found.steps, found.rounds) == (2, 2)
    assert "2 of" in found.describe()
    with pytest.raises(ValueError, match="expected one over positives"):
        compare_speed(split, config, "sasrec", steps=1)


def test_head_memory() -> None:
    found = head_memory(items=5000, tokens=300, width=8)
    assert found.full == pytest.approx(300 * 5000 * 4 / 2**20)
    assert found.chunk < found.full


@pytest.mark.parametrize("name", ["ml1m_published", "ml1m_cpu"])
def test_shipped_configurations(name: str) -> None:
    config = load_config(name)
    assert config.dataset == "ml-1m"
    assert PNFRecConfig(**config.model_dump()) == config


def test_configuration_messages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config is 'nothing'.*ml1m_cpu"):
        load_config("nothing")
    path = tmp_path / "bad.yaml"
    path.write_text("widht: 8\nepochs: 0\n")
    with pytest.raises(ValueError, match=r"epochs is 0, expected .*'widht' is no setting: did you mean 'width'"):
        load_config(path)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}).invoke(cli.app, ["pnfrec", *arguments])
    return result.exit_code, result.output


def test_commands(config: PNFRecConfig, tmp_path: Path) -> None:
    path, folder = tmp_path / "small.yaml", tmp_path / "results"
    path.write_text(config.to_yaml())
    status, text = invoke("run", str(path), "--models", "sasrec_p,sasrec", "--seeds", "0", "--output", str(folder))
    assert status == 0, text
    status, text = invoke("report", str(folder), "--resamples", "20")
    assert status == 0, text
    assert "HR_p" in text
    assert (folder / "report.md").is_file()
    status, text = invoke("speed", str(path), "--steps", "1", "--rounds", "1")
    assert status == 0, text
    status, text = invoke("memory", "--items", "1000", "--tokens", "50", "--width", "4")
    assert status == 0, text


def test_command_messages(config: PNFRecConfig, tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(config.to_yaml())
    assert invoke("run", str(path), "--models", "bert")[0] == 2
    assert invoke("run", str(path), "--seeds", "one")[0] == 2
    assert invoke("report", str(tmp_path))[0] == 2
