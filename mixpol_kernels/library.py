"""The compiled library: where it is, whether it loaded, and the namespace that it fills."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

NAMESPACE = "mixpol"
# The ops that Triton kernels compute: the usual signatures, in a namespace of their own, since the usual ones' CPU and
# CUDA keys belong to the compiled libraries.
TRITON = "mixpol_triton"
# Triton reads the variable when a module with kernels is imported; so it has to be set before ours is.
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
ISA_LEVELS = ("base", "avx2", "avx512", "avx512_bf16")


def constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """For torch.compile: what `function` returned while tracing stays so, and its inside is not traced.

    As `torch.compiler.assume_constant_result`, which imports the whole of torch._dynamo.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


# Where torch sends a call that has such a tensor among its arguments.
_OTHER_TENSORS = (
    *("SparseCPU", "SparseCUDA", "SparseCsrCPU", "SparseCsrCUDA", "MkldnnCPU", "QuantizedCPU", "QuantizedCUDA"),
    *("SparseMeta", "SparseCsrMeta", "NestedTensorCPU", "NestedTensorCUDA", "AutogradNestedTensor"),
)
_refusals = torch.library.Library(NAMESPACE, "IMPL")


def define(name: str, schema: str) -> None:
    """Declares `mixpol::name`; the compiled library only adds implementations, and these take dense tensors."""
    torch.library.define(f"{NAMESPACE}::{name}", schema)

    def refuse(*args: Any, **kwargs: Any) -> None:
        op = getattr(torch.ops.mixpol, name).default
        named = dict(zip((a.name for a in op._schema.arguments), args, strict=False)) | kwargs
        for argument, value in named.items():
            values = value if isinstance(value, list | tuple) else [value]
            for i, tensor in enumerate(values):
                if isinstance(tensor, torch.Tensor) and (kind := _kind(tensor)):
                    entry = f"{argument}[{i}]" if isinstance(value, list | tuple) else argument
                    raise TypeError(f"{entry} is {kind}")

    for key in _OTHER_TENSORS:
        _refusals.impl(name, refuse, key)


def _kind(tensor: torch.Tensor) -> str:
    """Why a tensor's rows cannot be read in place, and what to do; empty for a dense tensor."""
    if tensor.is_nested:
        return "a nested tensor; expected its values, with offsets="
    if tensor.is_quantized:
        return f"quantized ({tensor.dtype}); expected floating point: convert it with .dequantize()"
    if tensor.layout != torch.strided:
        return f"stored as {tensor.layout}; expected a dense tensor: convert it with .to_dense()"
    return ""


def _find() -> Path | None:
    named = os.environ.get("MIXPOL_LIBRARY")
    if named:
        if not Path(named).is_file():
            raise ValueError(f"MIXPOL_LIBRARY was {named!r}; expected the path of a compiled library, or unset")
        return Path(named)
    # An editable install keeps the library in site-packages and the sources elsewhere: look in every folder.
    for folder in sys.modules[__package__].__path__:
        for path in sorted(Path(folder).glob("_C*.so")):
            return path
    return None


_REBUILD = "rebuild it with `pip install --no-build-isolation --force-reinstall --no-deps -e .`"


def _outdated(path: Path) -> str:
    """Why a loaded library does not belong to these sources: it expects other arguments. Empty if it does."""
    try:
        compiled = ctypes.CDLL(str(path)).mixpol_signatures
    except AttributeError:
        return f"{path.name} is older than the package; {_REBUILD}"
    compiled.restype = ctypes.c_char_p
    for signature in compiled().decode().splitlines():
        expected = torch._C.parse_schema(f"{NAMESPACE}::{signature}")
        declared = torch._C._jit_get_schemas_for_operator(expected.name)
        if declared and expected not in declared:
            return (
                f"{path.name} was built for another signature of {expected.name} than the package declares; {_REBUILD} "
                "(after `make schemas`, if it is you who changed it)"
            )
    return ""


def _load_cuda(path: Path) -> str:
    """Loads the CUDA kernels. Returns why they are not there; empty if they are."""
    if not path.is_file():
        return "not built; that needs a CUDA build of torch, and nvcc, when the package is installed from its sources"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load under torch {torch.__version__} ({error}); {_REBUILD}"
    return _outdated(path)


class CompiledLibrary:
    """State of the compiled library. `reason` says why it is not there, or is empty.

    `cuda_reason` says it of the CUDA kernels, a library of their own beside it that only a CUDA build of torch has.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.reason = "not looked for yet"
        self.cuda_reason = "not looked for yet"

    @property
    def loaded(self) -> bool:
        return not self.reason

    @property
    def cuda_loaded(self) -> bool:
        return not self.cuda_reason

    def load(self) -> None:
        """Loads the library once; a missing one is normal, a broken one is reported in `reason`."""
        if os.environ.get("MIXPOL_SKIP_EXT") == "1":
            self.reason = "MIXPOL_SKIP_EXT=1 is set; unset it to use the compiled kernels"
            return
        level = os.environ.get("MIXPOL_CPU_ISA", "")
        if level and level not in ISA_LEVELS:
            raise ValueError(f"MIXPOL_CPU_ISA was {level!r}; expected one of {', '.join(ISA_LEVELS)}, or unset")
        self.path = _find()
        if self.path is None:
            self.reason = (
                "no compiled library in the package; build it with "
                "`pip install --no-build-isolation -e .` in a checkout (or `make setup`)"
            )
            return
        try:
            torch.ops.load_library(str(self.path))
        except OSError as error:
            self.reason = (
                f"{self.path.name} does not load under torch {torch.__version__} ({error}); it needs torch >= 2.10; "
                + _REBUILD
            )
            return
        self.reason = _outdated(self.path)
        self.cuda_reason = self.reason or _load_cuda(self.path.with_name("_cuda.so"))

    def isa(self) -> str:
        """The instruction set in use: one of ISA_LEVELS; "none" without the library."""
        return ISA_LEVELS[int(torch.ops.mixpol.cpu_isa())] if self.loaded else "none"


library = CompiledLibrary()
define("cpu_isa", "() -> int")
