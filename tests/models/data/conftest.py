"""Small logs, a KuaiRand-Pure of a few rows in the official CSV form, and the real data where they are."""

from pathlib import Path

import pytest
from data_helpers import CSV_HEADER, REAL_DATA, csv_row

from mixpol_models.data import SourceUnavailable
from mixpol_models.data.kuairand import PARQUET
from mixpol_models.data.movielens import fetch_inter


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MIXPOL_DATA", raising=False)
    monkeypatch.setenv("MIXPOL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def kuairand_csv(tmp_path: Path) -> Path:
    """A folder as the official archive unpacks: 2 users, 30 days, a duplicate, a near-duplicate, a tie."""
    data = tmp_path / "KuaiRand-Pure" / "data"
    data.mkdir(parents=True)
    early = [
        csv_row(0, 1, 20220409, 1_000, 1),
        csv_row(0, 2, 20220421, 2_000, 0),
        csv_row(1, 3, 20220421, 2_500, 1),
    ]
    late = [
        csv_row(0, 3, 20220424, 3_000, 1),
        csv_row(0, 4, 20220425, 4_000, 0, tab=2),
        csv_row(0, 4, 20220425, 4_000, 0, tab=2),
        csv_row(0, 4, 20220425, 4_000, 0, tab=2, play=7),
        csv_row(0, 5, 20220428, 5_000, 1),
        csv_row(0, 6, 20220428, 5_000, 0),
        csv_row(1, 7, 20220429, 6_000, 1),
        csv_row(0, 8, 20220429, 6_500, 1),
        csv_row(1, 9, 20220430, 7_000, 0, tab=4),
        csv_row(0, 1, 20220501, 8_000, 1),
    ]
    for name, rows in (("4_08_to_4_21", early), ("4_22_to_5_08", late)):
        (data / f"log_standard_{name}_pure.csv").write_text("\n".join([CSV_HEADER, *rows]) + "\n")
    return tmp_path


@pytest.fixture(scope="session")
def real_kuairand() -> Path:
    """The folder that contains kuairand_pure/ in the parquet form."""
    if not all((REAL_DATA / "kuairand_pure" / name).is_file() for name in PARQUET):
        pytest.skip(f"no kuairand_pure/ with {' and '.join(PARQUET)} in MIXPOL_DATA or ../shared/data")
    return REAL_DATA


@pytest.fixture(scope="session")
def ml100k_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that pip has filled with MovieLens-100K."""
    cache = tmp_path_factory.mktemp("cache")
    try:
        fetch_inter(cache)
    except SourceUnavailable as error:
        if "sha256" in str(error):
            raise
        pytest.skip(str(error))
    return cache
