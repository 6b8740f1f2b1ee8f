"""A backbone by its name, and which options it takes."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

from torch import nn

from mixpol_models.backbones.din import DIN
from mixpol_models.backbones.din_action import DINAction
from mixpol_models.backbones.din_two_lists import DINTwoLists
from mixpol_models.backbones.frame import Frame
from mixpol_models.backbones.hyformer import HyFormer
from mixpol_models.backbones.mixformer import MixFormer
from mixpol_models.backbones.onetrans import OneTrans
from mixpol_models.backbones.transact import TransAct
from mixpol_models.backbones.transformer import Transformer

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "din": DIN,
    "din_two_lists": DINTwoLists,
    "din_action": DINAction,
    "transact": TransAct,
    "transformer": Transformer,
    "onetrans": OneTrans,
    "hyformer": HyFormer,
    "mixformer": MixFormer,
}


def build_backbone(name: str, **options: Any) -> nn.Module:
    """Builds `BACKBONES[name]`.

    Args:
        name: a key of `BACKBONES`.
        **options: its arguments.

    Raises:
        ValueError: unknown name.
    """
    return _backbone(name)(**options)


def own_options(name: str) -> tuple[str, ...]:
    """The keyword arguments of a backbone beyond the frame that all of them share.

    Raises:
        ValueError: unknown name.

    Example:
        >>> own_options("din")
        ('attention_units', 'activation', 'normalize')
    """
    parameters = signature(_backbone(name)).parameters.values()
    return tuple(p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY and p.name not in Frame.__annotations__)


def _backbone(name: str) -> Callable[..., nn.Module]:
    if name not in BACKBONES:
        raise ValueError(f"backbone is {name!r}, expected one of {tuple(BACKBONES)}: mend the name")
    return BACKBONES[name]
