"""One entry of `tune`: its launch configuration put in place, checked against float64 and timed."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from mixpol_kernels.ops.dot_target_attention.triton import configs as dot
from mixpol_kernels.ops.polarity_fusion.triton import configs as fusion
from mixpol_kernels.ops.target_attention.triton import configs as attention
from mixpol_kernels.ops.triton import devices
from mixpol_kernels.ops.triton.devices import Config
from mixpol_models.bench.gate import GateError
from mixpol_models.bench.gpu_problems import Problem, Size, dot_problem, fusion_problem, unit_problem
from mixpol_models.bench.kernel_time import kernel_seconds, seconds_of
from mixpol_models.files import write_atomically

FOLDERS = {"target_attention": attention.FOLDER, "polarity_fusion": fusion.FOLDER, "dot_target_attention": dot.FOLDER}


@dataclass(frozen=True)
class Entry:
    """A configuration to find: of an op, by its name in the op's file ("backward/half/64:64")."""

    op: str
    name: str

    @property
    def direction(self) -> str:
        """One of devices.DIRECTIONS."""
        return self.name.split("/")[0]

    @property
    def element(self) -> str:
        """One of devices.ELEMENTS."""
        return self.name.split("/")[1]

    @property
    def width(self) -> int:
        """D."""
        return int(self.name.split("/")[2].partition(":")[0])

    @property
    def units(self) -> tuple[int, ...]:
        """Sizes of the hidden layers; () unless the op is the activation unit."""
        _, _, units = self.name.partition(":")
        return tuple(map(int, units.split("x"))) if units else ()

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the inputs on which the element is timed."""
        return torch.bfloat16 if self.element == "half" else torch.float32


@contextmanager
def configuration(entry: Entry, architecture: str, config: Config) -> Iterator[None]:
    """Inside, the entry's kernel is launched so. Its other direction stays, or is the same where it has none."""
    folder = FOLDERS[entry.op]
    other = entry.name.replace(entry.direction, next(d for d in devices.DIRECTIONS if d != entry.direction), 1)
    present = devices.configured(folder, architecture)
    chosen = {entry.name: config, other: present.get(other, replace(config, flush=0))}
    before = os.environ.get(devices.TUNED)
    with tempfile.TemporaryDirectory(prefix="mixpol-tune-") as scratch:
        os.environ[devices.TUNED] = scratch
        write(chosen, devices.tuned_file(folder, architecture, Path(scratch)))
        try:
            yield
        finally:
            os.environ.pop(devices.TUNED)
            if before is not None:
                os.environ[devices.TUNED] = before
            devices.configured.cache_clear()


def write(found: dict[str, Config], path: Path) -> None:
    """Adds configurations to a file of `devices.tuned_file`, which is replaced whole."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept |= {name: asdict(config) for name, config in found.items()}
    write_atomically(path, json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    devices.configured.cache_clear()


class Trial:
    """An entry's kernel on inputs of its size, on the backend under test.

    Args:
        entry: what is tuned.
        size: of the timed problem; the checked one has 48 users at most.
        device: where.
        backend: "triton".
    """

    def __init__(self, entry: Entry, size: Size, device: torch.device, backend: str = "triton") -> None:
        self.entry, self.device, self.backend = entry, device, backend
        self.timed = _problem(entry, size)
        # Multiples of 16 and 8, as most sizes that are timed: Triton compiles anew for other ones.
        self.checked = _problem(entry, Size(min(size.users, 48), min(size.length, 136)))

    def check(self) -> None:
        """The present configuration is within the error budget (contract 1).

        Raises:
            GateError: it is not.
        """
        with self._precision():
            shares = self.checked.shares(self.backend, self.device, self.entry.dtype)
        worst = max(shares, key=shares.__getitem__)
        if not shares[worst] <= 1:
            raise GateError(f"the error of {worst} is {shares[worst]:.3g} times what is allowed")

    def run(self) -> None:
        """One launch of the timed problem, which compiles what the check did not."""
        with self._precision():
            self._make()()

    def seconds(self) -> float:
        """Median device time of one launch of the entry's direction."""
        with self._precision():
            if self.device.type == "cuda":
                return kernel_seconds(self._make)
            return seconds_of(self._make(), self.device, budget=0.2)

    @functools.cached_property
    def _inputs(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return self.timed.on(self.device, self.entry.dtype)

    def _make(self) -> Callable[[], object]:
        leaves, others = self._inputs
        if self.entry.direction == "forward":
            return torch.no_grad()(lambda: self.timed.call(leaves, others, self.backend))
        output = self.timed.call(leaves, others, self.backend)
        inputs, upstream = list(leaves.values()), torch.ones_like(output)
        return partial(torch.autograd.grad, output, inputs, upstream, retain_graph=True)

    def _precision(self) -> AbstractContextManager[None]:
        return devices.ieee() if self.entry.element == "float32" else nullcontext()


def _problem(entry: Entry, size: Size) -> Problem:
    if entry.op == "dot_target_attention":
        return dot_problem(size, entry.width)
    if entry.op == "polarity_fusion":
        return fusion_problem(size, entry.width)
    return unit_problem(size, entry.width, entry.units)


def refusal(error: BaseException) -> str:
    """The first line of an error, as the reason why a candidate is refused."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
