"""Launches of Triton kernels, compiled for a GPU that is not here and not run.

`launches()` puts a driver in place that knows nothing but its architecture, and lets the ops take tensors on the CPU
for the GPU's: what an op launches is compiled exactly as it would be there, by Triton's own specialisation, and handed
back with its grid and arguments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from mixpol_kernels import backend
from mixpol_kernels.library import TRITON
from mixpol_kernels.ops.triton import devices

ARCHITECTURE = "sm_90"


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        kernel: its name.
        cubin: the machine code.
        shared: dynamic shared memory of a block, bytes.
        warps, stages: `num_warps` and `num_stages`.
        grid: blocks in x, y and z.
        arguments: by name what the kernel takes at run time, in order: tensors and numbers, with Triton's type.
        constants: by name what it was compiled for.
        configuration: the shipped one that was looked up before, "target_attention/forward/half/64:64"; empty for
            kernels that have none.
    """

    kernel: str
    cubin: bytes
    shared: int
    warps: int
    stages: int
    grid: tuple[int, int, int]
    arguments: dict[str, tuple[str, Any]]
    constants: dict[str, Any] = field(default_factory=dict)
    configuration: str = ""


class _Driver:
    """What Triton asks a driver before it launches."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", int(ARCHITECTURE.removeprefix("sm_")), 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def launches() -> Iterator[list[Launch]]:
    """Inside, ops on CPU tensors with backend="triton" launch into the list, as on a GPU of ARCHITECTURE."""
    found: list[Launch] = []
    looked_up: list[tuple[str, devices.Config]] = []
    compile_only, look_up = JITFunction.run, devices.launched

    def launched(folder: Path, architecture: str, name: str) -> devices.Config:
        looked_up.append((f"{folder.parents[1].name}/{name}", look_up(folder, architecture, name)))
        return looked_up[-1][1]

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = compile_only(self, *args, grid=grid, warmup=True, **options)
        launch = _launch(self, kernel, args, options, grid)
        asked = [name for name, config in looked_up if (config.warps, config.stages) == (launch.warps, launch.stages)]
        named = asked[-1] if asked and "num_stages" in options else ""
        found.append(dataclasses.replace(launch, configuration=named))
        return kernel

    _offer_on_the_cpu()
    driver = triton.runtime.driver
    before = getattr(driver, "_active", None)
    driver.set_active(_Driver())
    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.dict(backend._NOT_THERE, triton=lambda like: ""),
        mock.patch.object(devices, "architecture", return_value=ARCHITECTURE),
        mock.patch.object(devices, "launched", launched),
    ):
        try:
            yield found
        finally:
            driver._active = before


def _launch(function: Any, kernel: Any, args: Any, options: dict[str, Any], grid: Any) -> Launch:
    names = [p.name for p in function.params]
    values = {p.name: p.default for p in function.params if p.has_default}
    values |= dict(zip(names, args, strict=False)) | {k: v for k, v in options.items() if k in names}
    types = kernel.src.signature
    grid = grid(values) if callable(grid) else grid
    return Launch(
        kernel=function.fn.__name__,
        cubin=kernel.asm["cubin"],
        shared=kernel.metadata.shared,
        warps=kernel.metadata.num_warps,
        stages=kernel.metadata.num_stages,
        grid=(*grid, 1, 1)[:3],
        arguments={n: (str(types[n]), values[n]) for n in names if types[n] != "constexpr"},
        constants={n: values[n] for n in names if types[n] == "constexpr" and not isinstance(values[n], Tensor)},
    )


@functools.cache
def _offer_on_the_cpu() -> torch.library.Library:
    """Registers for CPU tensors what the Triton ops do with those of a GPU."""
    library = torch.library.Library(TRITON, "IMPL")  # type: ignore[no-untyped-call]
    gpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith(f"{TRITON}::") and not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"):
            op = getattr(torch.ops.mixpol_triton, name.partition("::")[2]).default
            library.impl(name.partition("::")[2], functools.partial(op.redispatch, gpu), "CPU")  # type: ignore[no-untyped-call]
    return library
