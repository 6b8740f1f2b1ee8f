"""All results of an experiment: one parquet file, one row per finished run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from mixpol_models.files import write_atomically

FILE = "results.parquet"
_STRATUM = pl.Struct(
    {
        "kind": pl.String(),
        "name": pl.String(),
        "rows": pl.Int64(),
        "positives": pl.Int64(),
        "auc": pl.Float64(),
        "resamples": pl.List(pl.Float64()),
    }
)
SCHEMA: dict[str, pl.DataType] = {
    # Which run: `kind` is "run" or "floor" (a product of rates, named by `variant`), `status` "done" or "failed".
    **dict.fromkeys(("key", "kind", "status", "error", "experiment", "data", "fingerprint"), pl.String()),
    **dict.fromkeys(("backbone", "variant", "ablation"), pl.String()),
    "budget": pl.Int64(),
    "negative_share": pl.Float64(),
    "seed": pl.Int64(),
    "settings": pl.String(),  # all of `TrainConfig`, JSON
    # What it scores on the test rows; `tab_auc` is the AUC within each context, weighted by rows.
    **dict.fromkeys(("auc", "gauc", "logloss", "tab_auc", "auc_frozen", "gauc_frozen", "valid_auc"), pl.Float64()),
    "auc_resamples": pl.List(pl.Float64()),
    "strata": pl.List(_STRATUM),
    **dict.fromkeys(("attention_on_negatives", "negatives_in_history"), pl.Float64()),
    **dict.fromkeys(("test_examples", "test_users", "train_examples", "epochs", "parameters", "threads"), pl.Int64()),
    "kept": pl.String(),
    **dict.fromkeys(("seconds", "examples_per_second"), pl.Float64()),
    "versions": pl.String(),  # of the packages, JSON
}


class ResultStore:
    """A folder with results.parquet, which is replaced as a whole with every row and so is never half-written.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.file = self.folder / FILE
        self.frame = self.read(self.folder) if self.file.is_file() else pl.DataFrame(schema=SCHEMA)

    @staticmethod
    def read(folder: str | Path) -> pl.DataFrame:
        """The table of a store, columns of `SCHEMA`.

        Raises:
            ValueError: there is none, or the file is not of this form.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            raise ValueError(f"store is {str(folder)!r}, where there is no {FILE}: run `mixpol experiment run` first")
        try:
            return pl.read_parquet(file).select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())
        except (pl.exceptions.PolarsError, OSError) as error:
            raise ValueError(f"{file} is not readable as a store of results ({error}): take another folder") from None

    def done(self) -> set[str]:
        """Keys of the runs that need not run again; failed ones do."""
        return set(self.frame.filter(pl.col("status") == "done")["key"])

    def put(self, row: Mapping[str, Any]) -> None:
        """Adds a row, or replaces the one of its key, and writes the file."""
        unknown = set(row) - set(SCHEMA)
        if unknown:
            raise ValueError(f"row has {sorted(unknown)}, expected columns of SCHEMA: add them there")
        new = pl.DataFrame([{name: row.get(name) for name in SCHEMA}], schema=SCHEMA)
        self.frame = pl.concat([self.frame.filter(pl.col("key") != row["key"]), new])
        content = io.BytesIO()
        self.frame.write_parquet(content)
        write_atomically(self.file, content.getvalue())


def of_keys(frame: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """The finished rows of some runs."""
    return frame.filter(pl.col("key").is_in(list(keys)) & (pl.col("status") == "done"))
