"""What the columns of described files hold: types of CSV by all values, parts that differ, words for what cannot be."""

from pathlib import Path

import polars as pl
import pytest
import yaml

from mixpol_models.data import InteractionLog, load_described, open_store, resolve, write_store
from mixpol_models.data.described import find_described, scan_described

HEADER = "u,i,t,r\n"
DESCRIPTION = {
    "name": "x",
    "columns": {"user": "u", "item": "i", "time": "t"},
    "polarity": "r < 0.3: negative",
}
MANY = HEADER + "".join(f"{k % 50},{k % 7},{k},{k % 2}\n" for k in range(10_500))


def describe(folder: Path, files: dict[str, str | bytes | pl.DataFrame], **changes) -> Path:
    for name, content in files.items():
        if isinstance(content, pl.DataFrame):
            content.write_parquet(folder / name)
        else:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    kind = next(iter(files)).rpartition(".")[2]
    (folder / "x.yaml").write_text(yaml.safe_dump(DESCRIPTION | {"files": f"*.{kind}"} | changes))
    return folder / "x.yaml"


def csv(folder: Path, *rows: str, **changes) -> InteractionLog:
    return load_described(describe(folder, {"x.csv": HEADER + "\n".join(rows) + "\n"}, **changes))


def rows_of(log: InteractionLog) -> list[tuple]:
    return log.frame.select("user", "item", "time", "polarity").rows()


def table(u: list, r: list, time: int = 1) -> pl.DataFrame:
    return pl.DataFrame({"u": u, "i": [1] * len(u), "t": range(time, time + len(u)), "r": r})


@pytest.mark.parametrize(
    ("users", "n_users"),
    [
        (["7", "07", "007"], 3),
        (["7", "+7", "8"], 3),
        (["0", "-0", "1"], 3),
        (["7", "8", "007.5"], 3),
        (["7", "guest", "07"], 3),
        (["7", "7", "8"], 2),
        (["7", "7.0", "8.5"], 2),
        (["7", "NaN", "7"], 1),
        (["9007199254740993", "9007199254740992", "0.5"], 3),
        (["18446744073709551615", "18446744073709551614", "1"], 3),
        (["184467440737095516151", "184467440737095516150", "1"], 3),
        (["true", "True", "x"], 3),
        (["true", "True", "false"], 3),
        (["2022-04-15", "2022-04-15 00:00:00", "x"], 3),
    ],
)
@pytest.mark.parametrize("role", ["user", "item", "context"])
def test_ids_that_are_written_apart_are_apart(tmp_path: Path, users: list[str], n_users: int, role: str):
    columns = {"user": "x", "item": "x", "time": "t"} | {role: "u"}
    text = "u,x,t,r\n" + "".join(f"{user},1,{time},.1\n" for time, user in enumerate(users))
    log = load_described(describe(tmp_path, {"x.csv": text}, columns=columns, drop_incomplete=True))
    assert getattr(log, f"n_{role}s") == n_users


def test_types_are_taken_as_said(tmp_path: Path):
    rows = ["7,1,1,.1", "07,1,2,.5", "10,2,3,.9"]
    assert csv(tmp_path, *rows, types={"u": "integer"}).n_users == 2
    log = csv(tmp_path, "7,1,1,.1", "8,1,2,.5", "10,2,3,.9", types={"u": "string"})
    assert [row[0] for row in rows_of(log)] == [0, 1, 2]
    assert log.frame["time"].to_list() == [3, 1, 2], "text ids are numbered in the order of texts"
    assert csv(tmp_path, "1,1,5.0,.1", types={"t": "integer"}).frame["time"].to_list() == [5]
    assert csv(tmp_path, "1,1,5,1", "1,1,6,0", types={"r": "bool"}, polarity="r").frame["polarity"].to_list() == [1, 0]


@pytest.mark.parametrize(
    ("last", "n_users"), [("3,3,20000,0.5", 50), ("guest,3,20000,1", 51), ("0.5,3,20000,1", 51), ("a,b,20000,1", 51)]
)
def test_all_rows_decide(tmp_path: Path, last: str, n_users: int):
    log = load_described(describe(tmp_path, {"x.csv": f"{MANY}{last}\n"}))
    assert (log.frame.height, log.n_users) == (10_501, n_users)
    assert log.frame.sort("time")["polarity"][-1] == 1


@pytest.mark.parametrize(
    ("last", "changes", "message"),
    [
        ("1,3,guest,1", {}, r"columns.time is 't', which is String.*x.csv has 'guest' in row 10,501"),
        ("1,3,20000.5,1", {}, r"columns.time is 't', which is Float64; .* give time_unit"),
        (
            "1,3,20000,n/a",
            {},
            r"polarity is .*text, since x.csv has 'n/a' in row 10,501: mend it, list it under missing",
        ),
        (
            "1,3,20000,n/a",
            {"types": {"r": "float"}},
            r"types has r: float, but x.csv has 'n/a' in row 10,501; expected",
        ),
        ("x,3,20000,1", {"types": {"u": "integer"}}, r"types has u: integer, but x.csv has 'x' in row 10,501"),
        ("7.5,3,20000,1", {"types": {"u": "integer"}}, r"types has u: integer, but x.csv has '7.5' in row 10,501"),
        ("1,3,20000,2", {"types": {"r": "bool"}}, r"types has r: bool, but x.csv has '2' in row 10,501"),
        ("1,3,20000,1", {"types": {"t": "time"}}, r"types has t: time, but x.csv has '0' in row 1; expected dates"),
        ("1,3,20000,1", {"types": {"z": "time"}}, r"types has 'z', expected some of \['u', 'i', 't', 'r'\]"),
        ("1,3,20000,1", {"types": {"u": "int"}}, r"types.u: Input should be 'string', 'integer'"),
        ("1,3,20000,1,5,6", {}, r"x.csv: not readable as x .*mend the file, or the separator"),
    ],
)
def test_late_rows_are_refused_in_words_of_the_description(tmp_path: Path, last: str, changes: dict, message: str):
    with pytest.raises(ValueError, match=message) as error:
        load_described(describe(tmp_path, {"x.csv": f"{MANY}{last}\n"}, **changes))
    for word in ("infer_schema", "truncate_ragged", "fetch the files"):
        assert word not in str(error.value)


def test_missing_texts(tmp_path: Path):
    log = csv(tmp_path, "1,1,1,NA", r"2,\N,2,.5", '"",1,3,.5', "3,1,4,.9", missing=["NA", r"\N"], drop_incomplete=True)
    assert rows_of(log) == [(0, 0, 4, 1)]
    assert [log.dropped[f"without {name}"] for name in ("user", "item", "polarity")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("texts", "rule", "expected"),
    [
        (["True", "False"], "r", [1, 0]),
        (["true", "false"], "r", [1, 0]),
        (["TRUE", "FALSE"], "r: negative", [0, 1]),
        (["true", "false"], "r == true", [1, 0]),
        (["true", "false"], "r == 1", [1, 0]),
        (["true", "false"], "r != true", [0, 1]),
        (["true", "false"], "not r", [0, 1]),
        (["true", "false"], "r in [false]", [0, 1]),
        (["1", "0"], "r", [1, 0]),
    ],
)
def test_truth(tmp_path: Path, texts: list[str], rule: str, expected: list[int]):
    log = csv(tmp_path, *(f"1,1,{time},{text}" for time, text in enumerate(texts)), polarity=rule)
    assert log.frame["polarity"].to_list() == log.frame["label"].to_list() == expected


def test_truth_in_parquet(tmp_path: Path):
    assert rows_of(load_described(describe(tmp_path, {"x.parquet": table([1, 1], [True, False])}, polarity="r"))) == [
        (0, 0, 1, 1),
        (0, 0, 2, 0),
    ]
    path = describe(tmp_path, {"x.parquet": table([1, 1], ["True", "false"])}, polarity="r")
    with pytest.raises(ValueError, match=r"column 'r' is String.*types: \{r: ...\} reads it as something else"):
        load_described(path)
    path = describe(tmp_path, {"x.parquet": table([1, 1], ["True", "false"])}, polarity="r", types={"r": "bool"})
    assert load_described(path).frame["polarity"].to_list() == [1, 0]


def test_dates_in_csv(tmp_path: Path):
    times = ["2022-04-15", "2022-04-15 10:00", "2022-04-15T10:00:00.5", "2022-04-15T12:00:01+02:00"]
    log = csv(tmp_path, *(f"1,1,{time},1" for time in times))
    assert log.frame["time"].to_list() == [1_649_980_800_000 + ms for ms in (0, 36_000_000, 36_000_500, 36_001_000)]


def test_numbers_with_leading_zeros_compare_as_numbers_and_are_no_duplicates(tmp_path: Path):
    log = csv(tmp_path, "1,1,1,07", "1,1,2,10", "1,1,2,010", "1,1,2,010", polarity="r < 8: negative")
    assert (log.frame["polarity"].to_list(), log.n_duplicates) == ([0, 1, 1], 1)


PARTS = {
    "header alone": {"a.csv": HEADER, "b.csv": HEADER + "1,1,1,.1\n2,1,2,.9\n"},
    "header alone, last": {"a.csv": HEADER + "1,1,1,.1\n2,1,2,.9\n", "b.csv": HEADER},
    "another header alone": {"a.csv": "v,w\n", "b.csv": HEADER + "1,1,1,.1\n2,1,2,.9\n"},
    "another order": {"a.csv": "r,t,i,u\n.1,1,1,1\n", "b.csv": HEADER + "2,1,2,.9\n"},
    "another column": {"a.csv": "u,i,t,r,z\n1,1,1,.1,9\n", "b.csv": HEADER + "2,1,2,.9\n"},
    "whole and fractions": {"a.csv": HEADER + "1,1,1,0\n", "b.csv": HEADER + "2,1,2,.9\n"},
    "no rows": {"a.parquet": pl.DataFrame({name: [] for name in "utir"}), "b.parquet": table([1, 2], [0.1, 0.9])},
    "other order": {"a.parquet": table([1], [0.1]).select("r", "t", "i", "u"), "b.parquet": table([2], [0.9], 2)},
    "other widths": {"a.parquet": table([1], [0]).cast(pl.Int32), "b.parquet": table([2], [0.9], 2)},
    "float ids": {"a.parquet": table([1], [0.1]), "b.parquet": table([2.0], [0.9], 2)},
    "bool and 1": {"a.parquet": table([1], [False]), "b.parquet": table([2], [1], 2)},
    "null": {"a.parquet": table([1], [0.1]).with_columns(z=None), "b.parquet": table([2], [0.9], 2).with_columns(z=1)},
    "dates": {
        "a.parquet": table([1], [0.1]).with_columns(t=pl.from_epoch("t", "ms").cast(pl.Datetime("us"))),
        "b.parquet": table([2], [0.9], 2).with_columns(t=pl.from_epoch("t", "ms").cast(pl.Datetime("ns"))),
    },
}


@pytest.mark.parametrize("name", PARTS)
def test_parts(tmp_path: Path, name: str):
    scan = scan_described(describe(tmp_path, PARTS[name]))
    log = scan.load()
    assert rows_of(log) == [(0, 0, 1, 0), (1, 0, 2, 1)]
    assert open_store(write_store(scan, tmp_path / "store")).frame.equals(log.frame)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.csv": HEADER}, r"no rows in a.csv, expected some"),
        ({"a.csv": "", "b.csv": HEADER + "1,1,1,1\n"}, r"a.csv is empty \(0 bytes\), expected a line of column names"),
        ({"a.parquet": b"", "b.parquet": table([1], [1])}, r"a.parquet is empty \(0 bytes\), expected a parquet file"),
        ({"a.parquet": b"PAR1 and PAR1"}, r"a.parquet: not readable as x .*: mend the file"),
        ({"a.csv": b"u,i,t,r\n\xe9,1,1,1\n"}, r"a.csv: not readable as x .*utf-8"),
        ({"a.csv": "u;i;t;r\n1;1;1;1\n"}, r"columns.user is 'u', expected one of \['u;i;t;r'\]: .*separator"),
        (
            {"a.csv": "u,i,r\n1,1,1\n", "b.csv": HEADER + "1,1,1,1\n"},
            r"a.csv has no column 't', only \['u', 'i', 'r'\]",
        ),
        (
            {"a.csv": "u,i,t\n1,1,1\n", "b.csv": HEADER + "1,1,1,1\n"},
            r"a.csv has no column 'r', only \['u', 'i', 't'\]",
        ),
        (
            {"a.parquet": table([1], [1]), "b.parquet": table(["1"], [1])},
            r"'u' is Int64 in a.parquet, String in b.parquet; expected one type: .*types: \{u: string\}",
        ),
        ({"a.parquet": table([1], [1]), "b.parquet": table([1.5], [1])}, r"b.parquet has 1.5 in row 1; expected whole"),
        (
            {"a.parquet": table([1], [1]), "b.parquet": table([2.0**60], [1])},
            r"b.parquet has 1.15.* in row 1; expected",
        ),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, files: dict, message: str):
    with pytest.raises(ValueError, match=message):
        load_described(describe(tmp_path, files))


def test_types_make_parts_fit(tmp_path: Path):
    files = {"a.parquet": table([7, 8], [1, 1]), "b.parquet": table(["7", "guest"], [1, 1], 3)}
    assert load_described(describe(tmp_path, files, types={"u": "string"})).n_users == 3
    with pytest.raises(ValueError, match=r"types has u: integer, but b.parquet has 'guest' in row 2"):
        load_described(describe(tmp_path, files, types={"u": "integer"}))


def test_zones(tmp_path: Path):
    times = pl.from_epoch(pl.col("t") * 3_600_000, "ms")
    zoned = table([1], [0.1]).with_columns(t=times.dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo"))
    files = {"a.parquet": zoned, "b.parquet": table([1], [0.9], 2).with_columns(t=times)}
    with pytest.raises(ValueError, match=r"'t' is Datetime.*Tokyo.* in a.parquet.*types: \{t: time\}"):
        load_described(describe(tmp_path, files))
    log = load_described(describe(tmp_path, files, types={"t": "time"}))
    assert log.frame["time"].to_list() == [3_600_000, 7_200_000]
    (tmp_path / "b.parquet").unlink()
    assert load_described(describe(tmp_path, {"a.parquet": zoned})).frame["time"].to_list() == [3_600_000]


def test_types_are_shown(tmp_path: Path):
    said: list[str] = []
    path = describe(tmp_path, {"x.csv": HEADER + "07,1,2022-04-15,.1\n1,1,2022-04-16,1\n"})
    resolve(path, say=said.append)
    assert said[0] == f"data: columns of {path}: u string, i integer, t time, r float"
    write_store(scan_described(path), tmp_path / "store", say=said.append)
    assert "columns: u string, i integer, t time, r float" in said


def test_a_look_reads_no_rows(tmp_path: Path):
    path = describe(tmp_path, {"a.csv": HEADER + "1,1,1\n,,,,,,,\n", "b.csv": ""})
    description, files = find_described(path)
    assert (description.name, [file.name for file in files]) == ("x", ["a.csv", "b.csv"])
