"""Memory of a form: bytes saved for the backward pass, and the peak of a step."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

MIB = 2**20
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def saved_mib(forward: Callable[[], Tensor], inputs: Iterable[Tensor]) -> float:
    """MiB that autograd keeps between forward and backward beyond the inputs.

    Counts each storage once, whole (a saved view keeps all of its storage alive), whoever saves it: eager
    ops, the graphs of torch.compile and the fused op all go through the same hook.

    Args:
        forward: runs the forward pass with gradients on.
        inputs: tensors that exist anyway, parameters included.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    total = sum(kept.values())
    del output
    return total / MIB


def peak_mib(step: Callable[[], object], prepare: Callable[[], None], repeats: int = 3) -> float | None:
    """Largest extra resident memory during one forward and backward, MiB; None where it cannot be read.

    What counts on a CPU is the resident set: it has everything that was touched, from any allocator. A
    profiler of PyTorch's own allocator would miss the scratch of the BLAS and of a kernel. Linux keeps the
    high-water mark of the set and lets a process reset it (`5` into /proc/self/clear_refs), so it can be read
    around one call in a warm process; `ru_maxrss` would hide the call behind the peak of importing and
    compiling. Before each reading the free memory of the C heap goes back to the system (`malloc_trim`), else
    the step would reuse it unseen. Gradients of inputs and parameters are part of the figure: every form
    makes the same ones. Resolution: some tens of KiB.

    Args:
        step: one forward and backward; warmed up by the caller.
        prepare: drops the gradients.
        repeats: readings, of which the median is given.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if _CLEAR.exists() else None
    if trim is None:
        return None
    readings = []
    gc.collect()
    for _ in range(repeats):
        prepare()
        trim(0)
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:
            return None
        before = _status_kib("VmRSS")
        step()
        readings.append((_status_kib("VmHWM") - before) / 1024)
    prepare()
    return max(0.0, median(readings))


def _status_kib(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise OSError(f"{_STATUS} has no {field}")
