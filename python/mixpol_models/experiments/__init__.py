"""Experiments that end in tables and pictures: `mixpol demo` runs a small one, `mixpol experiment` whole grids.

- `grid/`: configuration, runner, workers and store of `mixpol experiment`
- `report` with `rows`, `report_plots` and `analyses`: reading a store
- `demo`: `mixpol demo`, from `compare` (DIN four ways), `subset` (data of the quick form), `step_time` with
  `eager_layer` (a whole training step), `throughput`
- `variants` (the four models), `baselines` (rates), `frozen_history`, `bootstrap`, `significance` (tests over seeds)
- `tables`, `plots`
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixpol_models.experiments.baselines import RateBaseline
    from mixpol_models.experiments.bootstrap import Difference, paired_bootstrap
    from mixpol_models.experiments.compare import Comparison
    from mixpol_models.experiments.demo import run_demo
    from mixpol_models.experiments.grid.config import ExperimentConfig, load_experiment
    from mixpol_models.experiments.grid.runner import run_experiment
    from mixpol_models.experiments.step_time import StepRow
    from mixpol_models.experiments.variants import VARIANTS, Variant

# Where each name is; imported when first asked for, so that `mixpol --help`, which reads `cli`, stays quick.
_HOMES = {
    "baselines": ("RateBaseline",),
    "bootstrap": ("Difference", "paired_bootstrap"),
    "compare": ("Comparison",),
    "demo": ("run_demo",),
    "grid.config": ("ExperimentConfig", "load_experiment"),
    "grid.runner": ("run_experiment",),
    "step_time": ("StepRow",),
    "variants": ("VARIANTS", "Variant"),
}

__all__ = [
    "VARIANTS",
    "Comparison",
    "Difference",
    "ExperimentConfig",
    "RateBaseline",
    "StepRow",
    "Variant",
    "load_experiment",
    "paired_bootstrap",
    "run_demo",
    "run_experiment",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
