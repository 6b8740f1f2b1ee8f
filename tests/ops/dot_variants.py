"""Variants of `dot_target_attention` that its tests go through."""

from __future__ import annotations

import pytest
import torch
from dot_cases import Config

# Both sides of every tile: tokens by 4 and 48, rows by 6 and 24, columns by 16.
COUNTS = (5, 0, 37, 64, 1, 130, 16, 47, 48, 49, 2, 97)
VARIANTS = {
    "one head": Config(),
    "one head, no projections": Config(attention=None),
    "two heads": Config(heads=2, layout="lengths", width=24, attention=40),
    "two heads, no projections": Config(heads=2, attention=None, layout="mask_left", width=64),
    "four heads": Config(heads=4, width=64, attention=64, layout="mask_holes"),
    "four heads, no projections": Config(heads=4, width=64, attention=None, candidates=3),
    "narrow heads, no projections": Config(heads=4, width=20, attention=None, layout="lengths", candidates=2),
    "odd width": Config(width=7, attention=10, heads=2, index_dtype=torch.int32),
    "width 1": Config(width=1, attention=4, heads=4, candidates=2),
    "wide": Config(width=200, attention=96, heads=3),
    "three candidates": Config(candidates=3, heads=4, layout="lengths", width=40, attention=8),
    "many candidates": Config(candidates=31, heads=2, counts=(3, 100, 0)),
    "many candidates, no projections": Config(candidates=31, heads=2, counts=(3, 100, 0), attention=None),
    "one candidate": Config(candidates=1, heads=2),
    "no candidates": Config(candidates=0, heads=2),
    "no users": Config(counts=()),
    "all empty": Config(counts=(0, 0, 0), heads=2),
    "keys only": Config(only=("w_k", "w_q")),
    "bilinear": Config(only=("w_k",), attention=16),
    "values only": Config(only=("w_v",), scale=0.3),
    "queries and output": Config(only=("w_q", "w_o"), heads=2, attention=16),
    "no output": Config(only=("w_q", "w_k", "w_v"), heads=3),
    "scale 1": Config(scale=1.0, attention=None, width=16),
    "negative scale": Config(scale=-0.4, heads=2),
    "peaked": Config(spread=30.0, heads=2, counts=COUNTS),
    "rows around a tile": Config(counts=COUNTS, heads=2),
    "best of one": Config(top_k=1, heads=2, counts=COUNTS),
    "best three": Config(top_k=3, heads=4, layout="mask_holes", width=24, attention=40),
    "best 50": Config(top_k=50, heads=2, counts=COUNTS, layout="lengths", candidates=2),
    "best 50, no projections": Config(top_k=50, heads=2, counts=COUNTS, layout="mask_left", attention=None),
    "best of many candidates": Config(top_k=7, candidates=31, heads=2, counts=(3, 100, 0), width=7),
    "best of few": Config(top_k=200, heads=2),
    "one very long row": Config(counts=(2, 4000, 0, 1), heads=2),
}  # fmt: skip
every_variant = pytest.mark.parametrize("variant", VARIANTS)
SOME = ("best 50", "one head", "four heads", "narrow heads, no projections", "three candidates")
some_variants = pytest.mark.parametrize("variant", SOME)
