"""Names that settings and flags take. Needs nothing but Python, so that `mixpol --help` stays quick."""

from typing import Literal

BackboneName = Literal[
    "din", "din_two_lists", "din_action", "transact", "transformer", "onetrans", "hyformer", "mixformer"
]
SequenceKind = Literal["mixed", "positive"]
Fusion = Literal["none", "bias", "tapf"]
Precision = Literal["fp32", "bf16", "fp16"]
Accelerator = Literal["auto", "cpu", "gpu"]
# Data sets that go by a name alone: in the cache, by pip, drawn.
KUAIRAND_PURE, ML_100K, SYNTHETIC = DATA_NAMES = ("kuairand-pure", "ml-100k", "synthetic")
