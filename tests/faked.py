"""A GPU that is not here: its tensors without memory, its autocast, kernels that count as there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mixpol_kernels import backend as backends

Layer = TypeVar("Layer", bound=nn.Module)


@contextlib.contextmanager
def gpu(autocast: torch.dtype | None = None) -> Iterator[None]:
    """Within, what is made with device="cuda" is a fake; under autocast to a dtype, which torch would switch off."""
    before = torch.get_autocast_dtype("cuda")
    if autocast is not None:
        torch.set_autocast_dtype("cuda", autocast)
        torch.set_autocast_enabled("cuda", True)
    try:
        with FakeTensorMode():
            yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)


def moved(module: Layer) -> Layer:
    """The module itself, with fakes on the GPU in place of its parameters and buffers."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
                part._parameters[name] = nn.Parameter(empty, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    return module


def with_triton(
    monkeypatch: pytest.MonkeyPatch, refuses: Any = lambda *_, **__: "", compiled: str = "not built"
) -> None:
    """Triton counts as there. `refuses`: what its kernels say to sizes; `compiled`: why there are no CUDA forwards."""
    monkeypatch.setattr(backends.library, "cuda_reason", compiled)
    monkeypatch.setitem(backends._NOT_THERE, "triton", lambda _: "")
    monkeypatch.setattr("mixpol_kernels.ops.triton.devices.architecture", lambda index: "sm_90")
    for op in ("target_attention", "polarity_fusion", "dot_target_attention"):
        monkeypatch.setattr(f"mixpol_kernels.ops.{op}.triton.support.refusal", refuses)
