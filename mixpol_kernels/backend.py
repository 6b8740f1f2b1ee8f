"""Which implementation runs, and why. An explicit choice works or raises; "auto" logs its reason once."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.derivatives import refuse_tangents
from mixpol_kernels.library import INTERPRETING, constant, library

BACKENDS = ("cpu", "cuda", "triton", "reference")
# What "auto" tries, by the type of device, before the reference. The CUDA forwards come first: what needs a gradient
# they refuse, and Triton takes.
ORDER = {"cuda": ("cuda", "triton")}
MOST_ON_CHIP = 512  # columns and units that fit into the shared memory of a block of any GPU
# What the compiled kernels of some ops store; they compute in float32.
STORED = (torch.float32, torch.bfloat16, torch.float16)
_log = logging.getLogger("mixpol_kernels")
_said: set[str] = set()


@dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    Attributes:
        op: name of the op.
        backend: the implementation that would run: "cpu", "cuda", "triton" or "reference".
        reason: why it was chosen.
        rejected: reason for each implementation that would not run, by name.
        saved_bytes: bytes kept between forward and backward beyond the inputs; None if not known.
    """

    op: str
    backend: str
    reason: str
    rejected: dict[str, str] = field(default_factory=dict)
    saved_bytes: int | None = None

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.backend} ({self.reason})"]
        lines += [f"  not {name}: {why}" for name, why in self.rejected.items()]
        if self.saved_bytes is not None:
            lines.append(f"  keeps {self.saved_bytes} bytes between forward and backward beyond the inputs")
        return "\n".join(lines)


class _Explaining(Exception):
    """Carries the choice out of an op that is being explained, before anything runs."""

    def __init__(self, explanation: Explanation) -> None:
        self.explanation = explanation


_explaining: set[int] = set()  # threads that are explaining, not running


def cpu_refusal(like: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> str:
    """Why the compiled CPU kernels cannot take tensors like this one; empty if they can."""
    if not library.loaded:
        return f"the compiled library is not loaded: {library.reason}"
    if like.device.type != "cpu":
        return f"it takes tensors on the CPU and got them on {like.device}; move the inputs with .cpu()"
    if like.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"it takes {names} and got {like.dtype}; convert with .float(), or use backend='reference'"
    return ""


def cuda_refusal(
    like: Tensor,
    gradient: bool = False,
    sizes: tuple[int, ...] = (),
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
) -> str:
    """Why the compiled CUDA kernels cannot take tensors like this one; empty if they can.

    Args:
        like: one of the inputs.
        gradient: whether a backward may follow, for an op that has none there.
        sizes: D and the units of hidden layers.
        dtypes: what the kernel takes.
    """
    if not library.cuda_loaded:
        return f"the compiled CUDA kernels are not there: {library.cuda_reason}"
    if like.device.type != "cuda":
        return f"it takes tensors on a GPU and got them on {like.device}; move the inputs with .cuda()"
    if like.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"it takes {names} and got {like.dtype}; convert with .float(), or use backend='triton'"
    if gradient:
        return "it has no backward, and an input requires a gradient; use backend='triton', or torch.no_grad()"
    if max(sizes, default=0) > MOST_ON_CHIP:
        return f"it takes D and units up to {MOST_ON_CHIP}, what fits on chip; use backend='reference'"
    return ""


def triton_refusal(like: Tensor, dtypes: tuple[torch.dtype, ...] = STORED) -> str:
    """Why no Triton kernel can take tensors like this one; empty if one may. Triton itself is not imported."""
    if like.device.type != "cuda" and not (like.device.type == "cpu" and INTERPRETING):
        return (
            f"it takes tensors on a GPU and got them on {like.device}; move the inputs with .cuda() "
            "(TRITON_INTERPRET=1, set before the import, runs it on the CPU, slowly, for tests)"
        )
    if not _triton_is_installed():
        return "triton is not installed; `pip install triton`"
    if like.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"it takes {names} and got {like.dtype}; convert with .float(), or use backend='reference'"
    return ""


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
    saved_bytes: Callable[[], int],
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    triton: Callable[[], str] | None = None,
    triton_saved_bytes: Callable[[], int] = lambda: 0,
    cuda: Callable[[], str] | None = None,
    inputs: Iterable[Tensor | None] = (),
) -> str:
    """Picks the implementation of `op` for these inputs.

    Args:
        op: name of the op, for messages.
        requested: "auto", or a name in BACKENDS: that one runs or ValueError is raised.
        like: one of the inputs; the others have its device, and the floating-point ones its dtype.
        saved_bytes: what the fused form keeps for backward, for `explain`.
        dtypes: what the compiled kernel takes, float32 among them.
        triton: why the Triton kernels of this op cannot take these inputs, empty if they can; None: it has none.
        triton_saved_bytes: what they keep for backward.
        cuda: why the compiled CUDA kernels of this op cannot take these inputs (`cuda_refusal`); None: it has none.
        inputs: those that the result depends on differentiably.

    Raises:
        ValueError: unknown name, or the named implementation cannot take the inputs.
        RuntimeError: kernels would run inside a transform of torch.func, or on inputs with a forward-mode tangent.
    """
    requested = _asked_for(requested)
    rejected: dict[str, str] = {}
    if requested == "reference":
        chosen, reason = "reference", "asked for by name"
    elif like.is_cpu and requested in ("auto", "cpu") and not cpu_refusal(like, dtypes):
        # The common case, without what the others need: this runs in every call.
        chosen, reason = "cpu", "asked for by name" if requested != "auto" else "the first that can take the inputs"
    else:
        refusals: dict[str, Callable[[], str]] = {"cpu": lambda: cpu_refusal(like, dtypes)}
        if cuda is not None:
            refusals["cuda"] = cuda
        if triton is not None:
            refusals["triton"] = lambda: triton_refusal(like) or triton()
        names = ORDER.get(like.device.type, ("cpu",)) if requested == "auto" else (requested,)
        for fused in names:
            if fused == "cuda" and cuda is None and requested == "auto":
                continue
            title = {"cuda": "compiled CUDA kernels", "triton": "Triton kernels"}.get(fused)
            missing = f"{op} has no {title} yet; use backend='reference'"
            refusal = refusals[fused]() if fused in refusals else missing
            if not refusal:
                break
            if requested != "auto":
                raise ValueError(f"{op}: backend={fused!r} was requested, but {refusal}")
            rejected[fused] = refusal
        chosen = "reference" if names[-1] in rejected else fused
        reason = "asked for by name" if requested != "auto" else "the first that can take the inputs"
    if _explaining and threading.get_ident() in _explaining:
        kept = {"cpu": saved_bytes, "triton": triton_saved_bytes}.get(chosen, lambda: None)()
        raise _Explaining(Explanation(op, chosen, reason, rejected, kept))
    if chosen != "reference":
        if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
            kernels = "Triton" if chosen == "triton" else "compiled"
            raise RuntimeError(
                f"{op}: the {kernels} kernels have no rules for torch.vmap and the other transforms of torch.func; "
                "pass a whole batch (several targets per history as [B, M, D]), or use backend='reference'"
            )
        refuse_tangents(op, *inputs)
    if chosen == "reference" and rejected and not torch.compiler.is_compiling():
        why = "; ".join(f"the {name} backend cannot run: {refusal}" for name, refusal in rejected.items())
        _say_once(f"{op}: using the PyTorch reference, since {why}")
    return chosen


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
    if _explaining and threading.get_ident() in _explaining:
        chosen = f"plain PyTorch that calls the modules, since {reason}"
        rejected = {"cpu": f"it reads parameters, and {reason}"}
        raise _Explaining(Explanation(op, "reference", chosen, rejected))
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
    _explaining.add(threading.get_ident())
    try:
        function(*args, **kwargs)
    except _Explaining as found:
        return found.explanation
    finally:
        _explaining.discard(threading.get_ident())
    raise TypeError(f"function was {function!r}; expected an op or a module of mixpol_kernels")
