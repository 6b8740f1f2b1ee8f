"""One request through the activation unit, [64] with ReLU, D = 64: as a module, and exported ahead of time.

    python benchmarks/serving.py            B = 1, L = 50, one thread; prints a table
    python benchmarks/serving.py 8 200      of 8 users with histories of up to 200

Every form is checked against float64 first; then all are timed in every round, forward only. Exported forms are
AOTInductor packages, called from Python.
"""

from __future__ import annotations

from mixpol_models.environment import prepare

prepare()  # before torch is imported

import copy
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.export import Dim

from mixpol_kernels.nn import TargetAttention
from mixpol_models.bench.gate import budget, largest_error
from mixpol_models.bench.implementations import Concat, PerTarget
from mixpol_models.bench.padding import Padding
from mixpol_models.bench.timing import interleaved

WIDTH, ROUNDS, SECONDS = 64, 40, 4.0
Call = Callable[[Tensor, Tensor, Tensor], Tensor]


class Fused(nn.Module):
    """The layer as it is."""

    def __init__(self, unit: TargetAttention) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, target: Tensor, history: Tensor, lengths: Tensor) -> Tensor:
        """Pooled [B, D]."""
        pooled: Tensor = self.unit(target, history, lengths=lengths)
        return pooled


class Written(nn.Module):
    """A form that models write, with the mask that it needs."""

    def __init__(self, form: nn.Module) -> None:
        super().__init__()
        self.form = form

    def forward(self, target: Tensor, history: Tensor, lengths: Tensor) -> Tensor:
        """Pooled [B, D]."""
        mask = (torch.arange(history.shape[1]) < lengths[:, None]).to(history.dtype)
        empty = Padding(*([mask] * len(Padding._fields)))  # these forms read the mask alone
        pooled: Tensor = self.form(target, history, empty)
        return pooled


def exported(module: nn.Module) -> Call:
    """An AOTInductor package of a module, any number of users and any length."""
    users, length = Dim("users", min=1, max=2**14), Dim("length", min=2, max=2**14)
    example = torch.randn(3, WIDTH), torch.randn(3, 50, WIDTH), torch.tensor([50, 1, 2])
    shapes = ({0: users}, {0: users, 1: length}, {0: users})
    program = torch.export.export(module, example, dynamic_shapes=shapes)
    loaded: Call = torch._inductor.aoti_load_package(torch._inductor.aoti_compile_and_package(program))
    return loaded


def measure(users: int, length: int, seconds: float = SECONDS) -> dict[str, float]:
    """Seconds of one call of each form, median.

    Raises:
        RuntimeError: a form is outside of its error budget.
    """
    torch.manual_seed(0)
    unit = TargetAttention(WIDTH, [64]).eval()
    modules = {"fused": Fused(unit), "concat": Written(Concat(unit)), "refactored": Written(PerTarget(unit))}
    calls: dict[str, Call] = dict(modules)
    calls |= {f"{name}, exported": exported(module) for name, module in modules.items()}
    given = torch.randn(users, WIDTH), torch.randn(users, length, WIDTH), torch.randint(1, length + 1, (users,))
    wide = copy.deepcopy(unit).double()
    wide.backend = "reference"
    exact = wide(given[0].double(), given[1].double(), lengths=given[2])
    plain = max(largest_error(calls[name](*given), exact) for name in ("concat", "refactored"))
    limit = budget("output", plain, exact)
    for name, call in calls.items():
        error = largest_error(call(*given), exact)
        if not error <= limit:
            raise RuntimeError(f"the error of {name} is {error:.3g}; allowed is {limit:.3g}")
    times = interleaved({name: partial(call, *given) for name, call in calls.items()}, ROUNDS, seconds)
    return {name: times.median(name) for name in calls}


def main() -> None:
    """Prints the table."""
    users, length = map(int, sys.argv[1:3] or (1, 50))
    torch.set_num_threads(1)
    with torch.no_grad():
        found = measure(users, length)
    best = found["fused, exported"]
    print(f"B = {users}, L = {length}, forward, one thread\n")
    print("| form | µs | × fused | × fused, exported |\n|---|---:|---:|---:|")
    for name, seconds in found.items():
        print(f"| {name} | {1e6 * seconds:.1f} | {seconds / found['fused']:.2f} | {seconds / best:.2f} |")


if __name__ == "__main__":
    main()
