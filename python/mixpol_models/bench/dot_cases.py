"""Softmax dot-product attention for the suites: one shape, written five ways over one module's projections.

    projected           tokens are projected to keys and values, then PyTorch's scaled dot-product attention
    projected+compile   torch.compile of it
    absorbed            no token is projected: W_k in the query, W_v behind the pooled tokens, in PyTorch
    absorbed+compile    torch.compile of it: the honest baseline
    fused               mixpol_kernels.nn.MultiHeadTargetAttention(backend="cpu")
    mean pool           a control, not the same function; one candidate only

With M candidates a user there is one more, "broadcast": each candidate is a user of its own with a copy of the
history, as a layer that takes one target has it.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixpol_kernels.nn import MultiHeadTargetAttention
from mixpol_models.bench.case import CONTROL, Case, exact_answer, exact_control
from mixpol_models.bench.gate import short
from mixpol_models.bench.padding import masked_mean, pad_right


class Projected(nn.Module):
    """As most libraries write it, with PyTorch's fused attention: target [B, M, D], history [B, L, D], mask [B, L]."""

    def __init__(self, layer: MultiHeadTargetAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        queries, keys, values = (
            projection(rows).unflatten(-1, (self.layer.num_heads, -1)).transpose(1, 2)
            for projection, rows in (
                (self.layer.W_q, target),
                (self.layer.W_k, history),
                (self.layer.W_v, history),
            )
        )
        attended = F.scaled_dot_product_attention(queries, keys, values, mask[:, None, None])
        return self.layer.W_o(attended.transpose(1, 2).flatten(2))


class Broadcast(Projected):
    """One target a user: the history is repeated for each candidate."""

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        batch, candidates, width = target.shape
        copies = history.unsqueeze(1).expand(-1, candidates, -1, -1).flatten(0, 1)
        masks = mask.unsqueeze(1).expand(-1, candidates, -1).flatten(0, 1)
        return super().forward(target.reshape(-1, 1, width), copies, masks).view(batch, candidates, -1)


class Absorbed(Projected):
    """The fused op's algebra as batched matrix products."""

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        heads, width = self.layer.num_heads, self.layer.attention_dim // self.layer.num_heads
        queries = self.layer.W_q(target).unflatten(-1, (heads, width)) * width**-0.5
        rows = torch.einsum("bmha,had->bmhd", queries, self.layer.W_k.weight.unflatten(0, (heads, width)))
        scores = torch.bmm(rows.flatten(1, 2), history.transpose(1, 2))
        weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        pooled = torch.bmm(weights, history).unflatten(1, (-1, heads))
        values = torch.einsum("bmhd,had->bmha", pooled, self.layer.W_v.weight.unflatten(0, (heads, width)))
        return self.layer.W_o(values.flatten(2))


def dot_case(
    batch: int = 64,
    length: int = 1000,
    width: int = 64,
    heads: int = 4,
    candidates: int = 1,
    seed: int = 0,
) -> Case:
    """Padded histories of lengths uniform in 1 ... L, normal vectors, `candidates` targets a user.

    Args:
        batch, length, width, heads, candidates: B, L, D, H and M.
        seed: of everything random. The global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = MultiHeadTargetAttention(width, num_heads=heads, backend="cpu")
        target, upstream = torch.randn(batch, candidates, width), short(torch.randn(batch, candidates, width))
        lengths, mask, _, _ = pad_right(torch.randint(1, length + 1, (batch,)), length)
        history = torch.randn(batch, length, width) * mask.unsqueeze(-1)
    target.requires_grad_()
    history.requires_grad_()
    arguments = (target, history, mask.bool())
    units: dict[str, nn.Module] = {"projected": Projected(layer), "absorbed": Absorbed(layer)}
    if candidates > 1:
        units["broadcast"] = Broadcast(layer)
    graphs = {f"{name}+compile": torch.compile(unit, dynamic=False) for name, unit in units.items()}
    forms = {name: partial(unit, *arguments) for name, unit in (units | graphs).items()}
    forms["fused"] = lambda: layer(target, history, lengths=lengths)
    controls = {}
    if candidates == 1:
        forms[CONTROL] = lambda: masked_mean(history, mask).unsqueeze(1)
        controls[CONTROL] = exact_control(
            lambda x: masked_mean(x, mask.double()).unsqueeze(1), "history", history, upstream
        )
    return Case(
        f"L={length} B={batch} M={candidates} D={width} heads={heads}",
        forms,
        {"target": target, "history": history, **dict(layer.named_parameters())},
        upstream,
        partial(_exact, layer, target, history, mask, upstream),
        (forms["projected"], forms["absorbed"]),
        int(lengths.sum()),
        (lengths, mask, arguments[2]),
        controls=controls,
    )


def _exact(
    layer: MultiHeadTargetAttention, target: Tensor, history: Tensor, mask: Tensor, upstream: Tensor
) -> dict[str, Tensor]:
    exact = Projected(copy.deepcopy(layer).double())
    exact.zero_grad()
    wide = {"target": target.detach().double(), "history": history.detach().double()}
    for leaf in wide.values():
        leaf.requires_grad_()
    leaves = {**wide, **dict(exact.layer.named_parameters())}
    return exact_answer(lambda: exact(wide["target"], wide["history"], mask.bool()), leaves, upstream)
