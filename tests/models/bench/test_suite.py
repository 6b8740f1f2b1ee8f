"""`mixpol bench`: plan, files, the README's block, the command; its figures are for people to read."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixpol_kernels.library import library
from mixpol_models.bench import LadderRow, suite
from mixpol_models.bench.cases import make_case
from mixpol_models.bench.roofline import Peaks
from mixpol_models.bench.shapes import MAIN, SHAPES
from mixpol_models.bench.suite import END, START, Plan, Results
from mixpol_models.cli import app

README = Path(__file__).parents[3] / "README.md"
_NUMBER = r"(\d+(\.\d+)?|–)"
_ROW = re.compile(rf"\| [^|]+ \| \d+ \| {_NUMBER} \| {_NUMBER} \| {_NUMBER} \| {_NUMBER} / {_NUMBER} \|")


@pytest.fixture
def results(rows: list[LadderRow]) -> Results:
    """Two cases of made-up times: eager 8 ms, refactored 4 and fused 2 a step."""
    concat, refactored, pool = (row for row in rows if row.length == 7)
    made = []
    for case in ("DIN ReLU", "softmax heads"):
        for row, implementation, ms in (
            (concat, "concat", 8.0),
            (refactored, "refactored", 4.0),
            (concat, "fused", 2.0),
        ):
            ratio = {"total_ratio": ms / 2, "total_ratio_low": ms / 2, "total_ratio_high": ms / 2}
            made.append(
                replace(
                    row, case=case, implementation=implementation, total_ms=ms, saved_mib=ms, forward_ratio=1.0, **ratio
                )
            )
        made.append(replace(pool, case=case))
    return Results({"cpu": "a CPU", "threads": 1, "kernel_isa": "base", "torch": "0"}, Peaks(10.0, 5.0), made)


def check_block(text: str) -> None:
    """A README with a block has it in the generator's format."""
    table = text.split(START)[1].split(END)[0].strip().splitlines()
    assert table[0] == "| case | L | fused, ms | × eager | × strongest | kept, MiB: fused / eager |"
    rows = [line for line in table[2:] if line.startswith("|")]
    assert rows
    for row in rows:
        assert _ROW.fullmatch(row), row
    cases = list(dict.fromkeys(row.split(" | ")[0].removeprefix("| ") for row in rows))
    assert set(cases) <= {shape.case for shape in MAIN}
    assert "Forward and backward, B = " in "\n".join(table)


def test_headline_table(results: Results) -> None:
    assert "| DIN ReLU | 7 | 2.00 | 4.00 | 2.00 | 2.00 / 8.00 |" in suite.summary_markdown(results)
    check_block(f"{START}\n{suite.readme_block(results)}{END}")


def test_readme_block_is_rewritten_and_nothing_else(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    for _ in range(2):
        suite.write_readme(results, path)
        text = path.read_text()
        assert text.startswith(f"before\n{START}\n| case")
        assert text.endswith(f"{END}\nafter\n")
        assert "old" not in text
        check_block(text)


@pytest.mark.parametrize("text", ["no markers", START, f"{END}\n{START}", f"{START}{END}{START}{END}"])
def test_a_file_without_the_markers_is_refused(results: Results, tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"readme was .*bench:start"):
        suite.write_readme(results, path)
    assert path.read_text() == text


def test_the_readme_has_the_generators_format() -> None:
    text = README.read_text(encoding="utf-8")
    if START not in text:
        pytest.skip("README.md has no benchmark block")
    check_block(text)


def test_files(results: Results, tmp_path: Path) -> None:
    names = [path.name for path in suite.save(results, tmp_path / "out")]
    assert names == ["bench.json", "bench.md", "bench_din_relu.png", "bench_softmax_heads.png"]
    document = json.loads((tmp_path / "out" / "bench.json").read_text())
    row = document["rows"][2]
    share = max(row["total_work"]["operations"] / 10e9, row["total_work"]["bytes"] / 5e9) / 2e-3
    assert row["share_of_roof"] == pytest.approx(share)
    assert row["tokens_per_s"] == pytest.approx(row["tokens"] / 2e-3)
    text = (tmp_path / "out" / "bench.md").read_text()
    assert "of the roof" in text
    assert "## softmax heads" in text
    header = (tmp_path / "out" / "bench_din_relu.png").read_bytes()[:24]
    assert int.from_bytes(header[16:20], "big") == 2100


def test_quick_has_one_compiled_form_a_shape() -> None:
    plan = suite.quick()
    assert {shape.case for shape in plan.shapes} == {shape.case for shape in MAIN}
    for shape in plan.shapes:
        forms = plan.forms(make_case(shape.small()))
        assert [form for form in forms if "+compile" in form] in (
            ["refactored+compile, per target"],
            ["refactored+compile"],
            ["absorbed+compile"],
        )
    case = make_case(SHAPES["DIN ReLU, L=50"].small())
    assert suite.full().forms(case) == list(case.forms)


@pytest.mark.skipif(not library.loaded, reason=library.reason)
def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [SHAPES[f"{main.case}, L=10"].small() for main in MAIN]
    monkeypatch.setattr(suite, "quick", lambda: Plan(shapes, 3, 0.01, every_form=False))
    monkeypatch.setattr(suite, "_is_quick", lambda form: "+compile" not in form)
    readme = tmp_path / "README.md"
    readme.write_text(f"{START}\n{END}\n")
    done = CliRunner().invoke(app, ["bench", "--quick", "--output", str(tmp_path), "--readme", str(readme)])
    assert done.exit_code == 0, done.output
    assert len(json.loads((tmp_path / "bench.json").read_text())["rows"]) == 4 * 4
    check_block(readme.read_text())


def test_some_shapes() -> None:
    assert [shape.length for shape in suite.full("softmax HEADS").shapes] == [10, 50, 200, 1000, 10_000]
    assert len(suite.full().shapes) > 30
    with pytest.raises(ValueError, match="only was 'no such', in none of: DIN ReLU, L=10; "):
        suite.full("no such")
    done = CliRunner().invoke(app, ["bench", "--quick", "--only", "heads"])
    assert done.exit_code == 2
    assert "only came with quick or compare" in done.output


def test_a_red_gate_shows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SHAPES["DIN ReLU, L=10"].small()

    def planted(*_: object) -> object:
        case = make_case(shape)
        return replace(case, forms={"concat": lambda: case.forms["concat"]() * 1.001})

    monkeypatch.setattr(suite, "make_case", planted)
    monkeypatch.setattr(suite, "quick", lambda: Plan([shape], 3, 0.01, every_form=False))
    done = CliRunner().invoke(app, ["bench", "--quick", "--output", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "The gate is red" in done.output
    assert not (tmp_path / "out").exists()
