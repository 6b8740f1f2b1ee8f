"""CTR models built on `mixpol_kernels.nn`: each takes a `Batch` and gives one logit per example.

Modules: one per backbone; `build` (a model by its name); `base` (base classes, MLP), `options` and `inputs` (options,
tables and polarity fusion that all share). Layers: `padding` (jagged to padded), `attend` (masked attention), `encoder`
(a transformer layer), `positions`, `ns_tokens`, `token_linear`, `head_mix` and `swiglu` (tokens with own weights).
Every model has `history_attention(batch)`: the attention weight of each history event, [N].
"""

from mixpol_models.backbones.base import Backbone
from mixpol_models.backbones.build import BACKBONES, build_backbone, own_options
from mixpol_models.backbones.din import DIN
from mixpol_models.backbones.din_action import DINAction
from mixpol_models.backbones.din_two_lists import DINTwoLists
from mixpol_models.backbones.hyformer import HyFormer
from mixpol_models.backbones.mixformer import MixFormer
from mixpol_models.backbones.onetrans import OneTrans
from mixpol_models.backbones.options import BackboneOptions
from mixpol_models.backbones.transact import TransAct
from mixpol_models.backbones.transformer import Transformer

__all__ = [
    "BACKBONES",
    "DIN",
    "Backbone",
    "BackboneOptions",
    "DINAction",
    "DINTwoLists",
    "HyFormer",
    "MixFormer",
    "OneTrans",
    "TransAct",
    "Transformer",
    "build_backbone",
    "own_options",
]
