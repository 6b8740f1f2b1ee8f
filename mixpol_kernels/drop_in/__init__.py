"""Fused layers in models of other frameworks: `accelerate`, `restore`, `patched`; and polarity: `with_polarity`."""

from mixpol_kernels.drop_in.accelerate import Left, Replaced, Report, accelerate, patched, restore
from mixpol_kernels.drop_in.polarity import given_polarity, with_polarity

__all__ = [
    "Left",
    "Replaced",
    "Report",
    "accelerate",
    "given_polarity",
    "patched",
    "restore",
    "with_polarity",
]
