"""Which implementation runs, and why. An explicit choice works or raises; "auto" logs its reason once."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixpol_kernels.derivatives import refuse_tangents
from mixpol_kernels.library import INTERPRETING, constant, library

BACKENDS = ("cpu", "cuda", "triton", "reference")
# What "auto" tries, by the type of device, before the reference. The CUDA forwards come first: what needs a gradient
# they refuse, and Triton takes.
ORDER = {"cuda": ("cuda", "triton")}
MOST_ON_CHIP = 512  # columns and units that fit into the shared memory of a block of any GPU
STORED = (torch.float32, torch.bfloat16, torch.float16)  # computed in float32
TIME_TYPES = (torch.int64, torch.int32, torch.float32, torch.float64)


class Kernels(NamedTuple):
    """Coverage of an op by one backend: dtypes, and whether there is a backward."""

    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    backward: bool = True


# Who runs what, beside the reference, which runs all. `choose`, `info`, the drop-ins and the documentation read it.
KERNELS: dict[str, dict[str, Kernels]] = {
    "interleave": dict.fromkeys(("cpu", "cuda", "triton"), Kernels(TIME_TYPES, False)),
    "polarity_embedding": {"cpu": Kernels(), "cuda": Kernels(), "triton": Kernels(STORED)},
    "polarity_fusion": {"cpu": Kernels(), "cuda": Kernels(backward=False), "triton": Kernels(STORED)},
    "target_attention": {"cpu": Kernels(STORED), "cuda": Kernels(backward=False), "triton": Kernels(STORED)},
    "dot_target_attention": {"cpu": Kernels(), "triton": Kernels(STORED)},
    "mixed_polarity_attention": {"cpu": Kernels(STORED), "cuda": Kernels(backward=False), "triton": Kernels(STORED)},
    # Parts of modules, not public.
    "dice_attention": {"cpu": Kernels(), "triton": Kernels(STORED)},
    "unit_statistics": {"cpu": Kernels(), "triton": Kernels(STORED)},
}
_TITLES = {"cpu": "compiled CPU kernels", "cuda": "compiled CUDA kernels", "triton": "Triton kernels"}
_log = logging.getLogger("mixpol_kernels")
_said: set[str] = set()


@dataclass(frozen=True)
class Explanation:
    """Result of `explain`.

    Attributes:
        op: name of the op.
        backend: the implementation that would run: "cpu", "cuda", "triton" or "reference".
        reason: why it was chosen.
        rejected: reason for each implementation that would not run, by name.
        saved_bytes: bytes kept between forward and backward beyond the inputs; None if not known.
        products: what the kernels multiply and in what they sum; empty for the reference, which PyTorch decides.
        autocast: under `torch.autocast`, its dtype, the one computed in and why; else empty.
    """

    op: str
    backend: str
    reason: str
    rejected: dict[str, str] = field(default_factory=dict)
    saved_bytes: int | None = None
    products: str = ""
    autocast: str = ""

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.backend} ({self.reason})"]
        lines += [f"  not {name}: {why}" for name, why in self.rejected.items()]
        if self.products:
            lines.append(f"  multiplies {self.products}")
        if self.autocast:
            lines.append(f"  autocast {self.autocast}")
        if self.saved_bytes is not None:
            lines.append(f"  keeps {self.saved_bytes} bytes between forward and backward beyond the inputs")
        return "\n".join(lines)


class Explaining(Exception):
    """Carries the choice out of an op that is being explained, before anything runs."""

    def __init__(self, explanation: Explanation) -> None:
        self.explanation = explanation


_explaining: set[int] = set()  # threads that are explaining, not running


def explains() -> bool:
    """Whether this thread explains a call: it chooses, and computes nothing."""
    return bool(_explaining) and threading.get_ident() in _explaining


def refusal(op: str, backend: str, like: Tensor, gradient: bool = False) -> str:
    """Why the kernels of a backend cannot take tensors like this one; empty if they can, sizes and options aside.

    Args:
        op: a name in KERNELS.
        backend: "cpu", "cuda" or "triton".
        like: one of the inputs.
        gradient: whether a backward may follow.
    """
    kernels = KERNELS[op].get(backend)
    if kernels is None:
        return f"{op} has no {_TITLES[backend]} yet; use backend='reference'"
    if reason := _NOT_THERE[backend](like):
        return reason
    if like.dtype not in kernels.dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in kernels.dtypes)
        other = "triton" if backend == "cuda" else "reference"
        return f"it takes {names} and got {like.dtype}; convert with .float(), or use backend={other!r}"
    if gradient and not kernels.backward:
        return "it has no backward, and an input requires a gradient; use backend='triton', or torch.no_grad()"
    return ""


def beyond_chip(*sizes: int) -> str:
    """Why the CUDA kernels cannot take D and units of these sizes; empty if they can."""
    if max(sizes) > MOST_ON_CHIP:
        return f"it takes D and units up to {MOST_ON_CHIP}, what fits on chip; use backend='reference'"
    return ""


def _no_cpu(like: Tensor) -> str:
    if not library.loaded:
        return f"the compiled library is not loaded: {library.reason}"
    if like.device.type != "cpu":
        return f"it takes tensors on the CPU and got them on {like.device}; move the inputs with .cpu()"
    return ""


def _no_cuda(like: Tensor) -> str:
    if not library.cuda_loaded:
        return f"the compiled CUDA kernels are not there: {library.cuda_reason}"
    if like.device.type != "cuda":
        return f"it takes tensors on a GPU and got them on {like.device}; move the inputs with .cuda()"
    reason: str = _older_than_built(like.device.index or 0)
    return reason


@constant
def _older_than_built(index: int) -> str:
    """Why a GPU has no image in the compiled CUDA kernels, which would be an error at the launch only."""
    if not torch.cuda.is_available():  # tensors without memory, of a GPU that is elsewhere
        return ""
    major, minor = torch.cuda.get_device_capability(index)
    return "" if major >= 8 else f"it takes GPUs of compute capability 8.0 and newer, and got {major}.{minor}"


def _no_triton(like: Tensor) -> str:
    if like.device.type != "cuda" and not (like.device.type == "cpu" and INTERPRETING):
        return (
            f"it takes tensors on a GPU and got them on {like.device}; move the inputs with .cuda() "
            "(TRITON_INTERPRET=1, set before the import, runs it on the CPU, slowly, for tests)"
        )
    return "" if _triton_is_installed() else "triton is not installed; `pip install triton`"


_NOT_THERE = {"cpu": _no_cpu, "cuda": _no_cuda, "triton": _no_triton}


@constant
def _triton_is_installed() -> bool:
    found = importlib.util.find_spec("triton")
    return found is not None and found.origin is not None  # not some folder of that name


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a backward through these inputs can follow, so that the forward has to save for it."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def new_bytes(used: Iterable[Tensor | None], given: Iterable[Tensor | None]) -> int:
    """Bytes of the tensors that an op takes in place of given ones, options of a layer folded in say: for `explain`."""
    known = set(map(id, given))
    return sum(tensor.nbytes for tensor in used if tensor is not None and id(tensor) not in known)


def is_direct(requested: str, like: Tensor) -> bool:
    """Whether a forward may go straight to the compiled CPU kernel: nothing but the forward itself is asked for.

    Not with gradients or tangents, and not under autocast, in a transform, while a graph is made or `explain` asks.
    """
    return (
        not torch.is_grad_enabled()
        and like.is_cpu
        and like.dtype in STORED
        and library.loaded
        and (requested == "cpu" or (requested == "auto" and not os.environ.get("MIXPOL_BACKEND")))
        and not torch.compiler.is_compiling()
        and not torch._C._is_any_autocast_enabled()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
        and not _explaining
    )


def choose(
    op: str,
    requested: str,
    like: Tensor,
    saved_bytes: Callable[[str], int] = lambda _: 0,
    inputs: Iterable[Tensor | None] = (),
    products: Callable[[], str] = lambda: "",
    **sizes: Callable[[], str],
) -> str:
    """Picks the implementation of `op` for these inputs.

    Args:
        op: a name in KERNELS.
        requested: "auto", or a name in BACKENDS: that one runs or ValueError is raised.
        like: one of the inputs; the others have its device, and the floating-point ones its dtype.
        saved_bytes: what the kernels of "cpu" or "triton" keep for backward, for `explain`.
        inputs: those that the result depends on differentiably.
        products: by which products the Triton kernels multiply float32, for `explain`; empty for IEEE.
        **sizes: by backend, why its kernels cannot take the sizes and options of this call; empty if they can.

    Raises:
        ValueError: unknown name, or the named implementation cannot take the inputs.
        RuntimeError: kernels would run inside a transform of torch.func, or on inputs with a forward-mode tangent.
    """
    requested = _asked_for(requested)
    rejected: dict[str, str] = {}
    if requested == "reference":
        chosen, reason = "reference", "asked for by name"
    elif like.is_cpu and requested in ("auto", "cpu") and not refusal(op, "cpu", like):
        # The common case, without what the others need: this runs in every call.
        chosen, reason = "cpu", "asked for by name" if requested != "auto" else "the first that can take the inputs"
    else:
        names = candidates(requested, like.device.type)
        gradient = needs_grad(*inputs)
        for fused in names:
            if requested == "auto" and fused == "cuda" and fused not in KERNELS[op]:
                continue
            why_not = refusal(op, fused, like, gradient) or (sizes[fused]() if fused in sizes else "")
            if not why_not:
                break
            if requested != "auto":
                raise ValueError(f"{op}: backend={fused!r} was requested, but {why_not}")
            rejected[fused] = why_not
        chosen = "reference" if names[-1] in rejected else fused
        reason = "asked for by name" if requested != "auto" else "the first that can take the inputs"
    if explains():
        kept = saved_bytes(chosen) if chosen in ("cpu", "triton") else None
        raise Explaining(Explanation(op, chosen, reason, rejected, kept, _products(op, chosen, like.dtype, products)))
    if chosen != "reference":
        if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
            kernels = "Triton" if chosen == "triton" else "compiled"
            raise RuntimeError(
                f"{op}: the {kernels} kernels have no rules for torch.vmap and the other transforms of torch.func; "
                "pass a whole batch (several targets per history as [B, M, D]), or use backend='reference'"
            )
        refuse_tangents(op, *inputs)
    if chosen == "reference" and rejected and not torch.compiler.is_compiling():
        why = "; ".join(f"the {name} backend cannot run: {why_not}" for name, why_not in rejected.items())
        _say_once(f"{op}: using the PyTorch reference, since {why}")
    return chosen


def candidates(requested: str, device: str) -> tuple[str, ...]:
    """The backends that a request stands for on a type of device, in the order in which they are tried.

    Raises:
        ValueError: unknown name.
    """
    requested = _asked_for(requested)
    return ORDER.get(device, ("cpu",)) if requested == "auto" else (requested,)


def _products(op: str, backend: str, dtype: torch.dtype, of_triton: Callable[[], str]) -> str:
    """What the kernels of a backend multiply, in words."""
    if backend == "reference" or op in ("interleave", "polarity_embedding"):
        return ""
    name = str(dtype).removeprefix("torch.")
    if dtype != torch.float32:
        if backend == "cpu" and not (dtype == torch.bfloat16 and library.isa() == "avx512_bf16"):
            return f"{name} operands as float32"
        return f"{name} operands, summed in float32"
    return f"float32 operands, {(of_triton() if backend == 'triton' else '') or 'IEEE'}"


def plain_form(op: str, requested: str, reason: str) -> None:
    """Notes that a module computes `op` by calling its inner modules in PyTorch, since it cannot read their parameters.

    Raises:
        ValueError: a kernel was asked for by name.
    """
    requested = _asked_for(requested)
    if requested not in ("auto", "reference"):
        raise ValueError(
            f"{op}: backend={requested!r} was requested, but {reason}, and a kernel reads parameters where this has to "
            "be called; use backend='auto', which calls it in plain PyTorch"
        )
    if explains():
        chosen = f"plain PyTorch that calls the modules, since {reason}"
        rejected = {"cpu": f"it reads parameters, and {reason}"}
        raise Explaining(Explanation(op, "reference", chosen, rejected))
    if not torch.compiler.is_compiling():
        _say_once(f"{op}: using plain PyTorch, which calls the modules, since {reason}")


def _asked_for(requested: str) -> str:
    """The name as an argument, or "auto" as the environment has it.

    Raises:
        ValueError: unknown name.
    """
    name = "backend"
    if requested == "auto" and (by_environment := os.environ.get("MIXPOL_BACKEND")):
        name, requested = "the environment variable MIXPOL_BACKEND", by_environment
    if requested not in ("auto", *BACKENDS):
        raise ValueError(f"{name} was {requested!r}; expected 'auto', {', '.join(map(repr, BACKENDS))}")
    return requested


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        _log.warning(message)


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Says which implementation a public function or module would use for these inputs; computes nothing.

    Args:
        function: a public op (`mixpol_kernels.target_attention`, ...) or a module of `mixpol_kernels.nn`.
        *args, **kwargs: what it would be called with. They are validated as in a real call.

    Returns:
        An `Explanation`; print it for the reasons.

    Raises:
        TypeError: `function` is not an op or module of this package.

    Example:
        >>> import torch, mixpol_kernels as mk
        >>> layer = mk.nn.TargetAttention(8, [16], backend="reference")
        >>> mk.explain(layer, torch.randn(2, 8), torch.randn(2, 5, 8)).backend
        'reference'
    """
    nested = explains()
    _explaining.add(threading.get_ident())
    try:
        function(*args, **kwargs)
    except Explaining as found:
        return found.explanation
    finally:
        if not nested:
            _explaining.discard(threading.get_ident())
    raise TypeError(f"function was {function!r}; expected an op or a module of mixpol_kernels")
