"""Predicted times of the activation unit: every element, short and long histories, both directions."""

from __future__ import annotations

from gpu_replay.cases import Case
from gpu_replay.gate import alone, store
from gpu_replay.predict import Subject

LENGTHS = (50, 200, 1000)


def directions(case: Case) -> list[float]:
    """Microseconds of the Triton kernels that each direction launches."""
    found = []
    for launches in case.directions():
        times = [Subject(launch).predict().microseconds or 0.0 for launch in launches]
        found.append(round(sum(times), 1))
    return found


def report(version: str, write: bool) -> int:
    """Prints the table of D = H = 64, one hidden layer, ReLU, 4,096 users with lengths uniform in 1 ... L."""
    rows, failed = {}, 0
    for element in ("half", "tf32x3", "float32"):
        for length in LENGTHS:
            case = Case("target_attention", element, 64, (64,), "relu", length=length)
            found = alone(directions, case)
            if isinstance(found, str):
                print(f"FAILS  {case.name}, L = {length}: {found}")
                failed = 1
                continue
            forward, backward = found
            rows[f"{element}, {length:4}"] = {"forward": forward, "backward": backward}
            print(f"{element:8} L = {length:4}: forward {forward:8,.1f} µs, backward {backward:8,.1f} µs", flush=True)
    if write:
        store(f"times, {version}", rows)
    return failed
