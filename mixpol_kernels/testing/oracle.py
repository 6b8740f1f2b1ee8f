"""The formulas of the docstrings as loops over users and candidates: slow, float64, independent of the ops.

The references are checked against these; everything else is checked against the references.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mixpol_kernels.testing.inputs import Case


def outputs(case: Case) -> tuple[Tensor, Tensor | None]:
    """The op's output in ragged form, and the attention weights [N, M] where the op has them; float64."""
    floats = {name: t.double() for name, t in case.floats.items()}
    if case.config.op == "polarity_embedding":
        out = floats["item_table"][case.ids] + floats["polarity_table"][case.polarity]
        return (out + floats["extra_table"][case.extra] if case.config.has_extra else out), None
    if not case.config.has_unit:
        rows = [_fused(case, floats, b, floats["target"][b]) for b in range(len(case.counts))]
        return torch.cat([floats["tokens"][:0], *rows]), None
    target = floats["target"]
    wide = target if target.dim() == 3 else target[:, None]
    pooled = torch.zeros_like(wide)
    weights = torch.zeros(sum(case.counts), wide.shape[1], dtype=torch.float64)
    for b, (start, stop) in enumerate(_rows(case)):
        for m in range(wide.shape[1]):
            tokens = _fused(case, floats, b, wide[b, m])
            scores = _scores(case, floats, tokens, wide[b, m], b * wide.shape[1] + m)[0]
            scores = case.config.scale * scores
            if case.config.normalize == "sigmoid":
                scores = 1 / (1 + torch.exp(-scores))
            if case.config.normalize == "softmax" and len(scores):
                scores = (scores - scores.max()).exp()
                scores = scores / scores.sum()
            weights[start:stop, m] = scores
            pooled[b, m] = (scores[:, None] * tokens).sum(0)
    return pooled.reshape(target.shape), weights


def kink_distance(case: Case) -> float:
    """Distance of the closest rectified hidden unit from 0, where its gradient jumps; inf if there is none."""
    if not case.config.has_unit or case.config.activation not in ("relu", "prelu", "leaky_relu"):
        return torch.inf
    floats = {name: t.double() for name, t in case.floats.items()}
    target = floats["target"]
    wide = target if target.dim() == 3 else target[:, None]
    closest = torch.inf
    for b in range(len(case.counts)):
        for m in range(wide.shape[1]):
            tokens = _fused(case, floats, b, wide[b, m])
            closest = min(closest, _scores(case, floats, tokens, wide[b, m], b * wide.shape[1] + m)[1])
    return closest


def _rows(case: Case) -> list[tuple[int, int]]:
    ends = torch.tensor(case.counts, dtype=torch.int64).cumsum(0).tolist()
    return [(end - count, end) for end, count in zip(ends, case.counts, strict=True)]


def _fused(case: Case, floats: dict[str, Tensor], user: int, target: Tensor) -> Tensor:
    """Tokens of one user after the fusion, [n, D]."""
    start, stop = _rows(case)[user]
    x = floats["tokens"][start:stop] if "tokens" in floats else floats["item_table"][case.ids[start:stop]]
    if not case.config.has_polarity:
        return x
    s = case.polarity[start:stop]
    fused = x + floats["polarity_table"][s]
    if case.config.has_gate:
        gate_weight, gate_bias, target_weight = (floats[f"gate[{i}]"] for i in range(3))
        inputs = x * target
        if case.config.gate_inputs == "full":
            inputs = torch.cat([x, target.expand_as(x), inputs], 1)
        gate = 1 / (1 + torch.exp(-(inputs @ gate_weight.T + gate_bias)))
        fused = fused + case.sign.double()[s, None] * gate * (target_weight @ target)
    if case.config.has_extra:
        fused = fused + floats["extra_table"][case.extra[start:stop]]
    return fused


def _scores(case: Case, floats: dict[str, Tensor], x: Tensor, target: Tensor, row: int) -> tuple[Tensor, float]:
    """Raw scores [n] of one user's tokens for target `row`, and the distance of the closest unit from 0."""
    t = target.expand_as(x)
    inputs = {"t": t, "x": x, "t-x": t - x, "t*x": t * x}
    h = torch.cat([inputs[block] for block in case.config.blocks], 1)
    closest = torch.inf
    layers = len(case.config.hidden)
    for i in range(layers):
        h = h @ floats[f"weights[{i}]"].T + floats[f"biases[{i}]"]
        if h.numel():
            closest = min(closest, float(h.abs().min()))
        if case.config.activation == "sigmoid":
            h = 1 / (1 + torch.exp(-h))
        elif case.config.activation == "silu":
            h = h / (1 + torch.exp(-h))
        elif case.config.activation == "tanh":
            h = torch.tanh(h)
        elif case.config.activation == "gelu":
            h = h * (1 + torch.erf(h / 2**0.5)) / 2
        elif case.config.activation == "dice":
            alpha, scale, shift = floats[f"slopes[{i}]"]
            p = 1 / (1 + torch.exp(-(scale * h + shift)))
            h = p * h + (1 - p) * alpha * h
        elif case.config.activation == "dice_row":
            alpha, epsilon = floats[f"slopes[{i}]"]
            normal = (
                torch.stack(
                    [(row - row.mean()) / ((row.var(correction=0) * len(row) + epsilon.sum()) ** 0.5) for row in h]
                )
                if len(h)
                else h
            )
            p = 1 / (1 + torch.exp(-normal))
            h = p * h + (1 - p) * alpha * h
        elif case.config.activation == "leaky_relu":
            h = torch.where(h > 0, h, 0.01 * h)
        else:
            slope = floats[f"slopes[{i}]"] if case.config.activation == "prelu" else 0.0
            h = h.clamp(min=0) + slope * h.clamp(max=0)
        if case.config.dropout:
            h = h * _dropout(case.config.dropout, case.config.seed, row, i, *h.shape)
    return (h @ floats[f"weights[{layers}]"].T + floats[f"biases[{layers}]"])[:, 0], closest


def _dropout(p: float, seed: int, row: int, layer: int, tokens: int, units: int) -> Tensor:
    """Factors 0 or 1 / (1 - p), [tokens, units], by the rules of csrc/math/dropout.h."""
    call = _mix(_mix(seed ^ 0x9E3779B9) ^ (seed >> 32))
    keys = [_mix(_mix(_mix(call ^ row) ^ position) ^ layer) for position in range(tokens)]
    bits = [[_mix(key + unit * 0x9E3779B9) >> 8 for unit in range(units)] for key in keys]
    dropped = [[value < int(p * 2**24) for value in line] for line in bits]
    return (~torch.tensor(dropped, dtype=torch.bool).reshape(tokens, units)).double() / (1 - p)


def _mix(x: int) -> int:
    x &= 2**32 - 1
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16
