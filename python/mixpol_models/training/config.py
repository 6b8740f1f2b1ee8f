"""What a training run can be told. It lives in `mixpol_models.settings`, which needs neither torch nor Lightning."""

from mixpol_models.settings import BackboneName, TrainConfig, load_config

__all__ = ["BackboneName", "TrainConfig", "load_config"]
