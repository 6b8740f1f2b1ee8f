"""Which layer of which framework has a fused form. One file a framework beside this one fills in the rest."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from mixpol_kernels.backend import Explanation

# Framework, by the name of its package, and the distribution that brings it.
FRAMEWORKS = {
    "fuxictr": "fuxictr",
    "deepctr_torch": "deepctr-torch",
    "recbole": "recbole",
    "torch_rechub": "torch-rechub",
    "tzrec": "tzrec",
}


@dataclass(frozen=True)
class Layer:
    """A framework's layer and its fused form.

    Attributes:
        original: the framework's class. Only it is replaced, not its subclasses, which may compute something else.
        fused: subclass of `original` that overrides `forward` and nothing else, so that an instance can change its
            class and keep parameters, buffers, hooks and names.
        refusal: why an instance cannot be replaced; empty if it can.
        signature: the arguments of the original's `forward` that the fused form was written for.
        asks: what would run an instance on inputs like a tensor: evaluated, and then in its mode of now.
        polar: the fused form behind a polarity fusion, where there is one.
    """

    original: type[nn.Module]
    fused: type[nn.Module]
    refusal: Callable[[nn.Module], str]
    signature: str
    asks: tuple[Callable[[nn.Module, Tensor], Explanation], ...]
    polar: type[nn.Module] | None = None


@dataclass(frozen=True)
class Adapter:
    """The layers of one framework, and its versions that the tests ran with."""

    framework: str
    tested: tuple[str, ...]
    layers: tuple[Layer, ...]


_adapters: dict[str, Adapter] = {}


def adapter(framework: str) -> Adapter:
    """The adapter of an installed framework.

    An unknown version is taken with a warning if its classes still look as expected.

    Raises:
        ValueError: unknown framework.
        ImportError: it is not installed, or its classes are not the ones that the adapter was written for.
    """
    if framework not in FRAMEWORKS:
        raise ValueError(f"framework was {framework!r}; expected one of {', '.join(map(repr, FRAMEWORKS))}")
    if framework not in _adapters:
        module = importlib.import_module(f"mixpol_kernels.drop_in.{framework}")
        found: Adapter = module.ADAPTER
        _check(found)
        _adapters[framework] = found
    return _adapters[framework]


def loaded() -> list[Adapter]:
    """Adapters of the frameworks that this process has imported: a model can have no layer of another."""
    return [adapter(name) for name in FRAMEWORKS if name in sys.modules]


def arguments(layer: type[nn.Module]) -> str:
    """The arguments of a layer's forward, as text, without annotations."""
    parameters = inspect.signature(layer.forward).parameters.values()
    return ", ".join(str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters)


def _check(adapter: Adapter) -> None:
    try:
        version = importlib.metadata.version(FRAMEWORKS[adapter.framework])
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    for layer in adapter.layers:
        if arguments(layer.original) != layer.signature:
            raise ImportError(
                f"{adapter.framework} {version}: {layer.original.__name__}.forward takes "
                f"({arguments(layer.original)}); the fused form was written for ({layer.signature}) of version "
                f"{_versions(adapter)}. Nothing was replaced."
            )
    if version not in adapter.tested:
        warnings.warn(
            f"{adapter.framework} {version} was not tested with; its layers look as in {_versions(adapter)}, so they "
            "are replaced. Compare an output before and after.",
            stacklevel=4,
        )


def _versions(adapter: Adapter) -> str:
    return ", ".join(adapter.tested) or "its published formula"
