"""`interleave`: wrong arguments and values, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from interleave_oracle import Case

from mixpol_kernels import interleave

# Offsets 0 3 3 4 of the positives, 0 2 4 4 of the negatives.
CASE = Case([([10, 20, 30], [5, 40]), ([], [7, 8]), ([3], [])], 5, 0.5)
Change = Callable[[dict[str, Any]], Any]


def put(name: str, value: Any) -> Change:
    """Replaces an argument, by a value or by a function of the old one."""

    def change(arguments: dict[str, Any]) -> None:
        arguments[name] = value(arguments[name]) if callable(value) else value

    return change


def poke(name: str, where: int, value: float) -> Change:
    """Overwrites one element."""

    def change(arguments: dict[str, Any]) -> None:
        arguments[name][where] = value

    return change


def as_floats(*changes: Change) -> Change:
    """Float64 times, then further changes."""

    def change(arguments: dict[str, Any]) -> None:
        for name in ("positive_times", "negative_times"):
            arguments[name] = arguments[name].double()
        for one in changes:
            one(arguments)

    return change


BAD: dict[str, tuple[Change, type[Exception], str]] = {
    "short times": (put("positive_times", lambda t: t.short()), TypeError, r"positive_times.*int16.*int64.*float64"),
    "half times": (put("positive_times", lambda t: t.half()), TypeError, r"positive_times.*float16.*float32"),
    "other dtype": (put("negative_times", lambda t: t.float()), TypeError, r"negative_times.*float32.*int64.*same"),
    "times 2-D": (put("positive_times", lambda t: t[None]), ValueError, r"positive_times.*\[1, 4\].*one dimension"),
    "times 0-D": (put("negative_times", torch.tensor(1)), ValueError, r"negative_times.*\[\].*one dimension"),
    "times elsewhere": (put("negative_times", lambda t: t.to("meta")), ValueError, r"negative_times.*meta.*cpu"),
    "float offsets": (put("positive_offsets", lambda t: t.float()), TypeError, r"positive_offsets.*float32.*int32"),
    "uint8 offsets": (put("negative_offsets", lambda t: t.byte()), TypeError, r"negative_offsets.*uint8.*int64"),
    "offsets 2-D": (put("positive_offsets", lambda t: t[None]), ValueError, r"positive_offsets.*\[1, 4\].*B \+ 1"),
    "no offsets": (put("positive_offsets", lambda t: t[:0]), ValueError, r"positive_offsets.*\[0\].*B \+ 1"),
    "other users": (put("negative_offsets", lambda t: t[1:]), ValueError, r"negative_offsets.*\[3\].*\[4\].*same"),
    "offsets elsewhere": (put("negative_offsets", lambda t: t.to("meta")), ValueError, r"negative_offsets.*meta.*cpu"),
    "negative budget": (put("budget", -1), ValueError, r"budget was -1.*0 \.\.\."),
    "large budget": (put("budget", 2**63), ValueError, r"budget was 9223372036854775808.*2\^63 - 1"),
    "float budget": (put("budget", 5.0), TypeError, r"budget was 5\.0.*whole number"),
    "bool budget": (put("budget", True), TypeError, r"budget was True.*whole number"),
    "large share": (put("negative_share", 1.5), ValueError, r"negative_share was 1\.5.*\[0, 1\]"),
    "negative share": (put("negative_share", -0.1), ValueError, r"negative_share was -0\.1.*\[0, 1\]"),
    "nan share": (put("negative_share", float("nan")), ValueError, r"negative_share was nan.*\[0, 1\]"),
    "share alone": (put("budget", None), ValueError, r"negative_share was 0\.5 without a budget.*expected a budget"),
    "unknown backend": (put("backend", "gpu"), ValueError, r"backend was 'gpu'.*'cpu', 'cuda', 'triton', 'reference'"),
    "offsets start late": (poke("positive_offsets", 0, 1), RuntimeError, r"positive_offsets run from 1 to 4.*0 to 4"),
    "offsets start low": (poke("negative_offsets", 0, -1), RuntimeError, r"negative_offsets run from -1 to 4"),
    "offsets end early": (poke("negative_offsets", 3, 3), RuntimeError, r"negative_offsets.* 3; .*0 to 4.*_times"),
    "offsets end late": (poke("positive_offsets", 3, 2**40), RuntimeError, r"positive_offsets.*1099511627776.* 4,"),
    "offsets fall": (
        poke("positive_offsets", 2, 2), RuntimeError,
        r"positive_offsets\[2\] is 2, below positive_offsets\[1\] = 3.*never fall",
    ),
    "offsets beyond": (poke("negative_offsets", 1, 9), RuntimeError, r"negative_offsets\[2\] is 4, below.*\[1\] = 9"),
    "positives fall": (
        poke("positive_times", 1, 9), RuntimeError,
        r"positive_times\[1\] is 9, below positive_times\[0\] = 10 of the same user.*sort",
    ),
    "negatives fall": (poke("negative_times", 3, 6), RuntimeError, r"negative_times\[3\] is 6, below.*\[2\] = 7"),
    "first of two": (
        lambda a: (poke("negative_times", 1, 0)(a), poke("negative_times", 3, 0)(a)), RuntimeError,
        r"negative_times\[1\] is 0, below.*= 5",
    ),
    "large fall": (
        lambda a: (poke("positive_times", 1, 2**53 + 1)(a), poke("positive_times", 2, 2**53)(a)), RuntimeError,
        r"positive_times\[2\] is 9007199254740992, below.*= 9007199254740993",
    ),
    "a nan": (as_floats(poke("negative_times", 1, float("nan"))), RuntimeError, r"negative_times\[1\] is nan.*number"),
    "first is nan": (as_floats(poke("positive_times", 0, float("nan"))), RuntimeError, r"positive_times\[0\] is nan"),
    "a lone nan": (as_floats(poke("positive_times", 3, float("nan"))), RuntimeError, r"positive_times\[3\] is nan"),
    "small fall": (
        as_floats(poke("positive_times", 0, 20 + 2**-40)), RuntimeError,
        r"positive_times\[1\] is 20.*, below.*= 20\.0000000000009",
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", BAD)
def test_bad_arguments(label: str, backend: str) -> None:
    change, error, pattern = BAD[label]
    arguments = CASE.arguments() | {"backend": backend}
    interleave(**arguments)
    change(arguments)
    with pytest.raises(error, match=f"(?s){pattern}"):
        interleave(**arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_falls_are_found_in_every_dtype(dtype: torch.dtype, backend: str) -> None:
    arguments = Case(CASE.users, None, None, dtype).arguments()
    arguments["positive_times"][2] = 19
    with pytest.raises(RuntimeError, match=r"positive_times\[2\] is 19.*, below positive_times\[1\] = 20"):
        interleave(**arguments, backend=backend)


def test_times_may_fall_from_one_user_to_the_next(backend: str) -> None:
    case = Case([([9], [9]), ([5], [5]), ([], []), ([1], [])], None, None)
    assert interleave(**case.arguments(), backend=backend).source.tolist() == [3, 0, 4, 1, 2]
    with pytest.raises(RuntimeError, match=r"positive_times\[1\] is 5, below"):
        interleave(**Case([([9, 5], []), ([], [])], None, None).arguments(), backend=backend)


def test_events_that_the_budget_drops_are_checked_too(backend: str) -> None:
    with pytest.raises(RuntimeError, match=r"positive_times\[1\] is 5, below"):
        interleave(**Case([([9, 5, 10, 11], [])], 1, None).arguments(), backend=backend)


def test_cpu_backend_takes_cpu_tensors_only() -> None:
    arguments = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in CASE.arguments().items()}
    with pytest.raises(ValueError, match=r"interleave: backend='cpu'.*CPU.*meta.*\.cpu\(\)"):
        interleave(**arguments, backend="cpu")
