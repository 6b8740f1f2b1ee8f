"""The error budget: a kernel is held to a multiple of the rounding error of plain PyTorch, not to a tolerance.

With ref64 the reference in float64 and ref32 the same reference in float32 (or in bfloat16 or float16, on inputs
that it holds exactly: `make(config, generator, dtype)`), in the maximum norm per tensor:

    |out - ref64| <= factor * |ref32 - ref64| + eps * max |ref64|,   factor 2 for outputs, 5 for gradients

Rounding errors are random: one draw of either side can be small or large by luck, most of all where a tensor has
few elements. So |ref32 - ref64| is the largest of up to a few draws, taken at inputs that differ a little: nearly the
same problem, other rounding errors. What is over this budget is judged by the mean of many draws of
both sides, which luck does not move and a mistake does not escape.

Plain PyTorch can be luckier than its arithmetic is: exact where every product and sum happens to be a float32. So it
is granted at least what rounding each input once does to the exact result, |ref64 at x (1 +- eps/2) - ref64|: no
algorithm is asked to be better than the one that takes its inputs into registers (backward stability: Higham,
Accuracy and Stability of Numerical Algorithms, 2002, section 1.5). That is taken where a result is over the budget
without it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixpol_kernels.testing.inputs import Case
from mixpol_kernels.testing.layouts import Placement

FORWARD, BACKWARD = 2.0, 5.0
_FEW, _MANY = 3, 30
# Largest share of the budget that was used so far in this process, by op and result; shown after a test run.
worst: dict[str, float] = {}

Results = dict[str, Tensor]


def over_budget(
    case: Case,
    where: Placement,
    generator: torch.Generator,
    *,
    backend: str = "cpu",
    dtype: torch.dtype = torch.float32,
    floor: float = torch.finfo(torch.float32).tiny,
) -> list[str]:
    """One line for each result of `backend` that is over its budget; an empty list is a pass.

    `case` holds values of `dtype`: it was made with it. `floor` is an absolute error that plain PyTorch is granted too,
    by default the smallest normal float32: what is below may be flushed to 0 (the kernels' exp does).
    """
    got, truth = case.run(backend, where, dtype), case.run("reference", where, torch.float64)
    lines = _structure(got, truth, dtype)
    if lines:
        return [f"{line}, at {case.config}" for line in lines]
    error, scale = _errors(got, truth), _scales(case, truth)
    plain = _errors(case.run("reference", where, dtype), truth)
    shares = {n: _share(n, error[n], plain[n] + floor, scale[n], dtype) for n in truth}
    for turn in range(_FEW):
        if all(share <= 1 for share in shares.values()):
            break  # more draws only raise the budget
        near = case if turn == 0 else case.jitter(generator, dtype)
        more = _draw(near, where, generator, dtype)["reference"]
        plain = {n: max(plain[n], more[n]) for n in truth}
        shares = {n: _share(n, error[n], plain[n] + floor, scale[n], dtype) for n in truth}
    if not all(share <= 1 for share in shares.values()):
        draws = [_draw(case.jitter(generator, dtype), where, generator, dtype, backend) for _ in range(_MANY)]
        for name in (name for name, share in shares.items() if not share <= 1):
            ours, theirs = (sum(d[b][name] for d in draws) / _MANY for b in (backend, "reference"))
            shares[name] = _share(name, ours, theirs + floor, scale[name], dtype)
            if not shares[name] <= 1:  # NaN is over budget too
                lines.append(
                    f"{name}: mean error {ours:.2e} is {shares[name]:.2f} times the budget; plain PyTorch's is "
                    f"{theirs:.2e}, the largest value {scale[name]:.2e}; at {case.config}"
                )
    for name, share in shares.items():
        key = f"{case.config.op} {name.split('[')[0]}"
        worst[key] = max(worst.get(key, 0.0), share)
    return lines


def _draw(
    case: Case, where: Placement, generator: torch.Generator, dtype: torch.dtype, *more: str
) -> dict[str, dict[str, float]]:
    """Errors of the reference, at least those of inputs rounded once, and of more backends, on one problem."""
    truth = case.run("reference", where, torch.float64)
    errors = {name: _errors(case.run(name, where, dtype), truth) for name in ("reference", *more)}
    rounded = _errors(case.rounded_once(generator).run("reference", where, torch.float64), truth)
    errors["reference"] = {name: max(error, rounded[name]) for name, error in errors["reference"].items()}
    return errors


def _structure(got: Results, truth: Results, dtype: torch.dtype) -> list[str]:
    if got.keys() != truth.keys():
        return [f"results are {sorted(got)}, expected {sorted(truth)}"]
    return [
        f"{name} is {value.dtype} {list(value.shape)}, expected {dtype} {list(truth[name].shape)}"
        for name, value in got.items()
        if value.shape != truth[name].shape or value.dtype != dtype
    ]


def _errors(got: Results, truth: Results) -> dict[str, float]:
    return {name: _largest(got[name] - truth[name]) for name in truth}


def _scales(case: Case, truth: Results) -> dict[str, float]:
    """max |ref64| of each result."""
    scales = {name: _largest(value) for name, value in truth.items()}
    if case.config.has_unit and case.config.normalize == "softmax":
        # A softmax does not feel its output bias: that gradient is 0, a sum of terms as large as any bias's.
        zero = f"grad biases[{len(case.config.hidden)}]"
        if zero in scales:  # not where only a forward is judged
            scales[zero] = max(scale for name, scale in scales.items() if name.startswith("grad biases"))
    return scales


def _share(name: str, error: float, plain: float, scale: float, dtype: torch.dtype) -> float:
    factor = BACKWARD if name.startswith("grad ") else FORWARD
    budget = factor * plain + torch.finfo(dtype).eps * scale
    return error / budget if budget else (torch.inf if error else 0.0)


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
