"""Seeded inputs and exact answers for the polarity suites: one op, one shape, several forms."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixpol_kernels.nn import MixedPolarityAttention, PolarityEmbedding, PolarityFusion, TargetAttention
from mixpol_models.bench.case import CONTROL, Case, exact_answer, exact_control
from mixpol_models.bench.fbgemm_form import FBGEMM, FbgemmBags, fbgemm_installed
from mixpol_models.bench.gate import short
from mixpol_models.bench.implementations import Concat, PerTarget
from mixpol_models.bench.kinks import near_kink
from mixpol_models.bench.padding import masked_mean, pad_right
from mixpol_models.bench.polarity_forms import Composed, EagerFusion, RefactoredFusion, SumOfLookups


def embedding_case(batch: int = 256, length: int = 50, width: int = 64, items: int = 10_000, seed: int = 0) -> Case:
    """`polarity_embedding` on jagged ids, dense table gradients; with FBGEMM's form where it is installed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = PolarityEmbedding(items, width)
        tokens = int(torch.randint(1, length + 1, (batch,)).sum())
        ids, polarity = _popular(items, tokens), torch.randint(2, (tokens,))
        upstream = short(torch.randn(tokens, width))
    eager = SumOfLookups(layer)
    forms = {
        "eager": partial(eager, ids, polarity),
        "eager+compile": _compiled(eager, ids, polarity),
        "fused": partial(_with_backend(layer, "cpu"), ids, polarity),
    }
    if fbgemm_installed():
        forms[FBGEMM] = FbgemmBags(layer, ids, polarity)
    return Case(
        f"N={tokens} D={width} V={items}",
        forms,
        dict(layer.named_parameters()),
        upstream,
        _exact(_double(layer), lambda exact: exact(ids, polarity), {}, upstream),
        (forms["eager"], partial(_with_backend(layer, "reference"), ids, polarity)),
        tokens,
        (ids, polarity),
    )


def fusion_case(batch: int = 256, length: int = 50, width: int = 64, seed: int = 0) -> Case:
    """`polarity_fusion` with "tapf" on padded tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = PolarityFusion(width, "tapf")
        _wake(layer)
        lengths, mask, _, _ = pad_right(torch.randint(1, length + 1, (batch,)), length)
        kept = mask.unsqueeze(-1)
        target = torch.randn(batch, width)
        tokens = torch.randn(batch, length, width) * kept
        polarity = torch.randint(2, (batch, length))
        upstream = short(torch.randn(batch, length, width)) * kept
    inputs = {"target": target.requires_grad_(), "tokens": tokens.requires_grad_()}
    eager, refactored = EagerFusion(layer), RefactoredFusion(layer)
    arguments = (target, tokens, polarity)

    def call(unit: nn.Module, target: Tensor, tokens: Tensor) -> Tensor:
        fused: Tensor = unit(target, tokens, polarity, lengths=lengths)
        return fused

    forms = {
        "eager": partial(eager, *arguments),
        "eager+compile": _compiled(eager, *arguments),
        "refactored": partial(refactored, *arguments),
        "refactored+compile": _compiled(refactored, *arguments),
        "fused": partial(call, _with_backend(layer, "cpu"), target, tokens),
    }
    return Case(
        f"L={length} B={batch} D={width} tapf",
        forms,
        {**inputs, **dict(layer.named_parameters())},
        upstream,
        _exact(_double(layer), call, inputs, upstream),
        (forms["eager"], partial(call, _with_backend(layer, "reference"), target, tokens)),
        int(lengths.sum()),
        (polarity, lengths),
        {"output": kept},
    )


def attention_case(
    batch: int = 256,
    length: int = 50,
    width: int = 64,
    hidden: int = 64,
    items: int = 10_000,
    activation: str = "relu",
    fusion: str = "tapf",
    gate_inputs: str = "product",
    num_extra: int = 0,
    seed: int = 0,
) -> Case:
    """`mixed_polarity_attention` from padded ids to pooled, dense gradient of the item table."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = MixedPolarityAttention(
            items, width, [hidden], fusion, activation, gate_inputs=gate_inputs, num_extra=num_extra
        )
        if fusion == "tapf":
            _wake(layer.fusion)
        # Rows as long as the targets are, so that both halves of the score matter.
        nn.init.normal_(layer.item_embedding.weight)
        padding = pad_right(torch.randint(1, length + 1, (batch,)), length)
        lengths = padding.lengths
        target, upstream = torch.randn(batch, width), short(torch.randn(batch, width))
        polarity = torch.randint(2, (batch, length))
        extra_ids = torch.randint(num_extra, (batch, length)) if num_extra else None
        exact = _double(layer)
        ids = _settled_ids(exact, target, polarity, extra_ids, padding.mask, items)
    eager, refactored = Composed(layer, EagerFusion, Concat), Composed(layer, RefactoredFusion, PerTarget)
    inputs = {"target": target.requires_grad_()}
    arguments = (target, ids, polarity, padding, extra_ids)

    def call(unit: nn.Module, target: Tensor) -> Tensor:
        pooled: Tensor = unit(target, ids, polarity, lengths=lengths, extra_ids=extra_ids)
        return pooled

    forms = {
        "eager": partial(eager, *arguments),
        "eager+compile": _compiled(eager, *arguments),
        "refactored": partial(refactored, *arguments),
        "refactored+compile": _compiled(refactored, *arguments),
        "fused": partial(call, _with_backend(layer, "cpu"), target),
        CONTROL: lambda: mean(table),
    }

    def mean(table: Tensor) -> Tensor:
        return masked_mean(F.embedding(ids, table), padding.mask.to(table.dtype))

    table = layer.item_embedding.weight
    return Case(
        f"L={length} B={batch} D={width} H={hidden} V={items} {fusion} {activation}"
        + (" full gate" if gate_inputs == "full" else "")
        + (f" R={num_extra}" if num_extra else ""),
        forms,
        {**inputs, **dict(layer.named_parameters())},
        upstream,
        _exact(exact, call, inputs, upstream),
        (forms["eager"], partial(call, _with_backend(layer, "reference"), target)),
        int(lengths.sum()),
        (ids, polarity, *padding),
        controls={CONTROL: exact_control(mean, "item_embedding.weight", table, upstream)},
    )


def _popular(items: int, *shape: int) -> Tensor:
    """Ids whose popularity falls steeply, as in a real log: the gradients of a few rows are long sums."""
    return (torch.rand(*shape).pow(3) * items).long()


def _settled_ids(
    layer: MixedPolarityAttention,
    target: Tensor,
    polarity: Tensor,
    extra_ids: Tensor | None,
    mask: Tensor,
    items: int,
) -> Tensor:
    """Ids [B, L] with no kept token near a kink of the activation unit; 0 at pads."""
    ids = torch.zeros_like(polarity)
    user, position = mask.nonzero(as_tuple=True)
    wide = target.double()
    while user.numel():
        ids[user, position] = _popular(items, user.numel())
        with torch.no_grad():
            tokens = layer.fusion(wide, layer.item_embedding(ids), polarity, extra_ids=extra_ids)[user, position]
        again = near_kink(layer.attention, wide[user], tokens)
        user, position = user[again], position[again]
    return ids


def _wake(fusion: PolarityFusion) -> None:
    """W_t starts at zero; a form that forgot it would pass."""
    assert fusion.target_projection is not None
    nn.init.xavier_uniform_(fusion.target_projection.weight)


def _compiled(unit: nn.Module, *arguments: Tensor) -> Callable[[], Tensor]:
    compiled = torch.compile(unit, dynamic=False)
    return lambda: compiled(*arguments)


def _with_backend(layer: nn.Module, backend: str) -> nn.Module:
    """A twin that shares every parameter and runs on `backend`."""
    twin = copy.copy(layer)
    twin.backend = backend
    return twin


def _double(layer: nn.Module) -> nn.Module:
    """A float64 copy, with all of its parts on the reference."""
    exact = copy.deepcopy(layer).double()
    for module in exact.modules():
        if isinstance(module, (MixedPolarityAttention, PolarityEmbedding, PolarityFusion, TargetAttention)):
            module.backend = "reference"
    return exact


def _exact(
    exact: nn.Module, call: Callable[..., Tensor], inputs: Mapping[str, Tensor], upstream: Tensor
) -> Callable[[], dict[str, Tensor]]:
    """The answer of `call(exact, *inputs)`, with the inputs in float64 too."""
    wide = {name: tensor.detach().double().requires_grad_() for name, tensor in inputs.items()}
    leaves = {**wide, **dict(exact.named_parameters())}
    return partial(exact_answer, partial(call, exact, *wide.values()), leaves, upstream)
