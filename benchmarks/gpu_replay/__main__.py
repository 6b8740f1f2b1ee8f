"""What every shipped Triton configuration would cost on an H200, told without one; exit status 1 where the gate fails.

    python -m gpu_replay                    compile, emulate and replay every case; compare with gpu_replay.json
    python -m gpu_replay --only half        or those with this in their name
    python -m gpu_replay --write            record what was found, as the next comparison
    python -m gpu_replay --calibrate        the kernels that ran on an H200: predicted by measured
    python -m gpu_replay --times            the activation unit, both directions, by the length of histories
    python -m gpu_replay --tune NAME        the fastest configuration of a grid without spills

Run in benchmarks/, or with PYTHONPATH=benchmarks. `--triton FOLDER` takes another version of Triton from a folder that
`pip install --no-deps --target FOLDER triton==VERSION` made.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="gpu_replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--write", action="store_true", help="record what was found")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--calibrate", action="store_true", help="predict what was measured")
    parser.add_argument("--times", action="store_true", help="predict one unit at several lengths")
    parser.add_argument("--tune", default="", metavar="NAME", help="as target_attention/backward/half/64:64")
    parser.add_argument("--triton", type=Path, metavar="FOLDER", help="take Triton from there")
    options = parser.parse_args()
    if options.triton:
        return _with(options.triton)

    import torch
    import triton

    from gpu_replay import calibration, times, tune
    from gpu_replay.capture import ARCHITECTURE

    torch.set_num_threads(1)
    print(f"Triton {triton.__version__}, {ARCHITECTURE}. Predicted, not measured.", flush=True)
    if options.calibrate:
        return calibration.report(options.write)
    if options.times:
        return times.report(triton.__version__, options.write)
    if options.tune:
        return tune.report(options.tune, options.jobs)
    return _gate(triton.__version__, options.only, options.jobs, options.write)


def _with(folder: Path) -> int:
    """The same command with the Triton of a folder."""
    if not (folder / "triton").is_dir():
        print(f"--triton was {folder}, where no triton is: pip install --no-deps --target {folder} triton==VERSION")
        return 2
    given = iter(sys.argv[1:])
    kept = [a for a in given if not (a == "--triton" and next(given, "")) and not a.startswith("--triton=")]
    paths = [str(folder.resolve()), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    os.execve(sys.executable, [sys.executable, "-m", "gpu_replay", *kept], environment)


def _gate(version: str, only: str, jobs: int, write: bool) -> int:
    from gpu_replay import gate
    from gpu_replay.cases import cases, served

    chosen = [case for case in cases() if only in case.name]
    if not chosen:
        print(f"--only was {only!r}, in no case: {'; '.join(case.name for case in cases())}")
        return 2
    before, found, failures = gate.recorded(version), [], []
    used: set[str] = set()
    for case, got in gate.results(chosen, jobs):
        if isinstance(got, str) and case.optional and "was requested, but" in got:
            print(f"{'':14}refused: {case.name}: {got.partition('but ')[2]}", flush=True)
            continue
        if isinstance(got, str):
            failures.append(f"{case.name}: {got}")
            continue
        for result in got:
            row = result.row
            used |= {result.entry}
            lines = [*result.faults, *gate.compare(result, before.get(result.name))]
            failures += [f"{result.name}, configuration {row.configuration or 'none'}: {line}" for line in lines]
            time = f"{row.microseconds:9,.1f} µs" if row.microseconds is not None else " " * 12
            state = "FAILS" if lines else "" if result.name in before else "new"
            print(
                f"{time}  {row.registers:3} registers, {row.warps:2} warps, {row.stages} stages, "
                f"{row.wavefronts:5.2f} x wavefronts  {result.name}  {state}",
                flush=True,
            )
            for note in result.notes:
                print(f"{'':14}not known: {note}")
            found.append(result)
    if not only:
        failures += [f"{name}: no case launches this configuration" for name in sorted(served() - used)]
    if write:
        gate.record(version, found)
        print(f"recorded in {gate.RECORD}")
    print(f"\n{len(found)} kernels of {len(chosen)} cases, {len(failures)} failures")
    for line in failures:
        print(f"FAILS  {line}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
