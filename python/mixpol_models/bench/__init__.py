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

from mixpol_models.lazy import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "case": ("Case",),
        "cases": ("make_case",),
        "gate": ("GateError",),
        "implementations": ("IMPLEMENTATIONS", "Implementation"),
        "ladder": ("LadderRow", "run_ladder", "strongest"),
        "machine": ("machine_facts",),
        "plot": ("plot_ladder",),
        "report": ("summary_table", "ladder_markdown", "ladder_table"),
        "shapes": ("SHAPES", "Shape"),
        "summary": ("Summary", "noise", "sentences", "summarize"),
    },
)
