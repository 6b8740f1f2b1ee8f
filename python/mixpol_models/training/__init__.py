"""Training a backbone with Lightning, from a configuration to test metrics.

    result = train(TrainConfig(sequence="mixed", fusion="tapf", epochs=1))
    result.test.auc

Modules: `config` (settings), `preparation` (log to example sets), `module` (the LightningModule), `optimizer` and
`clipping` (dense layers and sparse tables together), `metrics`, `checkpoints`, `resume`, `distributed` (several
processes), `run` (all of it).
"""

# ruff: noqa: F401, imported when they are used
from __future__ import annotations

from typing import TYPE_CHECKING

from mixpol_models.lazy import lazy_names

if TYPE_CHECKING:
    from mixpol_models.training.config import TrainConfig, load_config
    from mixpol_models.training.metrics import GroupAUC, Metrics, auc, evaluate, group_auc
    from mixpol_models.training.module import CTRModule
    from mixpol_models.training.preparation import prepare, with_history_targets
    from mixpol_models.training.run import TrainResult, train

__getattr__, __all__ = lazy_names(__name__, __file__)
