"""`python -m mixpol_models.bench.compare_worker`: one turn of a comparison, a process of its own; see `compare`.

Reads {"shapes": [...], "seconds": ..., "check": ...} from standard input, times the fused form of each shape on the
library that MIXPOL_LIBRARY names, and prints [[forward ms, forward and backward ms], ...].
"""

from __future__ import annotations

import json
import sys
from functools import partial

import torch

from mixpol_kernels.library import library
from mixpol_models.bench.case import FUSED
from mixpol_models.bench.cases import make_case
from mixpol_models.bench.shapes import Shape
from mixpol_models.bench.timing import interleaved

_ROUNDS = 9


def time_shape(shape: Shape, seconds: float, check: bool) -> tuple[float, float]:
    """Medians of the fused form in ms: forward, forward and backward.

    Raises:
        GateError: `check` is set, and it is outside the error budget.
    """
    case = make_case(shape)
    if check:
        case.check(FUSED)
    calls = {"forward": torch.no_grad()(case.forms[FUSED]), "total": partial(case.step, FUSED)}
    times = interleaved(calls, _ROUNDS, seconds / 2, case.clear)
    return 1e3 * times.median("forward"), 1e3 * times.median("total")


def main() -> int:
    """One turn. Returns the exit status: 1 with a message where the library cannot be measured."""
    request = json.load(sys.stdin)
    if not library.loaded:
        print(library.reason, file=sys.stderr)
        return 1
    shapes = [Shape(**{**fields, "hidden": tuple(fields["hidden"])}) for fields in request["shapes"]]
    json.dump([time_shape(shape, request["seconds"], request["check"]) for shape in shapes], sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
