"""Fixtures of the op tests. They ask for backend "cpu" by name, so they fail where the library is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mixpol_kernels.testing.inputs import Config, make


@pytest.fixture(params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each implementation, by name."""
    return str(request.param)


@pytest.fixture
def refuses(generator: torch.Generator) -> Callable[..., None]:
    """Checks that a call with one argument changed raises, and leaves no trace in the other arguments."""

    def check(
        config: Config,
        change: Callable[[dict[str, Any]], None],
        error: type[Exception],
        pattern: str,
        backend: str,
    ) -> None:
        case = make(config, generator)
        arguments = case.arguments(case.place(generator), requires_grad=True)
        change(arguments)
        options = {"backend": arguments.pop("backend", backend)}
        before = [t.detach().clone() for t in tensors(arguments)]
        with pytest.raises(error, match=f"(?s){pattern}"):
            case.call(arguments, **options)
        for tensor, old in zip(tensors(arguments), before, strict=True):
            assert tensor.grad is None
            assert tensor.device.type == "meta" or torch.equal(tensor.nan_to_num(), old.nan_to_num())

    return check


def tensors(arguments: dict[str, Any]) -> list[Tensor]:
    """Every tensor among the arguments, those in lists included."""
    flat = [v for value in arguments.values() for v in (value if isinstance(value, list) else [value])]
    return [v for v in flat if isinstance(v, Tensor)]
