"""Forked processes and concurrent threads: no hang, and the bits of a serial run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mixpol_kernels.testing.inputs import OPS, Config, make

# Large enough that the kernels and the table gradients use threads.
LARGE = {"batch": 70, "length": 60, "hidden": (36,), "width": 24, "normalize": "softmax"}
PREPARE = f"""
import os, torch
from mixpol_kernels.testing.inputs import OPS, Config, make
generator = torch.Generator().manual_seed(3)
cases = [make(Config(op=op, **{LARGE!r}), generator) for op in OPS]
places = [case.place(generator) for case in cases]
def results(i):
    return case_results(cases[i], places[i])
def case_results(case, where):
    return list(case.run("cpu", where).values())
def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
"""


def finishes(code: str) -> None:
    """Runs code in a fresh interpreter; a hang is a failure."""
    run = subprocess.run(
        [sys.executable, "-c", PREPARE + code], capture_output=True, text=True, check=False, timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("used_before", [False, True], ids=["fresh", "threads used before"])
def test_dataloader_workers(used_before: bool) -> None:
    """A data set that calls the ops, in forked workers."""
    finishes(f"""
class Data(torch.utils.data.Dataset):
    def __len__(self): return 2 * len(cases)
    def __getitem__(self, i): return results(i % len(cases))
if {used_before}:
    expected = [results(i) for i in range(len(cases))]
loader = torch.utils.data.DataLoader(
    Data(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
got = list(loader)
expected = [results(i) for i in range(len(cases))]
assert len(got) == 2 * len(cases)
assert all(same(value, expected[i % len(cases)]) for i, value in enumerate(got))
""")


def test_fork_after_threads() -> None:
    """A child of a process that has used threads, on one thread as PyTorch asks; the parent goes on with two."""
    finishes("""
torch.set_num_threads(2)
expected = [results(i) for i in range(len(cases))]
for _ in range(3):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        good = all(same(results(i), expected[i]) for i in range(len(cases)))
        os._exit(0 if good else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(same(results(i), expected[i]) for i in range(len(cases)))
""")


@pytest.mark.parametrize("inner", [1, 2])
@pytest.mark.parametrize("op", OPS)
def test_python_threads(op: str, inner: int, generator: torch.Generator) -> None:
    """Two Python threads at once, each with one or two threads inside, on the same inputs and on their own."""
    cases = [make(Config(op=op, **LARGE), generator) for _ in range(2)]
    places = [case.place(generator) for case in cases]
    torch.set_num_threads(inner)
    expected = [case.run("cpu", where) for case, where in zip(cases, places, strict=True)]
    start = threading.Barrier(2)

    def work(mine: int) -> None:
        torch.set_num_threads(inner)  # a setting of each thread
        start.wait(timeout=30)
        for turn in range(8):
            which = (mine + turn // 2) % 2
            for name, value in cases[which].run("cpu", places[which]).items():
                assert torch.equal(value, expected[which][name]), name

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(work, i) for i in range(2)]:
            future.result(timeout=100)
