"""Checks of the numbers that modules are made with."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import Tensor

from mixpol_kernels.checks import shown


def check_size(name: str, value: Any, least: int = 1) -> None:
    """`value` is a whole number of at least `least`.

    Raises:
        TypeError: not an integer; bool, float and tensors are none.
        ValueError: too small.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} was {shown(value)}; expected an integer of at least {least}")
    if int(value) < least:
        raise ValueError(f"{name} was {value}; expected at least {least}")


def check_widths(name: str, value: Any) -> list[int]:
    """One to three layer widths, as a list.

    Raises:
        TypeError: not a sequence of integers.
        ValueError: too few, too many, or a width below 1.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        raise TypeError(f"{name} was {value}; expected a sequence of widths such as [{max(int(value), 1)}]")
    if isinstance(value, (str, bytes, Tensor)) or not (isinstance(value, Sequence) or hasattr(value, "tolist")):
        raise TypeError(f"{name} was {shown(value)}; expected a sequence of widths such as [64]")
    widths = value if isinstance(value, Sequence) else value.tolist()
    if not isinstance(widths, Sequence) or not 1 <= len(widths) <= 3:
        raise ValueError(f"{name} was {shown(value)}; expected one to three layer widths")
    for i, width in enumerate(widths):
        check_size(f"{name}[{i}]", width)
    return [int(width) for width in widths]
