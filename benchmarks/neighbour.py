"""Cost of how OpenMP threads wait: a step of the DIN unit on two threads, alone and beside one busy process.

    python benchmarks/neighbour.py            about a minute; prints a table
    python benchmarks/neighbour.py 0.2        seconds a figure (default 1)

B = 256, D = 64, one hidden layer of 64 with ReLU, forward and backward, L = 50 and 1000. Each setting has a process of
its own, since OpenMP and torch read it when they are loaded. The neighbour is `stress-ng --cpu 1` where that is
installed, else a loop in Python. Figures are medians in milliseconds; the machine has to be quiet otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

USERS, WIDTH, HIDDEN, THREADS = 256, 64, 64, 2
WARM_UP = 5
LENGTHS = (50, 1000)
NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE")
HUGE = {"THP_MEM_ALLOC_ENABLE": "1"}
SETTINGS: dict[str, dict[str, str]] = {
    "nothing set": {},
    "huge pages": HUGE,
    "huge pages, OMP_WAIT_POLICY=passive": {**HUGE, "OMP_WAIT_POLICY": "passive"},
    **{
        f"huge pages, GOMP_SPINCOUNT={spin}": {**HUGE, "GOMP_SPINCOUNT": str(spin)}
        for spin in (0, 1000, 10_000, 100_000)
    },
}
BUSY = "while True: pass"


@contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """One process that keeps a core busy, while the context lasts."""
    if not busy:
        yield
        return
    found = shutil.which("stress-ng")
    command = [found, "--cpu", "1", "--quiet"] if found else [sys.executable, "-c", BUSY]
    process = subprocess.Popen(command, start_new_session=True)  # as another user's: with a share of its own
    try:
        time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def measure(seconds: float) -> list[float]:
    """Milliseconds of a step for each length, alone and then beside the neighbour. In a process of one setting."""
    import torch

    from mixpol_kernels.nn import TargetAttention
    from mixpol_models.bench.kernel_time import seconds_of

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    unit = TargetAttention(WIDTH, [HIDDEN])
    figures = []
    for length in LENGTHS:
        target = torch.randn(USERS, WIDTH, requires_grad=True)
        history = torch.randn(USERS, length, WIDTH, requires_grad=True)

        def step(target: torch.Tensor = target, history: torch.Tensor = history) -> None:
            unit.zero_grad(set_to_none=True)
            target.grad = history.grad = None
            unit(target, history).sum().backward()

        for busy in (False, True):
            with neighbour(busy):
                for _ in range(WARM_UP):
                    step()
                figures.append(1e3 * seconds_of(step, torch.device("cpu"), seconds))
    return figures


def main() -> None:
    """Prints the table, a line as soon as it is known."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    print("| setting | " + " | ".join(f"L = {n}, {where}" for n in LENGTHS for where in ("alone", "beside")) + " |")
    print("|---|" + "---:|" * (2 * len(LENGTHS)), flush=True)
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    for words, setting in SETTINGS.items():
        command = [sys.executable, __file__, "--worker", str(seconds)]
        done = subprocess.run(command, env=clean | setting, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
        print(f"| {words} | " + " | ".join(f"{figure:.2f}" for figure in json.loads(done.stdout)) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(measure(float(sys.argv[2]))))
    else:
        main()
