"""`python -m mixpol_models.bench`: measures the ladder on this machine."""

from __future__ import annotations

from mixpol_models.environment import prepare

prepare()  # before torch is imported

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from mixpol_models.bench import IMPLEMENTATIONS, GateError, machine_facts, noise, plot_ladder, run_ladder, sentences
from mixpol_models.bench.ladder import LENGTHS
from mixpol_models.bench.report import ladder_markdown, ladder_table, summary_table
from mixpol_models.commands import wide_console
from mixpol_models.files import check_output_file, write_atomically
from mixpol_models.stopping import in_words


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the ladder, prints it, writes what was asked for. Returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        for name in ("json", "markdown", "plot"):
            if getattr(options, name):
                check_output_file(getattr(options, name), f"--{name}")
    except ValueError as error:
        parser.error(str(error))
    console = wide_console()
    facts = machine_facts()
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()), highlight=False)
    try:
        rows = run_ladder(
            options.lengths,
            options.batch,
            options.width,
            options.hidden,
            options.activation,
            options.rounds,
            options.seconds_per_form,
            options.implementations,
            progress=lambda line: console.print(line, style="dim", highlight=False),
            seed=options.seed,
        )
    except (GateError, RuntimeError, ValueError) as error:
        Console(stderr=True).print(str(error), style="bold red", highlight=False, markup=False)
        return 1
    console.print(ladder_table(rows), summary_table(rows))
    for sentence in sentences(rows):
        console.print(sentence, highlight=False)
    if noise(rows):
        console.print(noise(rows), style="yellow", highlight=False)
    if options.json:
        document = {"machine": facts, "seed": options.seed, "rows": [asdict(row) for row in rows]}
        write_atomically(options.json, json.dumps(document, indent=2) + "\n")
    if options.markdown:
        write_atomically(options.markdown, ladder_markdown(rows))
    if options.plot:
        plot_ladder(rows, options.plot)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m mixpol_models.bench", description=__doc__)
    parser.add_argument("--lengths", type=_integers, default=LENGTHS, metavar="L,L,...", help="padded lengths")
    parser.add_argument("--batch", type=int, default=256, metavar="B", help="users (default %(default)s)")
    parser.add_argument("--width", type=int, default=64, metavar="D", help="embedding width (%(default)s)")
    parser.add_argument("--hidden", type=_integers, default=(64,), metavar="H,...", help="hidden units")
    parser.add_argument("--activation", default="relu", choices=("relu", "prelu", "sigmoid", "silu", "dice"))
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="at most (%(default)s)")
    parser.add_argument("--seconds-per-form", type=float, default=3.0, metavar="S", help="(%(default)s)")
    parser.add_argument("--implementations", type=_names, metavar="NAME,...", help=f"of: {', '.join(IMPLEMENTATIONS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write machine facts and rows")
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="write the table")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="write the picture")
    return parser


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _names(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",")]
    unknown = [part for part in names if part not in IMPLEMENTATIONS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is no implementation; expected some of {', '.join(IMPLEMENTATIONS)}"
        )
    return names


if __name__ == "__main__":
    with in_words():
        sys.exit(main())
