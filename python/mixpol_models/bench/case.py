"""One op at one shape in several forms, with the exact answer that every form is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from mixpol_models.bench import gate

COMPILED = "+compile"
FUSED = "fused"
CONTROL = "mean pool"
# The error budget is a claim about the fused form. The others are no kernels of ours and sum in other orders,
# torch.compile a bias's gradient or PyTorch a table's one token after the other, 100,000 at L = 10,000: they only have
# to compute the same thing.
_OTHERS = 512 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Case:
    """One op at one shape, in several forms over the same parameters.

    A form's name is that of its implementation, then ", " and the variant where it has several. Forms that go through
    `torch.compile`, at their first call, end their implementation's name in "+compile".

    Attributes:
        name: of the op and the shape.
        forms: ways to compute the output, by name: eager ones, refactored ones, "fused".
        leaves: everything that gets a gradient, by name.
        upstream: the gradient of the output, of `gate.short` values; zero at pads, which forms may fill differently.
        make_exact: output and gradients of the float64 reference, by name.
        plain: plain float32 forms, whose rounding errors are the gate's measure.
        tokens: kept tokens of the batch.
        others: further tensors that exist before a form runs.
        kept: by "output" or the name of a leaf, what it is times when it is compared; 0 at pads.
        controls: answers in float64 of the forms that are not the same function.
    """

    name: str
    forms: Mapping[str, Callable[[], Tensor]]
    leaves: Mapping[str, Tensor]
    upstream: Tensor
    make_exact: Callable[[], Mapping[str, Tensor]]
    plain: Sequence[Callable[[], Tensor]]
    tokens: int
    others: Sequence[Tensor] = ()
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    controls: Mapping[str, Callable[[], Mapping[str, Tensor]]] = field(default_factory=dict)

    @cached_property
    def exact(self) -> Mapping[str, Tensor]:
        """The float64 reference's answer."""
        return self.make_exact()

    @cached_property
    def plain_errors(self) -> dict[str, float]:
        """Errors of plain float32 PyTorch, for the gate."""
        return gate.plain_errors(self.plain, self.leaves, self.upstream, self.exact, self.kept)

    def inputs(self) -> list[Tensor]:
        """Every tensor that exists before a form runs."""
        return [*self.leaves.values(), *self.others, self.upstream]

    def clear(self) -> None:
        """Drops the gradients."""
        for leaf in self.leaves.values():
            leaf.grad = None

    def step(self, form: str) -> Tensor:
        """Forward and backward of a form; the gradients are in the leaves. Call `clear` first."""
        output = self.forms[form]()
        output.backward(self.upstream)
        return output

    def answer(self, form: str) -> dict[str, Tensor]:
        """`step`, as the gate takes it: {"output": ..., leaf: gradient}, without leaves that have none."""
        self.clear()
        answer = {"output": self.step(form).detach()}
        answer |= {name: leaf.grad for name, leaf in self.leaves.items() if leaf.grad is not None}
        self.clear()
        return {name: value * self.kept.get(name, 1) for name, value in answer.items()}

    def check(self, form: str) -> None:
        """Runs a form with and without gradients and holds both to the error budget; only the fused form strictly.

        Raises:
            GateError: it is outside.
        """
        answer = self.answer(form)
        with torch.no_grad():
            served = self.forms[form]() * self.kept.get("output", 1)
        exact = self.controls[form]() if form in self.controls else self.exact
        plain = self.plain_errors
        if implementation_of(form) != FUSED:
            plain = {key: max(plain.get(key, 0.0), _OTHERS * float(truth.abs().max())) for key, truth in exact.items()}
        label = f"{form} in {self.name}"
        gate.check(label, answer, exact, plain)
        gate.check(f"{label}, without gradients", {**answer, "output": served}, exact, plain)


def implementation_of(form: str) -> str:
    """The implementation of a form: its name without the variant."""
    return form.partition(", ")[0]


def exact_control(
    forward: Callable[[Tensor], Tensor], name: str, leaf: Tensor, upstream: Tensor
) -> Callable[[], dict[str, Tensor]]:
    """For `Case.controls`: the answer of `forward`, of one leaf, in float64."""

    def answer() -> dict[str, Tensor]:
        wide = leaf.detach().double().requires_grad_()
        return exact_answer(lambda: forward(wide), {name: wide}, upstream)

    return answer


def exact_answer(forward: Callable[[], Tensor], leaves: Mapping[str, Tensor], upstream: Tensor) -> dict[str, Tensor]:
    """{"output": ..., leaf name: gradient} of a float64 forward."""
    output = forward()
    output.backward(upstream.double())
    return {"output": output.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}
