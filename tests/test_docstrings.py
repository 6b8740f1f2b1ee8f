"""Every example in a docstring runs, and every public op and module has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import mixpol_kernels
from mixpol_kernels.ops.target_attention._dice.api import dice_attention
from mixpol_kernels.ops.target_attention._statistics.api import unit_statistics

NAMES = [
    m.name
    for m in pkgutil.walk_packages(mixpol_kernels.__path__, "mixpol_kernels.")
    if not m.name.endswith((".__main__", "._C")) and ".drop_in." not in m.name
]
PUBLIC = [
    *[mixpol_kernels.explain, mixpol_kernels.mixed_polarity_attention, mixpol_kernels.polarity_embedding],
    *[mixpol_kernels.polarity_fusion, mixpol_kernels.target_attention, mixpol_kernels.interleave],
    *[mixpol_kernels.dot_target_attention, unit_statistics, dice_attention],
    *[getattr(mixpol_kernels.nn, name) for name in mixpol_kernels.nn.__all__],
]


def module_of(name: str) -> ModuleType:
    # Not getattr on the package: `mixpol_kernels.library` is the object of that name.
    return importlib.import_module(name)


@pytest.mark.parametrize("name", NAMES)
def test_examples(name: str) -> None:
    result = doctest.testmod(module_of(name), verbose=False)
    assert result.failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_modules_say_what_they_are(name: str) -> None:
    assert module_of(name).__doc__


@pytest.mark.parametrize("public", PUBLIC, ids=lambda p: p.__name__)
def test_public_docstrings(public: object) -> None:
    """Arguments are described by their names, and there is an example."""
    text = inspect.getdoc(public)
    assert text
    assert ">>>" in text
    function = public.__init__ if inspect.isclass(public) else public  # type: ignore[misc]
    for name in inspect.signature(function).parameters:
        if name not in ("self", "args", "kwargs"):
            assert name in text, name
