"""Experiments that end in tables and pictures; `mixpol demo` runs them all.

The rooms: `variants` and `compare` (DIN four ways), `floors`, `frozen`, `bootstrap`, `subset` (the quick form's data);
`step_time` and `eager_layer` (a whole training step); `tables` and `pictures` (telling), `demo` (the order of it all).
"""

from mixpol_models.experiments.bootstrap import Difference, paired_bootstrap
from mixpol_models.experiments.compare import Comparison, compare
from mixpol_models.experiments.demo import run_demo
from mixpol_models.experiments.floors import Floor, floors
from mixpol_models.experiments.step_time import StepRow, step_time
from mixpol_models.experiments.variants import VARIANTS, Variant

__all__ = [
    "VARIANTS",
    "Comparison",
    "Difference",
    "Floor",
    "StepRow",
    "Variant",
    "compare",
    "floors",
    "paired_bootstrap",
    "run_demo",
    "step_time",
]
