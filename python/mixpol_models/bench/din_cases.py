"""The DIN activation unit at one shape: seeded inputs and the weights that all implementations share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mixpol_kernels.nn import TargetAttention
from mixpol_models.bench.case import Case, exact_control
from mixpol_models.bench.gate import short
from mixpol_models.bench.implementations import IMPLEMENTATIONS, Concat, Implementation, Reference
from mixpol_models.bench.kinks import near_kink
from mixpol_models.bench.padding import Padding, masked_mean, pad_right

# Bytes of [tokens, 4 D] float64 that the exact answer works on at a time.
_CHUNK_BYTES = 64 * 2**20


def din_case(
    length: int,
    batch: int = 256,
    width: int = 64,
    hidden: int | Sequence[int] = 64,
    activation: str = "relu",
    normalize: str = "none",
    seed: int = 0,
    implementations: Iterable[Implementation] | None = None,
) -> Case:
    """Normal vectors, the usual initialization of `nn.Linear`, lengths uniform in 1 ... L, padded on the right.

    Pads are zeros, as `padding_idx` leaves them. The forms are the implementations' variants.

    Args:
        length: padded length L.
        batch: users B.
        width: embedding width D.
        hidden: units of the hidden layer, or of each of several.
        activation: "relu", "prelu", "sigmoid", "silu" or "dice" (in training, pads in the statistics).
        normalize: "none" or "softmax".
        seed: of everything random. The global generator is left as it was.
        implementations: all of IMPLEMENTATIONS if None.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        units = [hidden] if isinstance(hidden, int) else list(hidden)
        attention = TargetAttention(width, units, activation, normalize, pads_in_norm=activation == "dice")
        if activation == "dice":
            for slope in attention.slopes:
                nn.init.uniform_(slope, -0.5, 0.5)  # at its start, 0, errors of its gradient's path would not show
        target, upstream = torch.randn(batch, width), short(torch.randn(batch, width))
        padding = pad_right(torch.randint(1, length + 1, (batch,)), length)
        user, position = padding.user, padding.position
        tokens = position.numel()
        history = torch.zeros(batch * length, width)
        exact = copy.deepcopy(attention).double()
        while user.numel():
            drawn = torch.randn(user.numel(), width)
            history[position] = drawn
            again = near_kink(exact, target[user].double(), drawn.double())
            user, position = user[again], position[again]
    target.requires_grad_()
    history = history.view(batch, length, width).requires_grad_()

    def form(unit: nn.Module) -> Callable[[], Tensor]:
        return partial(unit, target, history, padding)

    built = [
        (
            implementation,
            f"{implementation.name}, {variant}" if variant else implementation.name,
            implementation.build(variant, attention),
        )
        for implementation in (IMPLEMENTATIONS.values() if implementations is None else implementations)
        for variant, unit in implementation.variants.items()
        if not ((len(attention.norms) or normalize != "none") and getattr(unit, "skips_pads", False))
    ]
    return Case(
        f"L={length} B={batch} D={width} H={'x'.join(map(str, units))} {activation}"
        + (f" {normalize}" if normalize != "none" else ""),
        {name: form(unit) for _, name, unit in built},
        {"target": target, "history": history, **dict(attention.named_parameters())},
        upstream,
        partial(_exact, attention, target, history, padding, upstream),
        (form(Concat(attention)), form(Reference(attention))),
        tokens,
        tuple(padding),
        # With pads in the statistics of a normalised layer, padded forms give pads a gradient.
        {"history": padding.mask[..., None]} if len(attention.norms) else {},
        {
            name: exact_control(lambda x: masked_mean(x, padding.mask.double()), "history", history, upstream)
            for implementation, name, _ in built
            if implementation.control
        },
    )


def _exact(
    attention: TargetAttention, target: Tensor, history: Tensor, padding: Padding, upstream: Tensor
) -> dict[str, Tensor]:
    """The float64 reference's answer, a few users at a time so that memory stays small."""
    attention = copy.deepcopy(attention).double()
    attention.backend = "reference"
    attention.zero_grad()
    target = target.detach().double().requires_grad_()
    batch, length, width = history.shape
    outputs, grad_history = [], []
    users = max(1, _CHUNK_BYTES // (length * width * 4 * 8))
    if len(attention.norms):
        users = batch  # the statistics are of the whole batch
    for start in range(0, batch, users):
        part = slice(start, start + users)
        some = history.detach()[part].double().requires_grad_()
        pooled = attention(target[part], some, lengths=padding.lengths[part])
        pooled.backward(upstream[part].double())
        outputs.append(pooled.detach())
        grad_history.append(some.grad)
    return {
        "output": torch.cat(outputs),
        "target": target.grad,
        "history": torch.cat(grad_history),
        **{name: parameter.grad for name, parameter in attention.named_parameters()},
    }
