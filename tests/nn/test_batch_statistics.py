"""Dice and batch norm in training, against the layers written out in float64 PyTorch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixpol_kernels.nn import MixedPolarityAttention, TargetAttention
from mixpol_kernels.ops.target_attention.reference import token_dropout
from mixpol_kernels.ops.unit import draw_seed

KINDS: dict[str, dict[str, Any]] = {
    "dice": {"activation": "dice"},
    "dice with affine": {"activation": "dice", "norm_affine": True, "norm_eps": 1e-8, "norm_momentum": 0.1},
    "batch norm": {"activation": "sigmoid", "batch_norm": True, "norm_affine": True, "norm_eps": 1e-5},
    "batch norm, prelu": {"activation": "prelu", "batch_norm": True, "norm_eps": 1e-5},
    "torch-rechub": {"activation": "dice_row", "batch_norm": True, "norm_affine": True, "norm_eps": 1e-5},
}


def textbook(
    layer: TargetAttention, target: Tensor, history: Tensor, keep: Tensor, pads: bool, seed: Tensor | None = None
) -> Tensor:
    """As FuxiCTR writes it: [B, L, 4 D] built, `nn.BatchNorm1d` over rows; without `pads` over the kept rows only."""
    users = torch.arange(len(keep)).repeat_interleave(keep.shape[1])
    drop = token_dropout(layer.dropout, seed, users, keep.flatten(), len(keep), 1)
    t = target[:, None].expand_as(history)
    h = torch.cat([t, history, t - history, t * history], dim=-1).flatten(0, 1)
    rows = torch.ones_like(keep).flatten() if pads else keep.flatten()
    *hidden, last = layer.layers
    h = h[rows]
    for i, linear in enumerate(hidden):
        h = linear(h)
        n = layer.norms[i](h)
        if layer.activation == "dice":
            p = torch.sigmoid(n)
            h = p * h + (1 - p) * layer.slopes[i] * h
        elif layer.activation == "dice_row":
            h = rechub_dice(n, layer.slopes[i], layer.row_eps)
        else:
            h = F.prelu(n, layer.slopes[i]) if layer.activation == "prelu" else torch.sigmoid(n)
        if drop is not None:
            h = h * drop(h.new_ones(len(rows), 1, h.shape[1]), i)[rows, 0]
    scores = torch.zeros(keep.numel(), dtype=h.dtype).masked_scatter(rows, last(h).squeeze(-1)).view(keep.shape)
    return ((scores * keep)[..., None] * history).sum(1)


def rechub_dice(x: Tensor, alpha: Tensor, epsilon: float) -> Tensor:
    """As torch-rechub writes it: sums over dimension 1, the units of one row; alpha [1]."""
    average = x.mean(dim=1).unsqueeze(dim=1)
    variance = (torch.pow(x - average, 2) + epsilon).sum(dim=1).unsqueeze(dim=1)
    p = torch.sigmoid((x - average) / torch.sqrt(variance))
    return p * x + (1 - p) * alpha * x


def problem(generator: torch.Generator, users: int = 7, length: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    target, history = (torch.randn(*s, generator=generator) for s in ((users, 6), (users, length, 6)))
    lengths = torch.randint(length + 1, (users,), generator=generator)
    lengths[:2] = torch.tensor([0, length])
    keep = torch.arange(length)[None] < lengths[:, None]
    return target, history * keep[..., None], lengths, keep


def close(got: Tensor, exact: Tensor, what: str, scale: float = 1.0) -> None:
    error = float((got.detach().double() - exact.detach()).abs().max())
    assert error <= 2e-5 * max(scale, float(exact.abs().max())), f"{what}: {error}"


def gradients_close(layer: TargetAttention, exact: TargetAttention) -> None:
    """A bias below a norm has a gradient of nothing: terms as large as its weight's cancel."""
    sizes = {name: float(p.grad.abs().max()) for name, p in exact.named_parameters()}
    for (name, p), q in zip(layer.named_parameters(), exact.parameters(), strict=True):
        close(p.grad, q.grad, name, scale=max(1.0, sizes.get(name.replace("bias", "weight"), 0.0)))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("layout", ["lengths", "mask", "offsets"])
@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("hidden", [[8], [20, 5], [9, 17, 4]])
@pytest.mark.parametrize("kind", KINDS)
def test_training_step(
    kind: str, hidden: list[int], pads: bool, layout: str, backend: str, generator: torch.Generator
) -> None:
    layer = TargetAttention(6, hidden, backend=backend, pads_in_norm=pads, **KINDS[kind])
    with torch.no_grad():
        for slope in layer.slopes:
            slope.uniform_(-0.5, 0.5)
        for norm in layer.norms:
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.uniform_(-0.5, 0.5)
    exact = copy.deepcopy(layer).double()
    target, history, lengths, keep = problem(generator)
    target, history = target.requires_grad_(), history.requires_grad_()
    target64, history64 = (t.detach().double().requires_grad_() for t in (target, history))
    grad = torch.randn(7, 6, generator=generator)
    if layout == "offsets":
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        pad_to = 9 if pads else None
        got = layer(target, history[keep], offsets=offsets, pad_to=pad_to)
    else:
        got = layer(target, history, **({"lengths": lengths} if layout == "lengths" else {"mask": keep}))
    want = textbook(exact, target64, history64, keep, pads)
    close(got, want, "out")
    got.backward(grad)
    want.backward(grad.double())
    close(target.grad, target64.grad, "target")
    # What stands at a pad is not an input of ours; to the textbook form it is one.
    close(history.grad * keep[..., None], history64.grad * keep[..., None], "history")
    gradients_close(layer, exact)
    for (name, p), q in zip(layer.named_buffers(), exact.buffers(), strict=True):
        close(p, q.double(), name)
    layer.eval(), exact.eval()
    close(layer(target, history, lengths=lengths), textbook(exact, target64, history64, keep, True), "evaluation")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("pads", "hidden"), [(False, [20, 5]), (False, [9, 17, 4]), (True, [20])])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout(kind: str, pads: bool, hidden: list[int], backend: str, generator: torch.Generator) -> None:
    """The statistics of a layer are those of what dropout left of the layers below, with the masks of the scores."""
    layer = TargetAttention(6, hidden, backend=backend, pads_in_norm=pads, dropout=0.4, **KINDS[kind])
    exact = copy.deepcopy(layer).double()
    target, history, lengths, keep = problem(generator)
    history64 = history.double().requires_grad_()
    history.requires_grad_()
    torch.manual_seed(5)
    got = layer(target, history, lengths=lengths)
    torch.manual_seed(5)
    want = textbook(exact, target.double(), history64, keep, pads, draw_seed())
    close(got, want, "out")
    got.sum().backward()
    want.sum().backward()
    close(history.grad * keep[..., None], history64.grad * keep[..., None], "history")
    gradients_close(layer, exact)
    for (name, p), q in zip(layer.named_buffers(), exact.buffers(), strict=True):
        close(p, q.double(), name)
    layer.eval(), exact.eval()
    close(
        layer(target, history, lengths=lengths), textbook(exact, target.double(), history64, keep, True), "evaluation"
    )


def test_training_is_the_same_with_any_number_of_threads(generator: torch.Generator) -> None:
    layer = TargetAttention(24, [40, 12], "dice")
    target, history = torch.randn(300, 24, generator=generator), torch.randn(300, 30, 24, generator=generator)
    lengths = torch.randint(31, (300,), generator=generator)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        copied = copy.deepcopy(layer)
        leaf = history.clone().requires_grad_()
        out = copied(target, leaf, lengths=lengths)
        out.sum().backward()
        results.append([out, leaf.grad, *(p.grad for p in copied.parameters()), *copied.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_from_ids(generator: torch.Generator) -> None:
    layer = MixedPolarityAttention(40, 6, [8], fusion="tapf", activation="dice")
    ids, polarity = torch.randint(40, (3, 5), generator=generator), torch.randint(2, (3, 5), generator=generator)
    target, lengths = torch.randn(3, 6, generator=generator), torch.tensor([5, 0, 2])
    ids[1] = 10**9  # what stands at pads is not read
    got = layer(target, ids, polarity, lengths=lengths)
    tokens = layer.fusion(target, layer.item_embedding(ids.clamp(max=39)), polarity, lengths=lengths)
    again = copy.deepcopy(layer.attention)
    assert torch.equal(got, again(target, tokens, lengths=lengths))
    got.sum().backward()
    assert layer.item_embedding.weight.grad is not None
    assert int(layer.attention.norms[0].num_batches_tracked) == 1
    with pytest.raises(ValueError, match="expected \\[B, D\\] while training"):
        layer(target[:, None], ids, polarity, lengths=lengths)
    layer.eval()
    assert layer(target[:, None].expand(3, 4, 6), ids, polarity, lengths=lengths).shape == (3, 4, 6)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="dice normalises itself"):
        TargetAttention(4, [8], "dice", batch_norm=True)
    with pytest.raises(ValueError, match=r"dropout was 0\.1 with pads_in_norm and 2 hidden layers"):
        TargetAttention(4, [8, 8], "dice", pads_in_norm=True, dropout=0.1)
    layer = TargetAttention(4, [8], "dice", pads_in_norm=True)
    with pytest.raises(ValueError, match="pad_to was None"):
        layer(torch.randn(1, 4), torch.randn(3, 4), offsets=torch.tensor([0, 3]))


def test_running_statistics_are_saved() -> None:
    names = TargetAttention(4, [8], "dice").state_dict().keys()
    assert {"slopes.0", "norms.0.running_mean", "norms.0.running_var", "norms.0.num_batches_tracked"} <= set(names)
    assert isinstance(TargetAttention(4, [8], "dice").norms[0], nn.BatchNorm1d)
