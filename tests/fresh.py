"""`make test-fresh N=5`: the tests that draw, N times, each from a seed of the clock; says how a failure is repeated.

Goes on after a failure, and exits 1 if any round failed. Arguments after N go to pytest: files, -k, -x, ...
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parent
TRITON = str(TESTS / "triton_kernels")
# Their inputs are the repository's own files.
LEFT_OUT = ("docs", "gpu", "test_wheels.py", "test_abi.py")
WORKERS = ("-n", "2", "--dist", "worksteal")


def round_of(seed: int, arguments: list[str]) -> list[str]:
    """Runs both parts with one seed; the commands that failed, as they are repeated."""
    left_out = [f"--ignore={TESTS / name}" for name in LEFT_OUT]
    parts = [arguments] if any(os.path.exists(a.partition("::")[0]) for a in arguments) else [[], [TRITON]]
    failed = []
    for part in parts:
        more = arguments if part is not arguments else []
        command = ["pytest", "--drawn", *WORKERS, *left_out, *part, *more]
        print(f"MIXPOL_TEST_SEED={seed} {shlex.join(command)}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", *command], env={**os.environ, "MIXPOL_TEST_SEED": str(seed)}, check=False
        )
        if done.returncode not in (0, 5):  # 5: -k chose no test of this part
            failed.append(f"MIXPOL_TEST_SEED={seed} {sys.executable} -m {shlex.join(command)}")
    return failed


def main(rounds: int, arguments: list[str]) -> int:
    if rounds < 1:
        raise SystemExit(f"N was {rounds}; expected at least 1 round, such as `make test-fresh N=5`")
    failed: list[str] = []
    for turn in range(rounds):
        seed = time.time_ns() // 1000 % 2**31
        print(f"round {turn + 1} of {rounds}", flush=True)
        failed += round_of(seed, arguments)
    print(f"{rounds} rounds: {f'{len(failed)} parts failed; repeat with' if failed else 'all passed'}")
    print("".join(f"  {command}\n" for command in failed), end="")
    return 1 if failed else 0


if __name__ == "__main__":
    words = sys.argv[1:]
    if not words or not words[0].isdecimal():
        raise SystemExit(
            f"N was {words[0] if words else 'missing'!r}; expected a number of rounds: fresh.py N [pytest's]"
        )
    raise SystemExit(main(int(words[0]), words[1:]))
