"""The CUDA kernels, compiled for the CPU under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import platform

import pytest
from emulation import Emulation, build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The scheduler changes stacks in x86-64 assembly; the compile gate runs anywhere."""
    if platform.machine() in ("x86_64", "AMD64"):
        return
    for item in items:
        if "cuda_host" in str(item.path) and "test_cuda_compile" not in str(item.path):
            item.add_marker(pytest.mark.skip(reason="the emulation of CUDA threads needs an x86-64 CPU"))


@pytest.fixture(scope="session")
def cuda() -> Emulation:
    """Every CUDA kernel, on the CPU."""
    return Emulation(build("harness.cpp", "asan"))
