"""Experiments that end in tables and pictures: `mixpol demo` runs a small one, `mixpol experiment` whole grids.

- `grid/`: configuration, runner, workers and store of `mixpol experiment`
- `report` with `rows`, `report_plots` and `analyses`: reading a store
- `demo`: `mixpol demo`, from `compare` (DIN four ways), `subset` (data of the quick form), `step_time` with
  `eager_layer` (a whole training step), `throughput`
- `variants` (the four models), `baselines` (rates), `frozen_history`, `bootstrap`, `significance` (tests over seeds)
- `tables`, `plots`
"""

from mixpol_models.lazy import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "baselines": ("RateBaseline",),
        "bootstrap": ("Difference", "paired_bootstrap"),
        "compare": ("Comparison",),
        "demo": ("run_demo",),
        "grid.config": ("ExperimentConfig", "load_experiment"),
        "grid.runner": ("run_experiment",),
        "step_time": ("StepRow",),
        "variants": ("VARIANTS", "Variant"),
    },
)
