"""Fused layers in models of other frameworks: `accelerate(model)`, `restore(model)`, `patched(framework)`."""

from mixpol_kernels.drop_in.accelerate import Left, Replaced, Report, accelerate, patched, restore

__all__ = ["Left", "Replaced", "Report", "accelerate", "patched", "restore"]
