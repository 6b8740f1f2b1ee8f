"""The correctness gate: no number of a run is shown unless every form of that run is right.

With exact the float64 reference, in the maximum norm tensor by tensor (contract 1 of the package):

    |answer - exact| <= factor * error of plain float32 PyTorch + eps * max |exact|

The plain error is the largest of a few plain forms and draws of rounding errors. A single one may be small by
luck, where a tensor has few elements (the gradient of a bias is one long sum), or as PyTorch summed pairwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

OUTPUT_FACTOR, GRADIENT_FACTOR = 2.0, 5.0
Answer = Mapping[str, Tensor]
# Gradients are linear in the upstream gradient: a multiple of it has the same answer, rounded otherwise.
MULTIPLES = (1.0, 45 / 32, 55 / 32)


class GateError(RuntimeError):
    """A form's numbers are outside the error budget."""


def check(name: str, answer: Answer, exact: Answer, plain: Mapping[str, float]) -> None:
    """Holds a form to the error budget.

    Args:
        name: of the form, for the message.
        answer: {"output": ..., leaf name: gradient} of the form, float32.
        exact: the same of the float64 reference.
        plain: error of plain float32 PyTorch, by the same names; see `plain_errors`.

    Raises:
        GateError: a tensor is missing, misshapen or outside the budget (NaN is outside).
    """
    if answer.keys() != exact.keys():
        raise GateError(f"{name}: has {sorted(answer)}; the reference has {sorted(exact)}")
    for key, truth in exact.items():
        if answer[key].shape != truth.shape:
            raise GateError(f"{name}: {key} has shape {list(answer[key].shape)}; expected {list(truth.shape)}")
        error, allowed = largest_error(answer[key], truth), budget(key, plain[key], truth)
        if not error <= allowed:
            raise GateError(
                f"{name}: error of {key} is {error:.3g}; allowed is {allowed:.3g} (largest value "
                f"{float(truth.abs().max()):.3g}). The gate is red, so no number of this run is shown."
            )


def plain_errors(
    forms: Iterable[Callable[[], Tensor]],
    leaves: Answer,
    upstream: Tensor,
    exact: Answer,
    kept: Answer | None = None,
) -> dict[str, float]:
    """The largest error of each tensor over plain float32 forms.

    Args:
        forms: each runs a forward pass and returns the output.
        leaves: what gets a gradient, by name.
        upstream: gradient of the output, of `short` values.
        exact: {"output": ..., leaf name: gradient} of the float64 reference.
        kept: by name, 1 where the output or a gradient counts and 0 where it does not.
    """
    worst = dict.fromkeys(exact, 0.0)
    for form in forms:
        for answer in _draws(form(), leaves, upstream, kept or {}):
            for key, truth in exact.items():
                worst[key] = max(worst[key], largest_error(answer[key], truth))
    return worst


def short(tensor: Tensor) -> Tensor:
    """Rounded to eight bits, so that its multiples in `plain_errors` are exact in float32."""
    return tensor.bfloat16().to(tensor.dtype)


def _draws(output: Tensor, leaves: Answer, upstream: Tensor, kept: Answer) -> Iterator[Answer]:
    for multiple in MULTIPLES:
        grads = torch.autograd.grad(output, list(leaves.values()), upstream * multiple, retain_graph=True)
        scaled = (grad.double() * kept.get(name, 1) / multiple for name, grad in zip(leaves, grads, strict=True))
        yield {"output": output * kept.get("output", 1), **dict(zip(leaves, scaled, strict=True))}


def budget(key: str, plain: float, truth: Tensor, dtype: torch.dtype = torch.float32) -> float:
    """The largest error that `key` may have in `dtype`, where plain PyTorch has an error of `plain`."""
    factor = OUTPUT_FACTOR if key == "output" else GRADIENT_FACTOR
    return factor * plain + torch.finfo(dtype).eps * float(truth.abs().max())


def largest_error(value: Tensor, truth: Tensor) -> float:
    """max |value - truth| in float64; NaN if there is one."""
    if not truth.numel():
        return 0.0
    return float(torch.sub(value.detach().double(), truth).abs().max())
