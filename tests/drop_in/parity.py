"""A framework's layer, stock and fused, on the same weights and inputs: outputs, gradients, buffers, training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixpol_kernels import drop_in

OUTPUT, GRADIENT, PARAMETER = 2e-6, 1e-5, 1e-4  # relative to the largest value of each tensor


@dataclass(frozen=True)
class Case:
    """Inputs of one call: `call(layer, inputs)`, and which of their elements have a gradient worth comparing."""

    inputs: tuple[Tensor, ...]
    call: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
    compared: tuple[Tensor | None, ...] = ()  # a mask per input; None: all of it


def check(stock: nn.Module, draw: Callable[[], Case], train: bool, zero: Collection[str] = ()) -> None:
    """`check_case` on a drawn case; on up to two others if that fails: a unit within rounding of its kink may be on in
    one form and off in the other, and the stock layer's own error small by luck."""
    for _ in range(2):
        try:
            return check_case(copy.deepcopy(stock), draw(), train, zero)
        except AssertionError:
            continue
    return check_case(stock, draw(), train, zero)


def check_case(stock: nn.Module, case: Case, train: bool, zero: Collection[str] = ()) -> None:
    """The fused form of `stock` does what it does.

    Where rounding in the stock layer is itself above the limit (sums that cancel), the fused one may be as far from
    float64 as four times that.

    `zero`: names of parameters whose gradient is 0 but for rounding: a bias in front of a batch norm or a softmax. A
    draw may make others so (each unit on, or off, for every token under a softmax): float64 tells.
    """
    stock.train(train)
    stock.zero_grad()
    fused, exact = copy.deepcopy(stock), copy.deepcopy(stock).double()
    report = drop_in.accelerate(fused)
    assert len(report.replaced) == 1, str(report)
    assert fused.state_dict().keys() == stock.state_dict().keys()
    got, want, truth = (_run(layer, case) for layer in (fused, stock, exact))
    assert got.keys() == want.keys() == truth.keys()
    assert got["output"].dtype == want["output"].dtype
    largest = max(float(value.abs().max()) for name, value in truth.items() if name.startswith("gradient"))
    for name, value in got.items():
        if name.removeprefix("gradient of ") in zero:
            continue
        assert value.shape == want[name].shape, name
        limit = OUTPUT if name == "output" else GRADIENT
        size = float(truth[name].abs().max())
        error = float((value - want[name]).abs().max())
        if error > limit * size:
            own = float((want[name] - truth[name]).abs().max())
            off = float((value - truth[name]).abs().max())
            if name.startswith("gradient") and size < 1e-12 * largest:
                size = largest
            assert off <= 4 * own + 0.1 * limit * size, f"{name}: {off:.2e} of {size:.2e}; the stock layer {own:.2e}"


def _run(layer: nn.Module, case: Case) -> dict[str, Tensor]:
    dtype = next((p.dtype for p in layer.parameters()), torch.float32)
    inputs = tuple(t.detach().to(dtype).requires_grad_() for t in case.inputs)
    out = case.call(layer, inputs)
    # An even pattern of signs: a smooth one would nearly cancel in a softmax.
    weight = torch.sin(torch.arange(out.numel(), dtype=torch.float64) * 2.3).view(out.shape)
    out.backward(weight.to(out.dtype))
    found = {"output": out.detach()}
    masks = case.compared or (None,) * len(case.inputs)
    for i, (tensor, mask) in enumerate(zip(inputs, masks, strict=True)):
        assert tensor.grad is not None
        found[f"gradient of input {i}"] = tensor.grad if mask is None else tensor.grad[mask]
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        found[f"gradient of {name}"] = parameter.grad
    return {**found, **dict(layer.named_buffers())}


def check_training(stock: nn.Module, case: Case, zero: Collection[str] = (), steps: int = 20) -> None:
    """After some steps of Adam the parameters are the same."""
    stock.train()
    fused = copy.deepcopy(stock)
    drop_in.accelerate(fused)
    for layer in (stock, fused):
        # Not 1e-8: a gradient of about 0 would become a step of ± lr with the sign that rounding gives it.
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3, eps=1e-4)
        for _ in range(steps):
            optimizer.zero_grad()
            out = case.call(layer, case.inputs)
            (out - 0.5).square().mean().backward()
            optimizer.step()
    for (name, a), b in zip(fused.named_parameters(), stock.parameters(), strict=True):
        if name not in zero:
            error = float((a - b).detach().abs().max())
            assert error <= PARAMETER * float(b.abs().max()), f"{name}: {error:.2e}"


def histories(generator: torch.Generator, batch: int = 9, length: int = 60, width: int = 8) -> dict[str, Tensor]:
    """Targets, zero-padded histories on both sides of one chunk, an empty one among them."""
    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    lengths[2], lengths[4] = 0, length
    mask = torch.arange(length) < lengths[:, None]
    tokens = torch.randn(batch, length, width, generator=generator)
    return {
        "target": torch.randn(batch, width, generator=generator),
        "history": tokens * mask[..., None],
        "given": tokens,
        "lengths": lengths,
        "mask": mask,
    }
