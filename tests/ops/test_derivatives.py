"""Derivatives that the kernels lack: right or an error in words, in every op and route, never nothing in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from public_calls import DIFFERENTIABLE, call, floats, outputs, replaced
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import mixpol_kernels as mk

every_route = pytest.mark.parametrize("name", DIFFERENTIABLE)
Slot = tuple[str, int | None]


def evaluated(function: Callable[..., Any], arguments: dict[str, Any], backend: str, saves: bool) -> Any:
    def run() -> Any:
        return outputs(function(**arguments, backend=backend))

    return checkpoint(run, use_reentrant=False) if saves else run()


def penalised(
    name: str, seed: int, backend: str, of: Slot | None = None, saves: bool = False
) -> tuple[dict[Slot, Tensor], Tensor]:
    """Leaves, and loss + |d loss / d leaves|²; `of`: the only input that needs a gradient; `saves`: checkpointed."""
    dtype = torch.float64 if backend == "reference" else torch.float32
    generator = torch.Generator().manual_seed(seed)
    function, arguments = call(name, generator, dtype)
    leaves = {slot: value for slot, value in floats(arguments).items() if of is None or slot == of}
    for leaf in leaves.values():
        leaf.requires_grad_()
    found = [out for out in evaluated(function, arguments, backend, saves) if out.requires_grad]
    loss = torch.stack([out.sum() for out in found]).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, allow_unused=True)
    penalty = [grad.to_dense().square().sum() for grad in grads if grad is not None]
    return leaves, loss + torch.stack(penalty).sum()


def gradient_of(total: Tensor, leaf: Tensor) -> Tensor | str:
    """The gradient, or the words that refuse it."""
    try:
        (grad,) = torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        return str(error)
    return torch.zeros_like(leaf) if grad is None else grad.to_dense()


def right_or_refused(op: str, got: Tensor | str, truth: Tensor | str) -> bool:
    """Whether a gradient of a penalty was refused; it has to be right else."""
    assert isinstance(truth, Tensor)
    if isinstance(got, str):
        assert f"{op}: gradients of the kernels cannot be differentiated again" in got
        assert "use backend='reference', which differentiates twice" in got
        return True
    torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=1e-4)
    return False


@pytest.mark.parametrize("saves", [False, True], ids=["", "checkpointed"])
@every_route
def test_penalties_on_gradients(name: str, saves: bool) -> None:
    """What the kernels do not refuse is what the reference in float64 has, the penalty included."""
    op = name.partition(",")[0]
    leaves, total = penalised(name, 3, "cpu", saves=saves)
    same, truth = penalised(name, 3, "reference")
    refused = [
        right_or_refused(op, gradient_of(total, leaf), gradient_of(truth, same[slot])) for slot, leaf in leaves.items()
    ]
    if op != "polarity_embedding":  # linear: its gradients depend on no input
        assert any(refused)


@every_route
def test_penalties_with_one_differentiable_input(name: str) -> None:
    op = name.partition(",")[0]
    _, arguments = call(name, torch.Generator().manual_seed(3))
    for slot in floats(arguments):
        leaves, total = penalised(name, 3, "cpu", of=slot)
        same, truth = penalised(name, 3, "reference", of=slot)
        right_or_refused(op, gradient_of(total, leaves[slot]), gradient_of(truth, same[slot]))


@every_route
def test_graph_of_gradients_that_nobody_differentiates(name: str, generator: torch.Generator) -> None:
    """`create_graph=True` by itself changes nothing: it may be there for another part of the model."""
    function, arguments = call(name, generator)
    leaves = list(floats(arguments).values())
    for leaf in leaves:
        leaf.requires_grad_()
    loss = torch.stack([out.sum() for out in outputs(function(**arguments, backend="cpu")) if out.requires_grad]).sum()
    plain = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    graph = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
    for a, b in zip(plain, graph, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.is_sparse == b.is_sparse
            assert torch.equal(a.to_dense(), b.to_dense())


@every_route
def test_reference_differentiates_twice(name: str, generator: torch.Generator) -> None:
    if name.endswith("sparse"):
        pytest.skip("gradcheck takes dense gradients")
    function, arguments = call(name, generator, torch.float64)
    leaves = {slot: value.requires_grad_() for slot, value in floats(arguments).items()}

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        given = replaced(arguments, dict(zip(leaves, values, strict=True)))
        found = outputs(function(**given, backend="reference"))
        return tuple(out for out in found if out.requires_grad)

    assert torch.autograd.gradgradcheck(run, tuple(leaves.values()), fast_mode=True)


def test_functional_derivatives(generator: torch.Generator) -> None:
    layer = mk.nn.TargetAttention(4, [3], activation="silu")
    target, history = torch.randn(2, 4, generator=generator), torch.randn(2, 5, 4, generator=generator)

    def loss(t: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(layer.named_parameters()), (t, history)).square().sum()

    for derivative in (torch.func.grad(torch.func.grad(loss)), torch.func.hessian(loss), torch.func.jacfwd(loss)):
        with pytest.raises(RuntimeError, match=r"target_attention: .*use backend='reference'"):
            derivative(target)
    with pytest.raises(RuntimeError, match="target_attention: gradients of the kernels"):
        torch.autograd.functional.hessian(loss, target)
    layer.backend = "reference"
    torch.testing.assert_close(
        torch.func.hessian(loss)(target), torch.autograd.functional.hessian(loss, target), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("mode", ["gradients", "inputs without", "no_grad"])
@every_route
def test_tangents(name: str, mode: str, generator: torch.Generator) -> None:
    """Refused by the kernels for a tangent of any input; the reference has the derivative."""
    op = name.partition(",")[0]
    function, arguments = call(name, generator)
    for slot, value in floats(arguments).items():
        with forward_ad.dual_level(), torch.no_grad() if mode == "no_grad" else nullcontext():
            primal = value.clone().requires_grad_(mode != "inputs without")
            dual = forward_ad.make_dual(primal, torch.ones_like(primal))
            given = replaced(arguments, {slot: dual})
            with pytest.raises(RuntimeError, match=f"{op}: the kernels have no forward-mode derivative"):
                function(**given, backend="cpu")
            found = outputs(function(**given, backend="reference"))
            assert any(forward_ad.unpack_dual(out).tangent is not None for out in found)


@every_route
def test_tangents_of_incoming_gradients(name: str, generator: torch.Generator) -> None:
    function, arguments = call(name, generator)
    leaves = list(floats(arguments).values())
    for leaf in leaves:
        leaf.requires_grad_()
    out = next(out for out in outputs(function(**arguments, backend="cpu")) if out.requires_grad)
    with forward_ad.dual_level():
        grad = forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
        with pytest.raises(RuntimeError, match="the kernels have no forward-mode derivative"):
            torch.autograd.grad(out, leaves, grad, allow_unused=True)


def test_tangents_in_modules(generator: torch.Generator) -> None:
    """The short way of modules that need no gradient refuses too, and a level without tangents changes nothing."""
    target, history = torch.randn(2, 4, generator=generator), torch.randn(2, 5, 4, generator=generator)
    ids = torch.zeros(2, 5, dtype=torch.int64)
    layers: dict[str, tuple[torch.nn.Module, tuple[Tensor, ...]]] = {
        "target_attention": (mk.nn.TargetAttention(4, [3]), (history,)),
        "dot_target_attention": (mk.nn.MultiHeadTargetAttention(4, num_heads=2), (history,)),
        "mixed_polarity_attention": (mk.nn.MixedPolarityAttention(9, 4, [3]), (ids, ids)),
        "polarity_fusion": (mk.nn.PolarityFusion(4), (history, ids)),
    }
    for op, (layer, rest) in layers.items():
        with torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.make_dual(target.clone(), torch.ones_like(target))
            with pytest.raises(RuntimeError, match=f"{op}: the kernels have no forward-mode derivative"):
                layer(dual, *rest)
            assert torch.equal(layer(target, *rest), layer(target.clone(), *rest))


@pytest.fixture
def compiler() -> Iterator[None]:
    """Functions that torch.compile gave up stay uncompiled in this process."""
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiler")
def test_tangents_under_compile(generator: torch.Generator) -> None:
    ids, polarity, marks = torch.tensor([3, 1]), torch.tensor([1, 0]), torch.randn(2, 4, generator=generator)
    table = torch.randn(5, 4, generator=generator)
    compiled = torch.compile(mk.polarity_embedding, backend="eager", fullgraph=True)
    assert torch.equal(compiled(ids, polarity, table, marks), mk.polarity_embedding(ids, polarity, table, marks))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(table.clone(), torch.ones_like(table))
        with pytest.raises(RuntimeError, match=r"refuse_tangents|forward-mode"):
            compiled(ids, polarity, dual, marks)


@pytest.mark.usefixtures("compiler")
def test_second_derivatives_under_compile(generator: torch.Generator) -> None:
    """Graphs of torch.compile are once differentiable by themselves; ours must not hide that."""
    layer = mk.nn.TargetAttention(4, [3], activation="silu")
    target = torch.randn(2, 4, generator=generator, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    loss = compiled(target, torch.randn(2, 5, 4, generator=generator)).square().sum()
    with pytest.raises(RuntimeError, match=r"create_graph=False|double backward"):
        torch.autograd.grad(loss, target, create_graph=True)[0].sum().backward()
