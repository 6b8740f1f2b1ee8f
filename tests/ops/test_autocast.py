"""Contract 8: under autocast the ops run in float32; transforms of torch.func are refused in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mixpol_kernels
from mixpol_kernels.testing.inputs import OPS, Config, make

every_op = pytest.mark.parametrize("op", OPS)
LOW = (torch.bfloat16, torch.float16)


def autocast(dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    return torch.autocast("cpu", dtype)


def leaves(arguments: dict[str, Any], dtype: torch.dtype, keep: tuple[str, ...] = ()) -> dict[str, Any]:
    """The arguments as fresh leaves in a dtype; those named in `keep` in float32."""

    def leaf(value: Any, name: str) -> Any:
        if isinstance(value, list):
            return [leaf(v, name) for v in value]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.detach().to(torch.float32 if name in keep else dtype).requires_grad_(name != "sign")

    return {name: leaf(value, name) for name, value in arguments.items()}


def grads(out: Tensor, arguments: dict[str, Any]) -> list[Tensor]:
    """Gradients of all leaves that have one."""
    out.float().square().sum().backward()
    flat = [v for value in arguments.values() for v in (value if isinstance(value, list) else [value])]
    return [t.grad for t in flat if isinstance(t, Tensor) and t.grad is not None]


@pytest.mark.parametrize("dtype", LOW, ids=str)
@every_op
def test_float32_is_taken_as_it_is(op: str, dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    case = make(Config(op=op), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    expected = case.call(arguments, backend)
    with autocast(dtype):
        got = case.call(arguments, backend)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@every_op
def test_mixed_dtypes_run_in_float32(op: str, dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    """Activations of a bfloat16 layer meet float32 parameters; gradients come back in each input's dtype."""
    case = make(Config(op=op, activation="prelu", hidden=(8, 5)), generator)
    mixed = leaves(case.arguments(case.place(generator)), dtype, keep=("weights", "polarity_table"))
    with pytest.raises(TypeError, match="expected the same dtype"):
        case.call(mixed, backend)
    same = leaves(mixed, torch.float32)
    expected = case.call(same, backend)
    with autocast(dtype):
        got = case.call(mixed, backend)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)
    pairs = list(zip(grads(got, mixed), grads(expected, same), strict=True))
    assert {grad.dtype for grad, _ in pairs} == {torch.float32, dtype}
    for grad, true in pairs:
        assert torch.equal(grad, true.to(grad.dtype))


def test_switched_off_inside(generator: torch.Generator) -> None:
    """autocast(enabled=False) is no autocast, and the state outside is what it was."""
    case = make(Config(op="target_attention"), generator)
    mixed = leaves(case.arguments(case.place(generator)), torch.bfloat16, keep=("weights",))
    with autocast():
        with torch.autocast("cpu", enabled=False), pytest.raises(TypeError, match="expected the same dtype"):
            case.call(mixed)
        case.call(mixed)
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_module_in_a_model(compiled: bool) -> None:
    """A bfloat16 layer before and behind the fused one, trained under autocast."""
    before, behind = torch.nn.Linear(8, 8), torch.nn.Linear(8, 1)
    attention = mixpol_kernels.nn.TargetAttention(8, [16], backend="cpu")
    target, history = torch.randn(3, 8), torch.randn(3, 5, 8)

    def model(target: Tensor, history: Tensor) -> Tensor:
        pooled = attention(before(target), before(history), lengths=torch.tensor([5, 0, 2]))
        assert pooled.dtype == torch.float32
        return behind(pooled)

    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    with autocast():
        out = run(target, history)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    for parameter in (*before.parameters(), *behind.parameters(), *attention.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


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
