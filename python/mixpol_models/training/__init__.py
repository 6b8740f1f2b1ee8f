"""Training a backbone with Lightning, from a configuration to test metrics.

    result = train(TrainConfig(sequence="mixed", fusion="tapf", epochs=1))
    result.test.auc

The rooms: `config` (what can be set), `prepare` (log to example sets), `module` (the LightningModule), `optimizer` and
`clipping` (dense layers and sparse tables together), `metrics`, `checkpoints` (resume), `distributed` (several
processes), `run` (all of it).
"""

from mixpol_models.training.config import TrainConfig, load_config
from mixpol_models.training.metrics import GroupAUC, Metrics, auc, evaluate, group_auc
from mixpol_models.training.module import CTRModule
from mixpol_models.training.prepare import prepare, with_history_targets
from mixpol_models.training.run import TrainResult, train

__all__ = [
    "CTRModule",
    "GroupAUC",
    "Metrics",
    "TrainConfig",
    "TrainResult",
    "auc",
    "evaluate",
    "group_auc",
    "load_config",
    "prepare",
    "train",
    "with_history_targets",
]
