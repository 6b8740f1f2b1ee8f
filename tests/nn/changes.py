"""Changes that make an inner module more than its parameters, and the concatenated form that calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from mixpol_kernels.nn import TargetAttention

USERS, LENGTH, WIDTH, ITEMS = 5, 7, 6, 20
LENGTHS = torch.tensor([7, 0, 3, 1, 6])


class Adapter(nn.Linear):
    """As LoRA has it: the weight and something beside it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.5 * x.sum(-1, keepdim=True)


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.weight = inner.weight  # so that it can be mistaken for a linear layer
        self.bias = inner.bias
        self.out_features = inner.out_features

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


def adapted(linear: nn.Linear) -> nn.Module:
    other = Adapter(linear.in_features, linear.out_features, bias=linear.bias is not None)
    other.load_state_dict(linear.state_dict())
    return other


def hooked(register: str, hook: Callable[..., Any]) -> Callable[[nn.Linear], nn.Module]:
    def change(linear: nn.Linear) -> nn.Module:
        getattr(linear, register)(hook)
        return linear

    return change


def stale_weight_norm(linear: nn.Linear) -> nn.Module:
    changed = nn.utils.weight_norm(linear)  # its weight is that of the last forward
    with torch.no_grad():
        changed.weight_g.mul_(3)
    return changed


def replaced_forward(linear: nn.Linear) -> nn.Module:
    linear.forward = lambda x: nn.functional.linear(x, linear.weight, linear.bias).sin()  # type: ignore[method-assign]
    return linear


def pruned(linear: nn.Linear) -> nn.Module:
    prune.l1_unstructured(linear, "weight", 0.5)
    with torch.no_grad():
        linear.weight_orig.mul_(2)
    return linear


def spectral_norm(linear: nn.Linear) -> nn.Module:
    """Its largest singular value has been found: the first guess can be near 0, and gradients without digits."""
    nn.utils.spectral_norm(linear, n_power_iterations=20)
    linear(torch.zeros(1, linear.in_features))
    return linear.eval()


def lazy(linear: nn.Linear) -> nn.Module:
    return nn.LazyLinear(linear.out_features, bias=linear.bias is not None)


CHANGES: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "subclass": adapted,
    "wrapper": Wrapper,
    "forward hook": hooked("register_forward_hook", lambda m, x, y: y * 2),
    "forward pre-hook": hooked("register_forward_pre_hook", lambda m, x: (x[0] * 2,)),
    "backward hook": hooked("register_full_backward_hook", lambda m, g, h: (g[0] * 2,)),
    "backward pre-hook": hooked("register_full_backward_pre_hook", lambda m, g: (g[0] * 2,)),
    "weight_norm": stale_weight_norm,
    "spectral_norm": spectral_norm,
    "pruned": pruned,
    "replaced forward": replaced_forward,
    "lazy": lazy,
}


def activation_unit(layer: TargetAttention, target: Tensor, history: Tensor) -> Tensor:
    """Target attention over full histories as the textbook has it, by the layer's own modules."""
    t = target[:, None].expand_as(history)
    h = torch.cat([t, history, t - history, t * history], dim=-1)
    *hidden, output = layer.layers
    for linear in hidden:
        h = linear(h).relu()
    return (output(h) * history).sum(1)


def rows(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=generator, requires_grad=True)


def gradients(layer: nn.Module, out: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor | None]:
    layer.zero_grad()
    wanted = [*inputs, *layer.parameters()]
    weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return list(torch.autograd.grad((out * weight).sum(), wanted, allow_unused=True))


def same(got: list[Tensor | None], want: list[Tensor | None]) -> None:
    assert [g is None for g in got] == [w is None for w in want]
    for g, w in zip(got, want, strict=True):
        if g is not None:
            torch.testing.assert_close(g, w, rtol=2e-5, atol=2e-5)
