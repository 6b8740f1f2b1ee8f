"""The ops as modules that hold their parameters."""

from mixpol_kernels.nn.mixed_polarity_attention import MixedPolarityAttention
from mixpol_kernels.nn.multi_head_target_attention import MultiHeadTargetAttention
from mixpol_kernels.nn.polarity_embedding import PolarityEmbedding
from mixpol_kernels.nn.polarity_fusion import PolarityFusion
from mixpol_kernels.nn.target_attention import TargetAttention

__all__ = [
    "MixedPolarityAttention",
    "MultiHeadTargetAttention",
    "PolarityEmbedding",
    "PolarityFusion",
    "TargetAttention",
]
