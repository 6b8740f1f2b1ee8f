"""CTR models built on `mixpol_kernels.nn`: each takes a `Batch` and gives one logit per example.

The rooms: one file per backbone, `tower` (the layers behind the pooled history), `build` (a model by its name).
"""

from mixpol_models.backbones.build import BACKBONES, build_backbone
from mixpol_models.backbones.din import DIN

__all__ = ["BACKBONES", "DIN", "build_backbone"]
