"""Each of the four sources, the order among them, and what is said."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixpol_models.cli import app
from mixpol_models.data import InteractionLog, SequenceConfig, SourceUnavailable, build_examples, recognise, resolve
from mixpol_models.data.cache import cache_dir
from mixpol_models.data.movielens import fetch_inter


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip without an index and without local wheels."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def yields_batches(log: InteractionLog) -> None:
    for sequence in (SequenceConfig(), SequenceConfig(kind="positive"), SequenceConfig(negative_share=0.5)):
        examples = build_examples(log, sequence)
        for part in (examples.train, examples.valid, examples.test):
            batch = next(iter(part.loader(batch_size=64, shuffle=True)))
            assert 0 < len(batch) <= 64
            assert len(batch.item_ids) == len(batch.polarity) == batch.offsets[-1]
            assert batch.item_ids.lt(log.n_items).all()
            assert batch.target_item.lt(log.n_items).all()
            assert batch.context.lt(log.n_contexts).all()


def test_kuairand_parquet(real_kuairand: Path, said: list[str]):
    yields_batches(resolve(real_kuairand, say=said.append))
    assert resolve(real_kuairand / "kuairand_pure", say=said.append).frame.height == 909_221
    assert f"from --data={real_kuairand}" in said[-2]


def test_kuairand_csv_from_the_environment(kuairand_csv: Path, said: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MIXPOL_DATA", str(kuairand_csv))
    yields_batches(resolve(say=said.append))
    assert len(said) == 1
    assert "KuaiRand-Pure" in said[0]
    assert f"from MIXPOL_DATA={kuairand_csv}" in said[0]


def test_kuairand_from_the_cache(kuairand_csv: Path, said: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MIXPOL_DATA", "")
    cache_dir().mkdir()
    kuairand_csv.joinpath("KuaiRand-Pure").rename(cache_dir() / "kuairand-pure")
    yields_batches(resolve(say=said.append))
    assert len(said) == 1
    assert "found in the cache" in said[0]
    assert resolve("kuairand-pure", say=said.append).n_duplicates == 1


def test_ml100k(ml100k_cache: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, offline: None):
    """Once it is in the cache no network is needed."""
    monkeypatch.setenv("MIXPOL_CACHE", str(ml100k_cache))
    log = resolve(say=said.append)
    yields_batches(log)
    assert len(said) == 1
    assert (log.frame.height, log.n_users, log.n_items) == (100_000, 943, 1682)
    assert log.frame["polarity"].sum() == 55_375
    counts = dict(log.frame.group_by("split").len().iter_rows())
    assert counts["train"] == pytest.approx(80_000, abs=100)
    assert counts["test"] == pytest.approx(10_000, abs=100)


def test_ml100k_is_mended_when_the_cached_file_is_damaged(ml100k_cache: Path):
    path = fetch_inter(ml100k_cache)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert fetch_inter(ml100k_cache).read_bytes() == whole


def test_synthetic_when_nothing_else_is_there(said: list[str], offline: None):
    log = resolve(say=said.append)
    yields_batches(log)
    assert log.name == "synthetic"
    assert "fetching MovieLens-100K" in said[0]
    assert "pip could not download recbole==1.2.1" in said[1]
    assert "synthetic" in said[2]
    assert "no other source is there" in said[2]


def test_sources_can_be_named(said: list[str], offline: None):
    assert resolve("synthetic", say=said.append).name == "synthetic"
    assert "from --data=synthetic" in said[0]
    with pytest.raises(SourceUnavailable, match="pip could not"):
        resolve("ml-100k", say=said.append)
    with pytest.raises(SourceUnavailable, match="mixpol data get kuairand-pure"):
        resolve("kuairand-pure", say=said.append)


@pytest.mark.parametrize("origin", ["--data", "MIXPOL_DATA"])
def test_a_wish_that_fails_is_an_error(tmp_path: Path, origin: str, monkeypatch: pytest.MonkeyPatch):
    if origin == "MIXPOL_DATA":
        monkeypatch.setenv("MIXPOL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=f"{origin} is .*expected a folder with data"):
        resolve(tmp_path if origin == "--data" else None)


def test_says_it_aloud_by_default(capsys: pytest.CaptureFixture[str]):
    resolve("synthetic")
    assert capsys.readouterr().out.startswith("data: synthetic: ")


def test_two_sources_in_one_folder(kuairand_csv: Path, said: list[str]):
    (kuairand_csv / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,4.0,3\n1,3,1.0,4\n")
    assert resolve(kuairand_csv, say=said.append).name == "KuaiRand-Pure"
    assert said[0] == f"data: {kuairand_csv} holds kuairand, and ml-20m: take those with e.g. ml-20m:{kuairand_csv}"
    assert resolve(f"ml-20m:{kuairand_csv}", say=said.append).name == "MovieLens-20M"


def test_what_was_looked_for_is_listed(tmp_path: Path):
    with pytest.raises(ValueError, match="there is none of") as error:
        resolve(tmp_path)
    for words in (
        "big_matrix.csv",
        "seq.jsonl",
        "ratings.dat",
        "ratings.csv",
        "pos_items",
        "log_standard_4_08_to_4_21",
    ):
        assert words in str(error.value)
    with pytest.raises(ValueError, match="no KuaiRec"):
        resolve(f"kuairec:{tmp_path}")


def test_options_reach_the_source(kuairand_csv: Path, tmp_path: Path):
    assert recognise(kuairand_csv, polarity="is_click").load().polarity_rule == "is_click"
    with pytest.raises(ValueError, match=r"\['polarity'\] given with .*log.yaml, expected none"):
        recognise(tmp_path / "log.yaml", polarity="is_click")


def test_prepare_and_show(kuairand_csv: Path, tmp_path: Path):
    run = CliRunner().invoke
    stored = str(tmp_path / "store")
    done = run(app, ["data", "prepare", str(kuairand_csv), stored, "--chunk-events", "3"])
    assert done.exit_code == 0, done.output
    assert f"Saved in {stored}/" in done.output
    shown = run(app, ["data", "show", "--data", stored])
    direct = run(app, ["data", "show", "--data", str(kuairand_csv)])
    assert shown.output.replace(stored, "") == direct.output.replace(str(kuairand_csv), "")
    again = run(app, ["data", "prepare", str(kuairand_csv), stored, "--polarity", "play_time_ms > 5"])
    assert again.exit_code == 1
    assert "--force" in again.output
    done = run(app, ["data", "prepare", str(kuairand_csv), stored, "--polarity", "play_time_ms > 5", "--force"])
    assert done.exit_code == 0, done.output
    assert "positive means play_time_ms > 5" in done.output
    assert run(app, ["data", "prepare", str(tmp_path / "none"), stored, "--force"]).exit_code == 2
