"""A grid of training runs: from a YAML file to a store of results.

    store = run_experiment(load_experiment("planted"), "results")

The rooms: `config` (data, settings, axes), `source` (the log), `ablations` (spoiled histories), `strata` (parts of the
test rows), `outcome` (one run, one row), `store` (all rows, one file), `pool` (worker processes), `runner` (all of it).
"""

from mixpol_models.experiments.grid.config import ExperimentConfig, load_experiment
from mixpol_models.experiments.grid.runner import run_experiment
from mixpol_models.experiments.grid.store import ResultStore

__all__ = ["ExperimentConfig", "ResultStore", "load_experiment", "run_experiment"]
