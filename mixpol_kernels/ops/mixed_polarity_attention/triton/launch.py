"""The op as two launches a direction: look-up and fusion write the tokens, the activation unit reads them.

Between forward and backward no token is kept: the backward fuses them again. A gate depends on the candidate, so with
one every candidate has a pass of its own over one buffer of tokens; without, all candidates share the tokens.
benchmarks/GPU_MODEL.md counts the bytes beside those of one kernel that would do both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixpol_kernels.ops.polarity_fusion.triton import launch as fusion
from mixpol_kernels.ops.registry import Arguments
from mixpol_kernels.ops.target_attention.triton import launch as attention_unit
from mixpol_kernels.ops.unit import with_candidates


def forward(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """`mixpol::mixed_polarity_attention_fwd`.

    Raises:
        ValueError: sizes or options that the kernels do not take.
    """
    pooled, attention = [], []
    passes = _passes(a)
    for i, targets in enumerate(passes):
        tokens = fusion.forward(_of_fusion(a, targets))
        result = attention_unit.forward(a.but(target=targets, history=tokens, candidate=(len(passes), i)))
        pooled.append(result[0])
        attention.append(result[1])
    together = torch.cat(attention, -1) if len(attention) > 1 and a.save_attention else attention[0]
    whole = torch.cat(pooled, 1) if len(pooled) > 1 else pooled[0]
    return whole.view(a.target.shape), together, a.target.new_empty((0,), dtype=torch.uint8)


def backward(a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """`mixpol::mixed_polarity_attention_bwd`.

    Raises:
        ValueError: what the forward did not save, or a gradient of another shape or dtype.
    """
    target, grad_pooled = a.target, a.grad_pooled
    if grad_pooled.shape != target.shape or grad_pooled.dtype != target.dtype:
        raise ValueError(
            f"grad_pooled is {grad_pooled.dtype} {list(grad_pooled.shape)}; expected {target.dtype} "
            f"{list(target.shape)}, as target"
        )
    passes = _passes(a)
    several = len(passes) > 1
    grad_targets: list[Tensor] = []
    sums: list[Tensor] = []
    for i, targets in enumerate(passes):
        columns = slice(i, i + 1) if several else slice(None)
        of_fusion = _of_fusion(a, targets)
        of_unit = a.but(
            target=targets,
            history=fusion.forward(of_fusion),
            grad_pooled=with_candidates(grad_pooled)[:, columns],
            grad_attention=None if a.grad_attention is None else a.grad_attention[..., columns],
            attention=a.attention[..., columns],
            candidate=(len(passes), i),
        )
        grad_unit, grad_tokens, parameters = attention_unit.backward(of_unit)
        if a.polarity is None:
            found = [grad_tokens.float(), target.new_empty((0,)), target.new_empty((0,))]
        else:
            grad_gated, *found, grad_gate = fusion.backward(of_fusion.but(grad_fused=grad_tokens))
            found += grad_gate
            if a.gate:
                grad_unit = grad_unit + grad_gated[:, None]
        grad_targets.append(grad_unit)
        terms = [*found, *parameters]
        sums = [a + b for a, b in zip(sums, terms, strict=True)] if sums else terms
    grad_target = torch.cat(grad_targets, 1) if several else grad_targets[0]
    gates = 3 + len(a.gate)
    return grad_target.view(target.shape), sums[0], sums[1], sums[2], sums[3:gates], sums[gates:]


def _passes(a: Arguments) -> list[Tensor]:
    """The targets [B, m, D] whose history has the same fused tokens."""
    wide = with_candidates(a.target)
    return list(wide.split(1, 1)) if a.gate and wide.shape[1] > 1 else [wide]


def _of_fusion(a: Arguments, targets: Tensor) -> Arguments:
    """The arguments of the fusion, which reads a target [B, D] only with a gate."""
    first = targets[:, 0] if targets.shape[1] else targets.new_zeros(targets.shape[0], targets.shape[2])
    return a.but(target=first, tokens=a.item_table, items=a.item_ids)
