"""`mixpol gpu-report`: what the kernels do on the GPU at hand. One check that fails hides no other."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import mixpol_kernels
from mixpol_kernels.nn import TargetAttention
from mixpol_models.bench import gpu_problems
from mixpol_models.bench.implementations import Concat, PerTarget
from mixpol_models.bench.kernel_time import kernel_seconds, seconds_of
from mixpol_models.bench.machine import machine_facts
from mixpol_models.bench.padding import Padding, pad_right
from mixpol_models.files import write_atomically

FORWARD, BACKWARD = 2.0, 5.0  # times the error of plain PyTorch in the same dtype


@dataclass(frozen=True)
class Size:
    """One problem: `users` histories of lengths uniform in 1 ... `length`, padded to it."""

    users: int = 4096
    length: int = 200
    width: int = 64
    units: int = 64


@dataclass
class Check:
    """Result of one check: `passed` (None where there is nothing to pass), its figures, or its error."""

    name: str
    passed: bool | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Problem:
    """A unit and its inputs on the device; `precision` of float32 products, as `torch.set_float32_matmul_precision`."""

    size: Size
    device: torch.device
    dtype: torch.dtype
    activation: str = "relu"
    normalize: str = "none"
    backend: str = "triton"
    precision: str = "highest"

    def make(self) -> tuple[TargetAttention, Tensor, Tensor, Tensor]:
        """The layer, target, history and lengths; the same in every call."""
        torch.manual_seed(0)
        s = self.size
        layer = TargetAttention(s.width, [s.units], self.activation, self.normalize, self.backend)
        lengths = torch.randint(1, s.length + 1, (s.users,))
        target, history = torch.randn(s.users, s.width), torch.randn(s.users, s.length, s.width)
        to = partial(torch.Tensor.to, device=self.device)
        return (
            layer.to(self.device, self.dtype),
            to(target).to(self.dtype).requires_grad_(),
            to(history).to(self.dtype).requires_grad_(),
            to(lengths),
        )


def run_report(device: torch.device, folder: Path, size: Size, backend: str = "triton") -> list[Check]:
    """Runs every check and writes `gpu_report.json` and `gpu_report.md` into `folder`.

    Args:
        device: where; "cuda" for the real report.
        folder: made if it is not there.
        size: of the timings; the correctness checks have smaller ones of their own.
        backend: the implementation under test.
    """
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    checks: list[Check] = []
    for dtype in dtypes:
        for activation, normalize in (("relu", "none"), ("silu", "softmax"), ("sigmoid", "sigmoid")):
            name = f"correct: {activation}, {normalize}, {_name(dtype)}"
            problem = Problem(Size(33, 70, 40, 36), device, dtype, activation, normalize, backend)
            checks.append(_guarded(name, partial(_correct, problem)))
    for dtype in dtypes[:2] if device.type == "cuda" else dtypes[:1]:
        for op, make in _OTHERS.items():
            # The look-up has no Triton kernel: what "auto" takes is told.
            asked = "auto" if op == "polarity_embedding" else backend
            checks.append(
                _guarded(f"correct: {op}, {_name(dtype)}", partial(_correct_op, op, make, device, dtype, asked))
            )
    checks.append(_guarded("correct: interleave", partial(_merged, device)))
    checks.append(
        _guarded("deterministic", partial(_deterministic, Problem(Size(65, 90), device, dtypes[0], backend=backend)))
    )
    checks.append(
        _guarded("graph capture", partial(_captured, Problem(Size(64, 50), device, dtypes[0], backend=backend)))
    )
    bandwidth = _guarded("memory bandwidth", partial(_bandwidth, device))
    checks.append(bandwidth)
    for dtype, precision in ((dtypes[0], "highest"), (dtypes[0], "high"), (dtypes[1], "highest")):
        problem = Problem(size, device, dtype, backend=backend, precision=precision)
        name = f"ladder: {_name(dtype)}" + (", TensorFloat32" if precision == "high" else "")
        checks.append(_guarded(name, partial(_ladder, problem, bandwidth.figures.get("GB/s"))))
    _write(folder, device, size, checks)
    return checks


def _guarded(name: str, check: Callable[[], tuple[bool | None, dict[str, Any]]]) -> Check:
    try:
        passed, figures = check()
    except Exception:  # whatever it is belongs into the report
        return Check(name, False, error=traceback.format_exc(limit=-3))
    return Check(name, passed, figures)


def _step(forward: Callable[..., Tensor], target: Tensor, history: Tensor, *more: Any) -> Tensor:
    target.grad = history.grad = None
    out = forward(target, history, *more)
    out.backward(torch.ones_like(out))
    return out.detach()


def _results(layer: TargetAttention, target: Tensor, history: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    layer.zero_grad()
    out = _step(lambda t, x: layer(t, x, lengths=lengths), target, history)
    grads = {name: p.grad for name, p in layer.named_parameters()}
    found = {"out": out, "target": target.grad, "history": history.grad, **grads}
    return {name: tensor.double().cpu() for name, tensor in found.items() if tensor is not None}


def _correct(problem: Problem) -> tuple[bool, dict[str, Any]]:
    """Errors against float64 on the CPU, in shares of what contract 1 allows."""
    layer, target, history, lengths = problem.make()
    got = _results(layer, target, history, lengths)
    layer.backend = "reference"
    plain = _results(layer, target, history, lengths)
    wide = [t.detach().double().cpu().requires_grad_() for t in (target, history)]
    truth = _results(layer.double().cpu(), wide[0], wide[1], lengths.cpu())
    eps, shares = torch.finfo(problem.dtype).eps, {}
    for name, value in truth.items():
        factor = FORWARD if name == "out" else BACKWARD
        # A softmax does not feel the output bias: its gradient is 0 but for rounding.
        size = value.abs().max() if name != "layers.1.bias" else truth["layers.0.bias"].abs().max()
        allowed = factor * (plain[name] - value).abs().max() + eps * size
        shares[name] = round(float((got[name] - value).abs().max() / allowed), 3)
    return max(shares.values()) <= 1, {"share of the budget": shares}


_SMALL = gpu_problems.Size(33, 70)
_OTHERS: dict[str, Callable[[], gpu_problems.Problem]] = {
    "dot_target_attention": lambda: gpu_problems.dot_problem(_SMALL, 40),
    "polarity_fusion": lambda: gpu_problems.fusion_problem(_SMALL, 40),
    "mixed_polarity_attention": lambda: gpu_problems.mixed_problem(_SMALL, 40, (36,)),
    "target_attention, three layers, softmax": lambda: gpu_problems.unit_problem(_SMALL, 40, (36, 20, 10), "softmax"),
    "polarity_embedding": lambda: gpu_problems.embedding_problem(_SMALL, 40),
}


def _correct_op(
    op: str, make: Callable[[], gpu_problems.Problem], device: torch.device, dtype: torch.dtype, backend: str
) -> tuple[bool, dict[str, Any]]:
    """As `_correct`, of another op."""
    problem = make()
    shares = problem.shares(backend, device, dtype)
    leaves, others = problem.on(device, dtype)
    taken = mixpol_kernels.explain(problem.call, leaves, others, backend).backend
    return max(shares.values()) <= 1, {
        "backend": taken,
        "share of the budget": {name: round(share, 3) for name, share in shares.items()},
    }


def _merged(device: torch.device) -> tuple[bool, dict[str, Any]]:
    """`interleave` with budget and share: the same events as the reference, in the same order."""
    generator = torch.Generator().manual_seed(0)
    lists: list[Tensor] = []
    for most in (40, 90):
        counts = torch.randint(0, most, (65,), generator=generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
        times = [torch.randint(0, 50, (n,), generator=generator).sort().values for n in counts.tolist()]
        lists += [torch.cat(times), offsets]
    want = mixpol_kernels.interleave(*lists, budget=30, negative_share=0.4, backend="reference")
    there = [values.to(device) for values in lists]
    got = mixpol_kernels.interleave(*there, budget=30, negative_share=0.4)
    same = all(torch.equal(getattr(got, name).cpu(), getattr(want, name)) for name in ("source", "polarity", "offsets"))
    taken = mixpol_kernels.explain(mixpol_kernels.interleave, *there, budget=30, negative_share=0.4).backend
    return same, {"backend": taken}


def _deterministic(problem: Problem) -> tuple[bool, dict[str, Any]]:
    first, again = (_results(*problem.make()) for _ in range(2))
    alone, target, history, lengths = problem.make()
    one = alone(target[3:4], history[3:4], lengths=lengths[3:4]).detach().double().cpu()
    same = {name: torch.equal(first[name], again[name]) for name in first} | {
        "a user alone": torch.equal(one[0], first["out"][3])
    }
    return all(same.values()), {"same bits": same}


def _captured(problem: Problem) -> tuple[bool | None, dict[str, Any]]:
    """The forward in a CUDA graph, replayed on other inputs."""
    if problem.device.type != "cuda":
        return None, {"skipped": "no CUDA device"}
    layer, target, history, lengths = problem.make()
    with torch.no_grad():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            layer(target, history, lengths=lengths)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(target, history, lengths=lengths)
        target.copy_(torch.randn_like(target))
        graph.replay()
        return torch.equal(out, layer(target, history, lengths=lengths)), {}


def _bandwidth(device: torch.device) -> tuple[None, dict[str, Any]]:
    """Bandwidth of copying a large tensor."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**22, dtype=torch.uint8, device=device)
    seconds = seconds_of(partial(source.clone), device)
    return None, {"GB/s": round(2 * source.numel() / seconds / 1e9, 1)}


def _ladder(problem: Problem, bandwidth: float | None) -> tuple[bool, dict[str, Any]]:
    """Times and peak memory of the fused form and of those that models write, each checked first.

    Wall-clock times are of one call that is waited for; GPU times of replays of its CUDA graph, without launches.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(problem.precision)
    try:
        return _steps(problem, bandwidth)
    finally:
        torch.set_float32_matmul_precision(before)


def _steps(problem: Problem, bandwidth: float | None) -> tuple[bool, dict[str, Any]]:
    layer, target, history, lengths = problem.make()
    right_padded = pad_right(lengths.cpu(), problem.size.length)
    padding = Padding(*(tensor.to(problem.device) for tensor in right_padded))
    padding = padding._replace(mask=padding.mask.to(problem.dtype))
    forms: dict[str, Callable[..., Tensor]] = {
        "fused": lambda t, x: layer(t, x, lengths=lengths),
        "concat": _bound(Concat(layer), padding),
        "refactored": _bound(PerTarget(layer), padding),
        "concat+compile": _bound(cast(nn.Module, torch.compile(Concat(layer))), padding),
        "refactored+compile": _bound(cast(nn.Module, torch.compile(PerTarget(layer))), padding),
    }
    kept, element = int(lengths.sum()), history.element_size()
    eps = torch.finfo(torch.bfloat16 if problem.precision == "high" else problem.dtype).eps
    want, rows, right = None, {}, True
    for name, form in forms.items():
        with _peak(problem.device) as peak:
            out = _step(form, target, history)
        want = out if want is None else want
        off = float((out - want).abs().max() / want.abs().max())
        right &= off < 50 * eps * problem.size.length**0.5
        calls = {
            "both": partial(_step, form, target, history),
            "forward": torch.no_grad()(partial(form, target, history)),
        }
        row = {f"{what} ms": 1e3 * seconds_of(call, problem.device) for what, call in calls.items()}
        row |= {f"GPU {what} ms": 1e3 * _alone(call, problem.device) for what, call in calls.items()}
        rows[name] = row | {"peak MiB": peak[0], "off": off}
    fused = rows["fused"]
    for row in rows.values():
        row |= {
            f"x {what}": row[f"{what} ms"] / fused[f"{what} ms"]
            for what in ("forward", "both", "GPU forward", "GPU both")
        }
    figures: dict[str, Any] = {"tokens kept": kept, "forms": rows}
    if bandwidth:  # the history once, and the targets in and out
        least = element * (kept + 2 * problem.size.users) * problem.size.width
        figures["share of bandwidth, fused forward"] = least / (fused["GPU forward ms"] * 1e6) / bandwidth
    return right, figures


def _alone(call: Callable[[], Any], device: torch.device) -> float:
    """GPU time, seconds; NaN where there is none, or where a form cannot be captured."""
    if device.type != "cuda":
        return math.nan
    try:
        return kernel_seconds(lambda: call)
    except RuntimeError:
        torch.cuda.synchronize()
        return math.nan


def _bound(unit: nn.Module, padding: Padding) -> Callable[..., Tensor]:
    return lambda t, x: unit(t, x, padding)


@contextmanager
def _peak(device: torch.device) -> Iterator[list[float]]:
    """The list gets the peak of what was allocated inside, MiB; NaN where it is not counted."""
    peak: list[float] = []
    if device.type != "cuda":
        yield peak
        peak.append(float("nan"))
        return
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield peak
    torch.cuda.synchronize()
    peak.append((torch.cuda.max_memory_allocated() - before) / 2**20)


def _write(folder: Path, device: torch.device, size: Size, checks: list[Check]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = dict(machine_facts())
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "compute capability": f"{properties.major}.{properties.minor}",
            "gpu memory GiB": round(properties.total_memory / 2**30, 1),
        }
    report = {"facts": facts, "size": asdict(size), "checks": [asdict(check) for check in checks]}
    write_atomically(folder / "gpu_report.json", json.dumps(report, indent=1) + "\n")
    words = {True: "passed", False: "FAILED", None: "–"}
    lines = ["# GPU report", "", ", ".join(f"{key} {value}" for key, value in facts.items()), ""]
    lines += ["| check | result | figures |", "|---|---|---|"]
    for check in checks:
        shown = {k: v for k, v in check.figures.items() if k != "forms"}
        reason = check.error.strip().splitlines()[-1] if check.error else json.dumps(shown)
        lines.append(f"| {check.name} | {words[check.passed]} | {reason} |")
    for check in checks:
        if "forms" not in check.figures:
            continue
        lines += ["", f"## {check.name}: {size.users} users, lengths uniform in 1 ... {size.length}", ""]
        columns = ("forward", "both", "GPU forward", "GPU both")
        lines += [
            "| form | forward, ms | both, ms | GPU forward, ms | GPU both, ms | × | × | × GPU | × GPU | peak, MiB |"
        ]
        lines += ["|---|" + "---:|" * 9]
        for name, row in check.figures["forms"].items():
            times = [f"{row[f'{what} ms']:.3f}" for what in columns]
            ratios = [f"{row[f'x {what}']:.2f}" for what in columns]
            lines.append(f"| {' | '.join([name, *times, *ratios])} | {row['peak MiB']:.0f} |")
    write_atomically(folder / "gpu_report.md", "\n".join(lines) + "\n")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
