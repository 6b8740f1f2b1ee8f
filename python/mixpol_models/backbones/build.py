"""Backbones by name."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

from mixpol_models.backbones.base import Backbone
from mixpol_models.backbones.din import DIN
from mixpol_models.backbones.din_action import DINAction
from mixpol_models.backbones.din_two_lists import DINTwoLists
from mixpol_models.backbones.hyformer import HyFormer
from mixpol_models.backbones.mixformer import MixFormer
from mixpol_models.backbones.onetrans import OneTrans
from mixpol_models.backbones.transact import TransAct
from mixpol_models.backbones.transformer import Transformer

BACKBONES: dict[str, type[Backbone]] = {
    "din": DIN,
    "din_two_lists": DINTwoLists,
    "din_action": DINAction,
    "transact": TransAct,
    "transformer": Transformer,
    "onetrans": OneTrans,
    "hyformer": HyFormer,
    "mixformer": MixFormer,
}


def build_backbone(name: str, **options: Any) -> Backbone:
    """Builds `BACKBONES[name]`.

    Args:
        name: a key of `BACKBONES`.
        **options: its arguments.

    Raises:
        ValueError: unknown name.
    """
    return _backbone(name)(**options)


def own_options(name: str) -> tuple[str, ...]:
    """Keyword arguments of a backbone beyond `BackboneOptions`.

    Raises:
        ValueError: unknown name.

    Example:
        >>> own_options("din")
        ('attention_units', 'activation', 'normalize')
    """
    classes = [c for c in reversed(_backbone(name).mro()) if issubclass(c, Backbone)]
    parameters = [p for c in classes for p in signature(c).parameters.values()]
    return tuple(dict.fromkeys(p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY))


def _backbone(name: str) -> type[Backbone]:
    if name not in BACKBONES:
        raise ValueError(f"backbone is {name!r}, expected one of {tuple(BACKBONES)}: mend the name")
    return BACKBONES[name]
