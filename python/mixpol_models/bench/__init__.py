"""The baseline ladder: what the fused target attention is measured against, and how.

    rows = run_ladder(lengths=(50, 200), progress=print)
    print(ladder_markdown(rows))

The rooms: `problem`, `padding` and `kinks` (inputs), `rungs` (the forms), `gate` (correctness), `timing` and
`memory` (measuring), `ladder` (the protocol), `headline`, `report`, `plot` and `machine` (telling),
`polarity_forms`, `polarity_cases` and `interleave_case` (the other ops, for the suites in benchmarks/). The command:
`python -m mixpol_models.bench --help`.
"""

from mixpol_models.bench.gate import GateError
from mixpol_models.bench.headline import Headline, headlines, noise, sentences
from mixpol_models.bench.ladder import LadderRow, run_ladder, strongest
from mixpol_models.bench.machine import machine_facts
from mixpol_models.bench.plot import plot_ladder
from mixpol_models.bench.report import headline_table, ladder_markdown, ladder_table
from mixpol_models.bench.rungs import RUNGS, Rung

__all__ = [
    "RUNGS",
    "GateError",
    "Headline",
    "LadderRow",
    "Rung",
    "headline_table",
    "headlines",
    "ladder_markdown",
    "ladder_table",
    "machine_facts",
    "noise",
    "plot_ladder",
    "run_ladder",
    "sentences",
    "strongest",
]
