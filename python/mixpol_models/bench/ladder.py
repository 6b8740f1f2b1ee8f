"""The ladder: one DIN activation unit in every form of `rungs`, checked and measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles

import torch
from torch import nn

from mixpol_models.bench import gate
from mixpol_models.bench.memory import peak_mib, saved_mib
from mixpol_models.bench.problem import Problem, make_problem
from mixpol_models.bench.rungs import RUNGS, STRONGEST, Rung
from mixpol_models.bench.timing import interleaved, per_round

LENGTHS = (10, 50, 200, 1000)
_CONTROL_ROUNDINGS = 32 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class LadderRow:
    """One rung at one length. Times are of one call; medians are over interleaved rounds.

    A ratio is this rung's time over the fused rung's in the same round, then the median over rounds: above 1
    the fused rung is faster. `_low` and `_high` are its quartiles. None without a fused rung in the run.

    Attributes:
        length, batch, width, hidden, activation: the shape; lengths are uniform in 1 ... `length`.
        rung, variant: what ran; of several variants the one with the smaller median of forward and backward.
        forward_ms, forward_min_ms: forward without gradients, as in serving.
        total_ms, total_min_ms: forward and backward, gradients of target, history and every parameter.
        saved_mib: kept for the backward pass beyond the inputs.
        peak_mib: largest extra resident memory of one forward and backward; None where it cannot be read.
        compile_s: the first calls (with and without gradients) of a compiled rung, 0 for others. A warm disk
            cache of torch.compile makes it short; TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 gives the cold figure.
        rounds, threads: of the measurement.
    """

    length: int
    batch: int
    width: int
    hidden: tuple[int, ...]
    activation: str
    rung: str
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


def run_ladder(
    lengths: Sequence[int] = LENGTHS,
    batch: int = 256,
    width: int = 64,
    hidden: int | Sequence[int] = 64,
    activation: str = "relu",
    rounds: int = 15,
    seconds_per_rung: float = 3.0,
    rungs: Iterable[str | Rung] | None = None,
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
        batch: users B.
        width: embedding width D.
        hidden: units of the hidden layer, or of each of several.
        activation: "relu", "prelu", "sigmoid", "silu" or "dice" (in training, pads in the statistics).
        rounds: at most this many.
        seconds_per_rung: of timing, for each form at each length; fewer rounds (3 or more) if it is used up.
        rungs: names in RUNGS, or `Rung`s of your own; all of RUNGS if None.
        progress: gets a line of text now and then.
        seed: of inputs, weights and order.

    Returns:
        rows in the order of `lengths`, then of `rungs`.

    Raises:
        GateError: a rung is outside the error budget: no rows at all.
        RuntimeError: the fused rung is asked for and the compiled library is not there.
    """
    chosen = [rung if isinstance(rung, Rung) else RUNGS[rung] for rung in (RUNGS if rungs is None else rungs)]
    say = progress or (lambda line: None)
    rows = []
    for length in lengths:
        problem = make_problem(length, batch, width, hidden, activation, seed)
        rows += _run_length(problem, chosen, rounds, seconds_per_rung, say, seed)
    return rows


def strongest(rows: Iterable[LadderRow], length: int) -> LadderRow:
    """The faster, forward and backward, of the refactored rungs at `length`: what a claim has to beat.

    Raises:
        ValueError: neither was measured.
    """
    candidates = [row for row in rows if row.length == length and row.rung in STRONGEST]
    if not candidates:
        raise ValueError(f"no refactored rung was measured at length {length}")
    return min(candidates, key=lambda row: row.total_ms)


@dataclass(frozen=True)
class _Form:
    """One variant of one rung, checked and warm."""

    rung: Rung
    variant: str
    unit: nn.Module
    compile_s: float


def _run_length(
    problem: Problem,
    rungs: Sequence[Rung],
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
    seed: int,
) -> list[LadderRow]:
    length = problem.history.shape[1]
    # The parameters are the same objects in every form, and each length has new ones.
    torch._dynamo.reset()
    normalised = len(problem.attention.norms) > 0
    built = [
        (rung, variant, rung.build(variant, problem.attention))
        for rung in rungs
        for variant, form in rung.variants.items()
        if not (normalised and getattr(form, "skips_pads", False))
    ]
    say(f"L = {length}: float64 reference")
    exact = problem.exact()
    plain = problem.plain_errors(exact)
    forms = []
    for rung, variant, unit in built:
        say(f"L = {length}: checking {_label(rung.name, variant)}")
        forms.append(_checked(problem, rung, variant, unit, exact, plain))
    say(f"L = {length}: memory")
    memory = {
        i: (
            saved_mib(partial(problem.forward, form.unit), problem.inputs()),
            peak_mib(partial(problem.step, form.unit), problem.clear),
        )
        for i, form in enumerate(forms)
    }
    say(f"L = {length}: timing {len(forms)} forms, at most {rounds} rounds")
    calls: dict[tuple[int, str], Callable[[], object]] = {}
    for i, form in enumerate(forms):
        calls[i, "forward"] = torch.no_grad()(partial(problem.forward, form.unit))
        calls[i, "total"] = partial(problem.step, form.unit)
    times = interleaved(calls, problem.clear, rounds, seconds / 2, seed)
    problem.clear()
    medians = {key: per_round(value) for key, value in times.items()}
    fused = next((i for i, form in enumerate(forms) if form.rung.name == "fused"), None)
    rows = []
    for rung in rungs:
        i = min(
            (i for i, form in enumerate(forms) if form.rung is rung),
            key=lambda i: median(medians[i, "total"]),
        )
        forward, forward_low, forward_high = _ratio(medians, i, fused, "forward")
        total, total_low, total_high = _ratio(medians, i, fused, "total")
        rows.append(
            LadderRow(
                length=length,
                batch=problem.history.shape[0],
                width=problem.history.shape[2],
                hidden=tuple(layer.out_features for layer in list(problem.attention.layers)[:-1]),
                activation=problem.attention.activation,
                rung=rung.name,
                variant=forms[i].variant,
                forward_ms=1e3 * median(medians[i, "forward"]),
                forward_min_ms=1e3 * min(map(min, times[i, "forward"])),
                total_ms=1e3 * median(medians[i, "total"]),
                total_min_ms=1e3 * min(map(min, times[i, "total"])),
                forward_ratio=forward,
                forward_ratio_low=forward_low,
                forward_ratio_high=forward_high,
                total_ratio=total,
                total_ratio_low=total_low,
                total_ratio_high=total_high,
                saved_mib=memory[i][0],
                peak_mib=memory[i][1],
                compile_s=forms[i].compile_s,
                rounds=len(medians[i, "total"]),
                threads=torch.get_num_threads(),
            )
        )
    return rows


def _checked(
    problem: Problem,
    rung: Rung,
    variant: str,
    unit: nn.Module,
    exact: dict[str, torch.Tensor],
    plain: dict[str, float],
) -> _Form:
    """Runs a form for the first time, with and without gradients, and holds both to the error budget."""
    start = time.perf_counter()
    answer = problem.answer(unit)
    with torch.no_grad():
        served = problem.forward(unit)
    compile_s = time.perf_counter() - start if rung.compiled else 0.0
    if rung.control:
        exact = _exact_control(problem, rung.build(variant, problem.attention))
        plain = {key: _CONTROL_ROUNDINGS * float(truth.abs().max()) for key, truth in exact.items()}
    label = f"{_label(rung.name, variant)} at L = {problem.history.shape[1]}"
    slack = gate.COMPILE_SLACK if rung.compiled else 1.0
    gate.check(label, answer, exact, plain, slack)
    gate.check(f"{label}, without gradients", {**answer, "output": served}, exact, plain, slack)
    return _Form(rung, variant, unit, compile_s)


def _exact_control(problem: Problem, unit: nn.Module) -> dict[str, torch.Tensor]:
    history = problem.history.detach().double().requires_grad_()
    padding = problem.padding._replace(mask=problem.padding.mask.double())
    output = unit(problem.target.detach().double(), history, padding)
    output.backward(problem.upstream.double())
    return {"output": output.detach(), "history": history.grad}


def _ratio(
    medians: dict[tuple[int, str], list[float]], i: int, fused: int | None, what: str
) -> tuple[float, float, float] | tuple[None, None, None]:
    if fused is None:
        return None, None, None
    ratios = [own / base for own, base in zip(medians[i, what], medians[fused, what], strict=True)]
    low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return middle, low, high


def _label(rung: str, variant: str) -> str:
    return f"{rung}, {variant}" if variant else rung
