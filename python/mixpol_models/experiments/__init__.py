"""Experiments that end in tables and pictures: `mixpol demo` runs a small one, `mixpol experiment` whole grids.

- `grid/`: configuration, runner, workers and store of `mixpol experiment`
- `report` with `rows`, `report_plots` and `analyses`: reading a store
- `demo`: `mixpol demo`, from `compare` (DIN four ways), `subset` (data of the quick form), `step_time` with
  `eager_layer` (a whole training step), `throughput`
- `variants` (the four models), `baselines` (rates), `frozen_history`, `bootstrap`, `significance` (tests over seeds)
- `tables`, `plots`
"""

# ruff: noqa: F401, imported when they are used
from __future__ import annotations

from typing import TYPE_CHECKING

from mixpol_models.lazy import lazy_names

if TYPE_CHECKING:
    from mixpol_models.experiments.baselines import RateBaseline
    from mixpol_models.experiments.bootstrap import Difference, paired_bootstrap
    from mixpol_models.experiments.compare import Comparison
    from mixpol_models.experiments.demo import run_demo
    from mixpol_models.experiments.grid.config import ExperimentConfig, load_experiment
    from mixpol_models.experiments.grid.runner import run_experiment
    from mixpol_models.experiments.step_time import StepRow
    from mixpol_models.experiments.variants import VARIANTS, Variant

__getattr__, __all__ = lazy_names(__name__, __file__)
