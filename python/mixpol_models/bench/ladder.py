"""The ladder: one op in every form of its case, checked and measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mixpol_models.bench.case import COMPILED, CONTROL, FUSED, Case, implementation_of
from mixpol_models.bench.din_cases import din_case
from mixpol_models.bench.implementations import IMPLEMENTATIONS, Implementation
from mixpol_models.bench.memory import peak_mib, saved_mib
from mixpol_models.bench.roofline import Work, minimal_work
from mixpol_models.bench.shapes import Shape
from mixpol_models.bench.timing import interleaved

LENGTHS = (10, 50, 200, 1000)
# How implementations with the package's algebra begin; of dot-product attention it is the absorbed projections.
REFACTORED = ("refactored", "absorbed")


@dataclass(frozen=True)
class LadderRow:
    """One implementation at one length. Times are of one call; medians are over interleaved rounds.

    A ratio is this form's time over the fused one's in the same round, then the median over rounds: above 1
    fused is faster. `_low` and `_high` are its quartiles. None without a fused form in the run.

    Attributes:
        case: what the shape is a size of.
        length, batch, width: the shape; lengths are uniform in 1 ... `length`.
        hidden, activation: () and "" without an activation unit.
        tokens: kept tokens of the batch.
        implementation, variant: the implementation, and its variant with the smallest median of forward and backward.
        forward_ms, forward_min_ms: forward without gradients, as in serving.
        total_ms, total_min_ms: forward and backward, gradients of target, history and every parameter.
        saved_mib: kept for the backward pass beyond the inputs.
        peak_mib: largest extra resident memory of one forward and backward; None where it cannot be read.
        compile_s: the first calls (with and without gradients) of a compiled form, 0 for others. A warm disk
            cache of torch.compile makes it short; TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 gives the cold figure.
        rounds, threads: of the measurement.
        forward_work, total_work: minimal work of the op on the whole batch.
    """

    case: str
    length: int
    batch: int
    width: int
    hidden: tuple[int, ...]
    activation: str
    tokens: int
    implementation: str
    variant: str
    forward_ms: float
    forward_min_ms: float
    total_ms: float
    total_min_ms: float
    forward_ratio: float | None
    forward_ratio_low: float | None
    forward_ratio_high: float | None
    total_ratio: float | None
    total_ratio_low: float | None
    total_ratio_high: float | None
    saved_mib: float
    peak_mib: float | None
    compile_s: float
    rounds: int
    threads: int
    forward_work: Work
    total_work: Work

    @property
    def tokens_per_s(self) -> float:
        """Kept tokens, forward and backward."""
        return 1e3 * self.tokens / self.total_ms

    @property
    def gflops(self) -> float:
        """GFLOP/s of the minimal work, forward and backward."""
        return 1e-6 * self.total_work.operations / self.total_ms

    @property
    def gbytes(self) -> float:
        """GB/s of the minimal work, forward and backward."""
        return 1e-6 * self.total_work.bytes / self.total_ms


def run_ladder(
    lengths: Sequence[int] = LENGTHS,
    batch: int = 256,
    width: int = 64,
    hidden: int | Sequence[int] = 64,
    activation: str = "relu",
    rounds: int = 15,
    seconds_per_form: float = 3.0,
    implementations: Iterable[str | Implementation] | None = None,
    progress: Callable[[str], None] | None = None,
    seed: int = 0,
) -> list[LadderRow]:
    """Measures the ladder.

    Protocol, for each length: every form's output and gradients are checked against the float64 reference
    before anything is timed (its first calls, compilation included, are those of the check, and are recorded
    apart); then memory; then interleaved rounds in shuffled order, forward alone and forward with backward.
    Gradients are dropped outside of the timed part. torch.compile starts fresh at each length, with static
    shapes.

    Args:
        lengths: padded lengths L.
        batch, width, hidden, activation: see `din_case`.
        rounds: at most this many.
        seconds_per_form: of timing, for each form at each length; fewer rounds (3 or more) if it is used up.
        implementations: names in IMPLEMENTATIONS, or `Implementation`s of your own; all of IMPLEMENTATIONS if None.
        progress: gets a line of text now and then.
        seed: of inputs, weights and order.

    Returns:
        rows in the order of `lengths`, then of `implementations`.

    Raises:
        GateError: a form is outside the error budget: no rows at all.
        RuntimeError: the fused form is asked for and the compiled library is not there.
    """
    asked = IMPLEMENTATIONS if implementations is None else implementations
    chosen = [one if isinstance(one, Implementation) else IMPLEMENTATIONS[one] for one in asked]
    units = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    rows = []
    for length in lengths:
        shape = Shape("DIN activation unit", "target_attention", length, batch, width, units, activation)
        case = din_case(length, batch, width, units, activation, seed=seed, implementations=chosen)
        rows += measure(shape, case, rounds, seconds_per_form, progress=progress, seed=seed)
    return rows


def strongest(rows: Iterable[LadderRow], length: int) -> LadderRow:
    """The fastest, forward and backward, of the baselines at `length`: what a claim has to beat.

    That is mostly a refactored form; where the calls themselves cost most it may be the eager one.

    Raises:
        ValueError: none was measured.
    """
    baselines = [row for row in rows if row.length == length and row.implementation not in (FUSED, CONTROL)]
    if not baselines:
        raise ValueError(f"no baseline was measured at length {length}")
    return min(baselines, key=lambda row: row.total_ms)


def measure(
    shape: Shape,
    case: Case,
    rounds: int = 15,
    seconds_per_form: float = 3.0,
    forms: Iterable[str] | None = None,
    progress: Callable[[str], None] | None = None,
    seed: int = 0,
) -> list[LadderRow]:
    """Measures forms of one case by the protocol of `run_ladder`: a row per implementation.

    Args:
        shape: of the case, for the rows.
        case: its forms.
        rounds: at most this many.
        seconds_per_form: of timing; fewer rounds (3 or more) if it is used up.
        forms: names in `case.forms`; all of them if None.
        progress: gets a line of text now and then.
        seed: of the order.

    Raises:
        GateError: a form is outside the error budget: no rows at all.
    """
    say = progress or (lambda line: None)
    names = list(case.forms if forms is None else forms)
    # The parameters are the same objects in every form, and each case has new ones.
    torch._dynamo.reset()
    start = f"{shape.case}, L = {shape.length}"
    say(f"{start}: float64 reference")
    case.exact  # noqa: B018
    first_s = {}
    for name in names:
        say(f"{start}: checking {name}")
        began = time.perf_counter()
        case.check(name)
        first_s[name] = time.perf_counter() - began if implementation_of(name).endswith(COMPILED) else 0.0
    say(f"{start}: memory")
    memory = {
        name: (saved_mib(case.forms[name], case.inputs()), peak_mib(partial(case.step, name), case.clear))
        for name in names
    }
    say(f"{start}: timing {len(names)} forms, at most {rounds} rounds")
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for name in names:
        calls[name, "forward"] = torch.no_grad()(case.forms[name])
        calls[name, "total"] = partial(case.step, name)
    times = interleaved(calls, rounds, seconds_per_form / 2, case.clear, seed)
    case.clear()
    forward_work, total_work = minimal_work(shape)
    rows = []
    for implementation in dict.fromkeys(map(implementation_of, names)):
        name = min(
            (n for n in names if implementation_of(n) == implementation), key=lambda n: times.median((n, "total"))
        )
        figures: dict[str, Any] = {}
        for what in ("forward", "total"):
            key, base = (name, what), (FUSED, what)
            low, middle, high = times.ratio(key, base) if base in calls else (None, None, None)
            figures |= {f"{what}_ms": 1e3 * times.median(key), f"{what}_min_ms": 1e3 * times.least(key)}
            figures |= {f"{what}_ratio": middle, f"{what}_ratio_low": low, f"{what}_ratio_high": high}
        rows.append(
            LadderRow(
                case=shape.case,
                length=shape.length,
                batch=shape.batch,
                width=shape.width,
                hidden=shape.hidden if shape.has_unit else (),
                activation=shape.activation if shape.has_unit else "",
                tokens=case.tokens,
                implementation=implementation,
                variant=name.partition(", ")[2],
                **figures,
                saved_mib=memory[name][0],
                peak_mib=memory[name][1],
                compile_s=first_s[name],
                rounds=len(times),
                threads=torch.get_num_threads(),
                forward_work=forward_work.times(case.tokens),
                total_work=total_work.times(case.tokens),
            )
        )
    return rows
