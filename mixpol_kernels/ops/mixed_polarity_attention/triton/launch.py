"""The op as two launches a direction: look-up and fusion write the tokens, the activation unit reads them.

Between forward and backward no token is kept: the backward fuses them again. A gate depends on the candidate, so with
one every candidate has tokens of its own: it counts as a user with the same history, and as many of them share a launch
as their tokens fit into MOST bytes; without a gate all candidates share the tokens. benchmarks/GPU_MODEL.md counts the
bytes beside those of one kernel that would do both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixpol_kernels.ops.polarity_fusion.triton import launch as fusion
from mixpol_kernels.ops.registry import Arguments
from mixpol_kernels.ops.target_attention.triton import launch as attention_unit
from mixpol_kernels.ops.unit import with_candidates

# Of fused tokens at a time: what a pass takes beyond inputs and results.
MOST = 64 << 20


def forward(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """`mixpol::mixed_polarity_attention_fwd`.

    Raises:
        ValueError: sizes or options that the kernels do not take.
    """
    pooled, attention = [], []
    for at in _passes(a):
        each = _Pass(a, at)
        result = attention_unit.forward(each.of_unit)
        pooled.append(each.by_candidate(result[0]))
        attention.append(each.weights_by_candidate(result[1]) if a.save_attention else result[1])
    together = torch.cat(attention, -1) if len(attention) > 1 and a.save_attention else attention[0]
    whole = torch.cat(pooled, 1) if len(pooled) > 1 else pooled[0]
    return whole.reshape(a.target.shape), together, a.target.new_empty((0,), dtype=torch.uint8)


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
    grad_targets: list[Tensor] = []
    sums: list[Tensor] = []
    for at in _passes(a):
        each = _Pass(a, at)
        grad_unit, grad_tokens, parameters = attention_unit.backward(
            each.of_unit.but(
                grad_pooled=each.as_users(with_candidates(grad_pooled)[:, at]),
                grad_attention=None if a.grad_attention is None else each.weights_as_users(a.grad_attention),
                attention=each.weights_as_users(a.attention),
            )
        )
        if a.polarity is None:
            found = [grad_tokens.float(), target.new_empty((0,)), target.new_empty((0,))]
        else:
            grad_gated, *found, grad_gate = fusion.backward(each.of_fusion.but(grad_fused=grad_tokens))
            found += grad_gate
            if a.gate:
                grad_unit = grad_unit + grad_gated[:, None]
        found[0] = each.sum_tokens(found[0])
        grad_targets.append(each.by_candidate(grad_unit))
        terms = [*found, *parameters]
        sums = [a + b for a, b in zip(sums, terms, strict=True)] if sums else terms
    grad_target = torch.cat(grad_targets, 1) if len(grad_targets) > 1 else grad_targets[0]
    gates = 3 + len(a.gate)
    return grad_target.reshape(target.shape), sums[0], sums[1], sums[2], sums[3:gates], sums[gates:]


def _passes(a: Arguments) -> list[slice]:
    """The candidates of each launch: all, or with a gate as many as MOST bytes hold the tokens of.

    With dropout, which counts targets' rows, one at a time.
    """
    candidates = with_candidates(a.target).shape[1]
    tokens = a.item_ids.numel() * a.target.shape[-1] * a.target.element_size()
    together = max(candidates, 1)
    if a.gate:
        together = 1 if a.dropout else max(1, MOST // max(tokens, 1))
    return [slice(i, i + together) for i in range(0, max(candidates, 1), together)]


class _Pass:
    """The arguments of one launch, whose candidates are users of their own where there is a gate."""

    def __init__(self, a: Arguments, at: slice) -> None:
        target = with_candidates(a.target)[:, at]
        self.users, self.copies = target.shape[0], max(target.shape[1], 1) if a.gate else 1
        self.shape, self.at = tuple(a.item_ids.shape), at
        targets = self.as_users(target)
        ids = {"item_ids": a.item_ids, "polarity": a.polarity, "extra_ids": a.extra_ids}
        layout = {"offsets": self._offsets(a.offsets), "lengths": self._again(a.lengths), "mask": self._again(a.mask)}
        self.arguments = a.but(**{name: self._again(tensor) for name, tensor in ids.items()}, **layout)
        # The fusion reads a target [B, D] only with a gate.
        first = targets[:, 0] if targets.shape[1] else targets.new_zeros(targets.shape[0], targets.shape[2])
        self.of_fusion = self.arguments.but(target=first, tokens=a.item_table, items=self.arguments.item_ids)
        rows = (with_candidates(a.target).shape[1], at.start) if a.gate else (1, 0)
        self.of_unit = self.arguments.but(target=targets, history=fusion.forward(self.of_fusion), candidate=rows)

    def _again(self, tensor: Tensor | None) -> Tensor | None:
        """Rows of the users, or of their tokens, once for each candidate."""
        if tensor is None or self.copies == 1:
            return tensor
        return tensor.repeat(self.copies, *[1] * (tensor.dim() - 1))

    def _offsets(self, offsets: Tensor | None) -> Tensor | None:
        if offsets is None or self.copies == 1:
            return offsets
        starts = torch.arange(self.copies, device=offsets.device)[:, None] * self.shape[0]
        return torch.cat([(offsets[:-1] + starts).flatten(), offsets[-1:] + starts[-1]])

    def as_users(self, rows: Tensor) -> Tensor:
        """[B, m, D] to [m B, 1, D], the first candidate of all users first."""
        return rows if self.copies == 1 else rows.transpose(0, 1).reshape(-1, 1, rows.shape[2])

    def by_candidate(self, rows: Tensor) -> Tensor:
        """Back to [B, m, D]."""
        return rows if self.copies == 1 else rows.view(self.copies, self.users, -1).transpose(0, 1)

    def weights_as_users(self, weights: Tensor) -> Tensor:
        """[*tokens, M] of all candidates to [*tokens of m users, 1]."""
        ours = weights[..., self.at]
        return ours if self.copies == 1 else ours.movedim(-1, 0).reshape(-1, *self.shape[1:], 1)

    def weights_by_candidate(self, weights: Tensor) -> Tensor:
        """[*tokens of m users, 1] to [*tokens, m]."""
        return weights if self.copies == 1 else weights.view(self.copies, *self.shape).movedim(0, -1)

    def sum_tokens(self, grads: Tensor) -> Tensor:
        """Gradients of the tokens [*tokens, D] of all copies, added in order."""
        return grads if self.copies == 1 else grads.view(self.copies, *self.shape, grads.shape[-1]).sum(0)
