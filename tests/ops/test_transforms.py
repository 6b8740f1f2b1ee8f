"""Contract 8: transforms of torch.func are refused in words; tests/test_autocast.py has autocast."""

from __future__ import annotations

import pytest
import torch

import mixpol_kernels
from mixpol_kernels.testing.inputs import OPS, Config, make

every_op = pytest.mark.parametrize("op", OPS)
TRANSFORMS = {
    "vmap": lambda f, t: torch.vmap(f)(t[None]),
    "grad": lambda f, t: torch.func.grad(lambda x: f(x).sum())(t),
    "jvp": lambda f, t: torch.func.jvp(f, (t,), (t,)),
    "jacrev": lambda f, t: torch.func.jacrev(f)(t),
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
@every_op
def test_transforms_are_refused(op: str, name: str, requires_grad: bool, generator: torch.Generator) -> None:
    """By the compiled kernels, before anything runs; the message names the op and what works instead."""
    case = make(Config(op=op), generator)
    arguments = case.arguments(case.place(generator), requires_grad=requires_grad)
    wrt = "target" if case.config.has_target else "item_table"
    with pytest.raises(RuntimeError, match=rf"{op}: the compiled kernels.*torch\.vmap.*backend='reference'"):
        TRANSFORMS[name](lambda t: case.call({**arguments, wrt: t}, "cpu"), arguments[wrt].detach())


def test_transforms_of_the_reference() -> None:
    """What the message recommends works."""
    layer = mixpol_kernels.nn.TargetAttention(8, [16], backend="reference")
    target, history = torch.randn(4, 3, 8), torch.randn(4, 3, 5, 8)
    with torch.no_grad():
        each = torch.stack([layer(t, h) for t, h in zip(target, history, strict=True)])
        torch.testing.assert_close(torch.vmap(layer)(target, history), each)
    leaf = target[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(layer(leaf, history[0]).sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda t: layer(t, history[0]).sum())(target[0]), expected)


def test_functional_call(backend: str) -> None:
    """Other parameters for one call, with gradients to them."""
    layer = mixpol_kernels.nn.MixedPolarityAttention(50, 8, [16], backend=backend)
    other = mixpol_kernels.nn.MixedPolarityAttention(50, 8, [16], backend=backend)
    parameters = dict(other.named_parameters())
    inputs = (torch.tensor([7, 9]), torch.tensor([3, 1, 2]), torch.tensor([1, 0, 0]))
    options = {"offsets": torch.tensor([0, 2, 3])}
    out = torch.func.functional_call(layer, parameters, inputs, options)
    expected = other(*inputs, **options)
    assert torch.equal(out, expected)
    got, true = (torch.autograd.grad(o.square().sum(), list(parameters.values())) for o in (out, expected))
    assert all(torch.equal(g, t) for g, t in zip(got, true, strict=True))
