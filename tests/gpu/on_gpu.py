"""Cases of the op tests, computed on the GPU.

The leaves stay on the CPU: autograd brings their gradients back, so that whatever judges a case need not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mixpol_kernels.ops.triton import devices
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.layouts import Placement

if not torch.cuda.is_available():
    pytest.skip("torch finds no GPU", allow_module_level=True)

DEVICE = torch.device("cuda")


def there(value: Any) -> Any:
    """Tensors, alone or in lists and dicts, on the GPU; views keep their strides where they have no gaps."""
    if isinstance(value, Tensor):
        return value.to(DEVICE)
    if isinstance(value, dict):
        return {name: there(item) for name, item in value.items()}
    return [there(item) for item in value] if isinstance(value, list) else value


def moved(case: Any) -> Any:
    """The same case, whose op runs on the GPU."""

    class Moved(type(case)):  # type: ignore[misc]
        def call(self, arguments: dict[str, Any], backend: str = "auto", **more: Any) -> Any:
            found = super().call(there(arguments), backend, **more)
            return found.cpu() if isinstance(found, Tensor) else tuple(t.cpu() for t in found)

        def take(self, users: Sequence[int]) -> Any:
            return moved(super().take(users))

    return Moved(**vars(case))


@dataclass(frozen=True)
class Judged:
    """A case as `budget.over_budget` wants it.

    Attributes:
        case: on the CPU.
        gradients: whether to compare them too.
        split: float32 products of the Triton kernels in three of TensorFloat32, else IEEE.
    """

    case: Any
    gradients: bool = True
    split: bool = False

    @property
    def config(self) -> Any:
        return self.case.config

    def run(self, backend: str, where: Placement, dtype: torch.dtype) -> dict[str, Tensor]:
        case = moved(self.case)
        with nullcontext() if self.split else devices.ieee():
            if self.gradients:
                found: dict[str, Tensor] = case.run(backend, where, dtype)
                return found
            with torch.no_grad():
                out = case.call(case.arguments(where, dtype), backend)
        pooled = self.config.op not in ("polarity_embedding", "polarity_fusion")
        return {"out": out if pooled else where.gather(out)}

    def jitter(self, generator: torch.Generator, dtype: torch.dtype) -> Judged:
        return replace(self, case=self.case.jitter(generator, dtype))

    def rounded_once(self, generator: torch.Generator) -> Judged:
        return replace(self, case=self.case.rounded_once(generator))


def check(
    case: Any,
    backend: str,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    split: bool = False,
    **options: Any,
) -> None:
    """The case is within its error budget."""
    __tracebackhide__ = True
    judged: Any = Judged(case, backend != "cuda" or case.config.op == "polarity_embedding", split)
    where = case.place(generator, **options)
    lines = budget.over_budget(judged, where, generator, backend=backend, dtype=dtype)
    assert not lines, "\n".join(lines)
