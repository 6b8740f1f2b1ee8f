"""A backbone by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mixpol_models.backbones.din import DIN

BACKBONES: dict[str, Callable[..., nn.Module]] = {"din": DIN}


def build_backbone(name: str, **options: Any) -> nn.Module:
    """Builds `BACKBONES[name]`.

    Args:
        name: "din".
        **options: its arguments.

    Raises:
        ValueError: unknown name.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone is {name!r}, expected one of {tuple(BACKBONES)}: mend the name")
    return BACKBONES[name](**options)
