"""Fused mixed-polarity target attention for CTR models: functions here, modules in `mixpol_kernels.nn`."""

from mixpol_kernels import nn
from mixpol_kernels.backend import Explanation, explain
from mixpol_kernels.history import History
from mixpol_kernels.library import library as _library
from mixpol_kernels.ops.dot_target_attention.api import dot_target_attention
from mixpol_kernels.ops.fusion import FusionParameters
from mixpol_kernels.ops.interleave.api import Interleaved, interleave
from mixpol_kernels.ops.mixed_polarity_attention.api import mixed_polarity_attention
from mixpol_kernels.ops.polarity_embedding.api import polarity_embedding
from mixpol_kernels.ops.polarity_fusion.api import polarity_fusion
from mixpol_kernels.ops.target_attention.api import target_attention
from mixpol_kernels.ops.triton.reports import check_device_errors
from mixpol_kernels.ops.unit import ActivationUnit

__version__ = "0.1.0"
_library.load()
__all__ = [
    "ActivationUnit",
    "Explanation",
    "FusionParameters",
    "History",
    "Interleaved",
    "__version__",
    "check_device_errors",
    "dot_target_attention",
    "explain",
    "interleave",
    "mixed_polarity_attention",
    "nn",
    "polarity_embedding",
    "polarity_fusion",
    "target_attention",
]
