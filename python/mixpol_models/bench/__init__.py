"""Kernel benchmarks: what the fused ops are measured against, and how.

    rows = run_ladder(lengths=(50, 200), progress=print)
    print(ladder_markdown(rows))

- inputs: `shapes` (sizes), `cases` (`make_case`: inputs, forms and exact answers of a shape, from `din_cases`,
  `dot_cases`, `polarity_cases`, `interleave_case`), `gpu_problems` (the same for a GPU's checks)
- forms: `implementations` (the activation unit), `polarity_forms`, `fbgemm_form`
- measuring: `gate` (correctness), `timing`, `kernel_time`, `memory`, `roofline`, `machine`, `ladder` (the protocol)
- results: `summary`, `report`, `plot`
- commands: `suite` and `compare` with `compare_worker` (`mixpol bench`), `gpu` (`mixpol gpu-report`), `tune`
  (`mixpol tune`), `growth` and `python -m mixpol_models.bench`, which measures one DIN unit of any size

Names are imported when they are used.
"""

# ruff: noqa: F401, imported when they are used
from __future__ import annotations

from typing import TYPE_CHECKING

from mixpol_models.lazy import lazy_names

if TYPE_CHECKING:
    from mixpol_models.bench.case import Case
    from mixpol_models.bench.cases import make_case
    from mixpol_models.bench.gate import GateError
    from mixpol_models.bench.implementations import IMPLEMENTATIONS, Implementation
    from mixpol_models.bench.ladder import LadderRow, run_ladder, strongest
    from mixpol_models.bench.machine import machine_facts
    from mixpol_models.bench.plot import plot_ladder
    from mixpol_models.bench.report import ladder_markdown, ladder_table, summary_table
    from mixpol_models.bench.shapes import SHAPES, Shape
    from mixpol_models.bench.summary import Summary, noise, sentences, summarize

__getattr__, __all__ = lazy_names(__name__, __file__)
