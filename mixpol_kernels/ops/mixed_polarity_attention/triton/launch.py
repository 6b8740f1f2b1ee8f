"""The op as two launches a direction: look-up and fusion write the tokens, the activation unit reads them.

Between forward and backward no token is kept: the backward fuses them again. A gate depends on the candidate, so with
one every candidate has a pass of its own over one buffer of tokens; without, all candidates share the tokens.
benchmarks/GPU_MODEL.md counts the bytes beside those of one kernel that would do both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixpol_kernels.ops.polarity_fusion.triton import launch as fusion
from mixpol_kernels.ops.target_attention.autograd import with_candidates
from mixpol_kernels.ops.target_attention.triton import launch as attention_unit


def forward(
    target: Tensor,
    item_ids: Tensor,
    polarity: Tensor | None,
    item_table: Tensor,
    polarity_table: Tensor | None,
    sign: Tensor,
    gate: Sequence[Tensor] | None,
    extra_ids: Tensor | None,
    extra_table: Tensor | None,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slopes: Sequence[Tensor] | None,
    activation: int,
    normalize: int,
    dropout: float,
    seed: Tensor | None,
    save_attention: bool,
    save_bits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`mixpol::mixed_polarity_attention_fwd`.

    Raises:
        ValueError: sizes or options that the kernels do not take.
    """
    pooled, attention = [], []
    for targets in _passes(target, gate):
        tokens = fusion.forward(
            _first(targets), item_table, polarity, polarity_table, sign, gate, extra_ids, extra_table,
            offsets, lengths, mask, item_ids,
        )  # fmt: skip
        result = attention_unit.forward(
            targets, tokens, offsets, lengths, mask, weights, biases, slopes, activation, normalize, dropout, seed,
            save_attention, save_bits,
        )  # fmt: skip
        pooled.append(result[0])
        attention.append(result[1])
    together = torch.cat(attention, -1) if len(attention) > 1 and save_attention else attention[0]
    whole = torch.cat(pooled, 1) if len(pooled) > 1 else pooled[0]
    return whole.view(target.shape), together, target.new_empty((0,), dtype=torch.uint8)


def backward(
    grad_pooled: Tensor,
    grad_attention: Tensor | None,
    attention: Tensor,
    bits: Tensor,
    target: Tensor,
    item_ids: Tensor,
    polarity: Tensor | None,
    item_table: Tensor,
    polarity_table: Tensor | None,
    sign: Tensor,
    gate: Sequence[Tensor],
    extra_ids: Tensor | None,
    extra_table: Tensor | None,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slopes: Sequence[Tensor],
    activation: int,
    normalize: int,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """`mixpol::mixed_polarity_attention_bwd`.

    Raises:
        ValueError: what the forward did not save, or a gradient of another shape or dtype.
    """
    if grad_pooled.shape != target.shape or grad_pooled.dtype != target.dtype:
        raise ValueError(
            f"grad_pooled is {grad_pooled.dtype} {list(grad_pooled.shape)}; expected {target.dtype} "
            f"{list(target.shape)}, as target"
        )
    passes = _passes(target, gate)
    several = len(passes) > 1
    inputs = (polarity, polarity_table, sign, gate, extra_ids, extra_table, offsets, lengths, mask, item_ids)
    grad_targets: list[Tensor] = []
    sums: list[Tensor] = []
    for i, targets in enumerate(passes):
        columns = slice(i, i + 1) if several else slice(None)
        tokens = fusion.forward(_first(targets), item_table, *inputs)
        grad_unit, grad_tokens, parameters = attention_unit.backward(
            with_candidates(grad_pooled)[:, columns], None if grad_attention is None else grad_attention[..., columns],
            attention[..., columns], bits, targets, tokens, offsets, lengths, mask, weights, biases, slopes,
            activation, normalize, dropout, seed,
        )  # fmt: skip
        if polarity is None:
            found = [grad_tokens.float(), target.new_empty((0,)), target.new_empty((0,))]
        else:
            grad_gated, *found, grad_gate = fusion.backward(grad_tokens, _first(targets), item_table, *inputs)
            found += grad_gate
            if gate:
                grad_unit = grad_unit + grad_gated[:, None]
        grad_targets.append(grad_unit)
        terms = [*found, *parameters]
        sums = [a + b for a, b in zip(sums, terms, strict=True)] if sums else terms
    grad_target = torch.cat(grad_targets, 1) if several else grad_targets[0]
    gates = 3 + len(gate)
    return grad_target.view(target.shape), sums[0], sums[1], sums[2], sums[3:gates], sums[gates:]


def _passes(target: Tensor, gate: Sequence[Tensor] | None) -> list[Tensor]:
    """The targets [B, m, D] whose history has the same fused tokens."""
    wide = with_candidates(target)
    return list(wide.split(1, 1)) if gate and wide.shape[1] > 1 else [wide]


def _first(targets: Tensor) -> Tensor:
    """[B, D] for the fusion, which reads it only with a gate."""
    return targets[:, 0] if targets.shape[1] else targets.new_zeros(targets.shape[0], targets.shape[2])
