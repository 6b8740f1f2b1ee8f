"""`mixpol bench`: the main cases up the ladder, as JSON, Markdown, pictures and the README's table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from mixpol_models.bench.case import COMPILED, Case, implementation_of
from mixpol_models.bench.cases import make_case
from mixpol_models.bench.ladder import REFACTORED, LadderRow, measure
from mixpol_models.bench.machine import machine_facts
from mixpol_models.bench.plot import plot_ladder
from mixpol_models.bench.report import ladder_markdown, markdown_row, number
from mixpol_models.bench.roofline import Peaks, measure_peaks
from mixpol_models.bench.shapes import QUICK_LENGTHS, SHAPES, Shape, main_shapes
from mixpol_models.bench.summary import noise, summarize
from mixpol_models.files import write_atomically

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
# The variant of the activation unit that is usually the fastest when compiled (docs/results/ladder.md).
_QUICK_VARIANT = "per target"
_SUMMARY_COLUMNS = ("case", "L", "fused, ms", "× eager", "× strongest", "kept, MiB: fused / eager")
Facts = Mapping[str, str | int]


@dataclass(frozen=True)
class Plan:
    """Shapes to measure and the effort for each.

    Attributes:
        shapes: in order; those of one case together.
        rounds, seconds: at most so many rounds, and seconds a form.
        every_form: else only one compiled form a shape, the one that is expected to be the strongest.
    """

    shapes: Sequence[Shape]
    rounds: int = 15
    seconds: float = 3.0
    every_form: bool = True

    def forms(self, case: Case) -> list[str]:
        """Those of `case` that are measured."""
        return [form for form in case.forms if self.every_form or _is_quick(form)]


def quick(batch: int = 128) -> Plan:
    """The four main cases at two lengths: under three minutes on two free cores."""
    return Plan(main_shapes(QUICK_LENGTHS, batch), rounds=7, seconds=0.8, every_form=False)


def full(only: str = "") -> Plan:
    """Every shape of SHAPES with a backward pass, in every form.

    Args:
        only: part of the names of those to take.

    Raises:
        ValueError: no name has it.
    """
    named = {name: shape for name, shape in SHAPES.items() if shape.op != "interleave"}
    taken = [shape for name, shape in named.items() if only.lower() in name.lower()]
    if not taken:
        raise ValueError(f"only was {only!r}, in none of: {'; '.join(named)}")
    return Plan(taken)


def _is_quick(form: str) -> bool:
    if not implementation_of(form).endswith(COMPILED):
        return True
    return form.startswith(REFACTORED) and ("," not in form or form.endswith(_QUICK_VARIANT))


@dataclass(frozen=True)
class Results:
    """Result of a benchmark run."""

    facts: Facts
    peaks: Peaks
    rows: Sequence[LadderRow]

    def by_case(self) -> Iterator[tuple[str, list[LadderRow]]]:
        """Rows of each case, in order."""
        for case, rows in groupby(self.rows, key=lambda row: row.case):
            yield case, list(rows)


def run(plan: Plan, progress: Callable[[str, float], None] | None = None, seed: int = 0) -> Results:
    """Measures a plan.

    Args:
        plan: what to measure.
        progress: gets a line of text and the share that is done, now and then.
        seed: of inputs, weights and order.

    Raises:
        GateError: a form is outside the error budget: no results at all.
        RuntimeError: the compiled library is not there.
    """
    tell = progress or (lambda line, done: None)
    tell("peaks of this machine", 0.0)
    peaks = measure_peaks()
    rows: list[LadderRow] = []
    for i, shape in enumerate(plan.shapes):
        tell(f"{shape.case}, L = {shape.length}: inputs", i / len(plan.shapes))
        case = make_case(shape, seed)
        forms = plan.forms(case)
        steps = iter(range(1, len(forms) + 4))

        def say(line: str, i: int = i, steps: Iterator[int] = steps, of: int = len(forms) + 4) -> None:
            tell(line, (i + next(steps) / of) / len(plan.shapes))

        rows += measure(shape, case, plan.rounds, plan.seconds, forms, say, seed)
    tell("done", 1.0)
    return Results(machine_facts(), peaks, rows)


def summary_markdown(results: Results) -> str:
    """The summary table: a row per case and length."""
    lines = [markdown_row(_SUMMARY_COLUMNS), "|---|---:|---:|---:|---:|---:|"]
    for case, rows in results.by_case():
        fused = {row.length: row for row in rows if row.implementation == "fused"}
        for head in summarize(rows):
            row = fused[head.length]
            eager = next((r.saved_mib for r in rows if (r.length, r.implementation) == (head.length, head.eager)), None)
            cells = (case, str(head.length), *map(number, (row.total_ms, head.total_eager, head.total_strongest)))
            lines.append(markdown_row([*cells, f"{number(row.saved_mib)} / {number(eager)}"]))
    return "\n".join(lines) + "\n"


def readme_block(results: Results) -> str:
    """Text between the markers: the summary table and the machine."""
    row, facts = results.rows[0], results.facts
    batches = " to ".join(map(str, sorted({min(r.batch for r in results.rows), max(r.batch for r in results.rows)})))
    said = (
        f"Forward and backward, B = {batches}, D = {row.width}, float32, lengths uniform in 1..L; {facts['cpu']}, "
        f"{facts['threads']} threads, {facts['kernel_isa']}, torch {facts['torch']}.\n× eager: how many times the "
        "fused form's time the usual PyTorch form takes; × strongest: the fastest other form, refactored or compiled."
    )
    return f"{summary_markdown(results)}\n{said}\n"


def readme_parts(path: Path) -> tuple[str, str]:
    """Text before and after the markers.

    Raises:
        ValueError: there is no such file, or it does not have each marker once, in order.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"readme was {path}; expected a file with one line {START!r} and, below it, one line {END!r}")
    before, rest = text.split(START)
    return before, rest.split(END)[1]


def write_readme(results: Results, path: Path) -> None:
    """Rewrites what stands between the markers in a Markdown file, and nothing else.

    Raises:
        ValueError: the file does not have each marker once, in order.
    """
    before, after = readme_parts(path)
    write_atomically(path, f"{before}{START}\n{readme_block(results)}{END}{after}")


def markdown(results: Results) -> str:
    """The whole report."""
    lines = ["# mixpol bench", "", *(f"- {key}: {value}" for key, value in results.facts.items())]
    lines += [f"- SGEMM: {results.peaks.gflops:.1f} GFLOP/s", f"- stream, a = b + c: {results.peaks.gbytes:.1f} GB/s"]
    lines += ["", summary_markdown(results)]
    for case, rows in results.by_case():
        lines += [f"## {case}", "", ladder_markdown(rows, results.peaks)]
    return "\n".join(lines)


def save(results: Results, folder: Path) -> list[Path]:
    """Writes bench.json, bench.md and a picture a case. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": results.facts,
        "peaks": asdict(results.peaks),
        "rows": [
            asdict(row)
            | {"tokens_per_s": row.tokens_per_s, "gflops": row.gflops, "gbytes": row.gbytes}
            | {"share_of_roof": results.peaks.share(row.total_work, row.total_ms)}
            for row in results.rows
        ],
    }
    written = [folder / "bench.json", folder / "bench.md"]
    write_atomically(written[0], json.dumps(document, indent=2) + "\n")
    write_atomically(written[1], markdown(results))
    for case, rows in results.by_case():
        words = "".join(c if c.isalnum() else " " for c in case.lower()).split()
        written.append(folder / f"bench_{'_'.join(words)}.png")
        plot_ladder(rows, written[-1], results.peaks)
    return written


def warnings(results: Results) -> list[str]:
    """Warnings about ratios too noisy to be quoted."""
    return [f"{case}: {noise(rows)}" for case, rows in results.by_case() if noise(rows)]
