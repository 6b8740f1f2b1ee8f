"""Kernel benchmarks: what the fused ops are measured against, and how.

    rows = run_ladder(lengths=(50, 200), progress=print)
    print(ladder_markdown(rows))

The rooms: `shapes` (what is measured), `cases` with `din_cases`, `dot_cases`, `polarity_cases`, `interleave_case` and
`case` (inputs, forms, exact answers; from `padding`, `kinks`, `rungs`, `polarity_forms`), `gate` (correctness),
`timing` and `memory` (measuring), `ladder` (the protocol), `work` and `machine` (what the machine could do, and is),
`headline`, `report` and `plot` (telling), `suite`, `compare` with `turns`, and `cli` (the command `mixpol bench`).
`python -m mixpol_models.bench --help` measures a single DIN unit of any size. Names are imported when they are used.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "case": ("Case",),
    "cases": ("make_case",),
    "gate": ("GateError",),
    "headline": ("Headline", "headlines", "noise", "sentences"),
    "ladder": ("LadderRow", "run_ladder", "strongest"),
    "machine": ("machine_facts",),
    "plot": ("plot_ladder",),
    "report": ("headline_table", "ladder_markdown", "ladder_table"),
    "rungs": ("RUNGS", "Rung"),
    "shapes": ("SHAPES", "Shape"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
