"""The layers in plain PyTorch with their inner modules called: for modules that are more than their parameters.

The concatenated form of a DIN activation unit, the gate of TAPF and the projections of softmax attention as the
references have them. Only kept tokens are seen by a module, so that observers, norms and hooks meet no pads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixpol_kernels.autocast import rounded
from mixpol_kernels.checks import check_float, check_range, looked_up
from mixpol_kernels.history import Layout, layout
from mixpol_kernels.ops.dot_target_attention import reference as dot_reference
from mixpol_kernels.ops.polarity_fusion import reference as fusion_reference
from mixpol_kernels.ops.target_attention._statistics.api import kept_tokens
from mixpol_kernels.ops.target_attention.reference import activate, pool, token_dropout
from mixpol_kernels.ops.unit import check_target, draw_seed, with_candidates

if TYPE_CHECKING:
    from mixpol_kernels.nn.unit import Unit

Where = Mapping[str, Tensor | None]


def target_attention(
    unit: Unit, target: Tensor, history: Tensor, where: Where, pad_to: int | None, return_weights: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """As the module of the same name computes it: target [B, D] or [B, M, D], history [B, L, D] or [N, D]."""
    target, history, place = _checked(target, history, where)
    tokens, user, kept = _kept(history.reshape(-1, history.shape[-1]), place)
    pads = None
    length = unit.padded_length(history, where, pad_to)
    if length is not None and unit.needs_statistics:
        pads = (length - kept_tokens(place, history.device)).clamp(min=0)
    scores = _scores(unit, with_candidates(target), tokens, user, pads).to(tokens.dtype) * unit.scale
    rows = tokens[:, None, :].expand(-1, scores.shape[1], -1)
    pooled, weights = pool(scores, rows, user, None, target.shape[0], unit.normalize)
    pooled = rounded(pooled.view(target.shape))
    if not return_weights:
        return pooled
    weights = rounded(_spread(weights, kept, place))
    return pooled, weights[..., 0] if target.dim() == 2 else weights


def polarity_fusion(
    fusion: Any, target: Tensor, tokens: Tensor, polarity: Tensor | None, extra_ids: Tensor | None, where: Where
) -> Tensor:
    """As `PolarityFusion` computes "tapf": target [B, D], tokens and result [B, L, D] or [N, D]."""
    if target.dim() != 2:
        raise ValueError(f"target has shape {list(target.shape)}; expected [B, D], one target a user")
    if polarity is None:
        raise ValueError("polarity was None; expected the rows of the polarity table, one per history token")
    target, tokens, place = _checked(target, tokens, where, "tokens")
    x, user, kept = _kept(tokens.reshape(-1, tokens.shape[-1]), place)

    def rows_of(name: str, ids: Tensor, table: Tensor) -> Tensor:
        if ids.shape != place.token_shape:
            raise ValueError(f"{name} has shape {list(ids.shape)}; expected {list(place.token_shape)}, one per token")
        flat = ids.reshape(-1)
        flat = flat if kept is None else flat[kept]
        if not torch.compiler.is_compiling():
            check_range(name, flat, table.shape[0], None)
        return flat.long()

    rows = rows_of("polarity", polarity, fusion.polarity_table)
    extra = None
    if (extra_ids is None) != (fusion.extra_table is None):
        raise ValueError("extra_ids and extra_table: one was None; expected both or neither")
    if extra_ids is not None:
        extra = rows_of("extra_ids", extra_ids, fusion.extra_table)
    fused = fusion_reference.polarity_fusion(
        target[:, None, :], x, rows, user, None, fusion.polarity_table, None, None, extra, fusion.extra_table
    )[:, 0]
    t = target[user]
    inputs = torch.cat([x, t, x * t], dim=-1) if fusion.gate_inputs == "full" else x * t
    pull = torch.sigmoid(fusion.gate(inputs)) * fusion.target_projection(target)[user]
    fused = fused + (fusion.sign[rows][:, None] * pull).to(fused.dtype)
    return _spread(fused, kept, place).view(tokens.shape)


def multi_head(
    layer: Any, target: Tensor, history: Tensor, where: Where, return_weights: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """As `MultiHeadTargetAttention` computes it: target [B, D] or [B, M, D], history [B, L, D] or [N, D]."""
    target, history, place = _checked(target, history, where)
    tokens, user, kept = _kept(history.reshape(-1, history.shape[-1]), place)

    def heads(rows: Tensor) -> Tensor:
        row = layer.attention_dim // layer.num_heads
        return rows.to(tokens.dtype).view(*rows.shape[:-1], layer.num_heads, row)

    wide = with_candidates(target)
    queries = heads(layer.W_q(wide))
    scale = queries.shape[-1] ** -0.5 if layer.use_scale else 1.0
    keys, values = heads(layer.W_k(tokens)), heads(layer.W_v(tokens))
    attended, weights = dot_reference.attend(queries, keys, values, user, None, scale, layer.top_k)
    out: Tensor = layer.W_o(attended)
    out = out.squeeze(1) if target.dim() == 2 else out
    if not return_weights:
        return out
    weights = _spread(weights.detach(), kept, place)
    return out, weights.squeeze(-2) if target.dim() == 2 else weights


def look_up(embedding: nn.Module, ids: Tensor, where: Where) -> Tensor:
    """Rows of an embedding that has to be called, for ids [N] or [B, L]; ids at pads are not looked up."""
    batch = ids.shape[0]
    if (offsets := where.get("offsets")) is not None:
        batch = offsets.shape[0] - 1
    place = layout(ids, batch, name="item_ids", trailing=0, **_named(where))
    keep = place.keep()
    if keep is None:
        return looked_up("item_ids", embedding, ids.long())
    kept = keep.nonzero().squeeze(1)
    return _spread(looked_up("item_ids", embedding, ids.reshape(-1)[kept].long()), kept, place)


def _scores(unit: Unit, target: Tensor, tokens: Tensor, user: Tensor, pads: Tensor | None) -> Tensor:
    """Raw scores [T, M] for targets [B, M, D] of tokens [T, D]; zero tokens [B] beside them in the norms alone."""
    batch, candidates, width = target.shape
    rows, targets = tokens[:, None, :].expand(-1, candidates, width), target[user]
    seed = draw_seed() if unit.dropout else None
    drop = token_dropout(unit.dropout, seed, user, None, batch, candidates)
    if pads is not None:
        users = torch.repeat_interleave(torch.arange(batch, device=pads.device), pads)
        rows = torch.cat([rows, rows.new_zeros(len(users), candidates, width)])
        targets = torch.cat([targets, target[users]])
    parts = {"t": targets, "x": rows, "t-x": targets - rows, "t*x": targets * rows}
    h = torch.cat([parts[block] for block in unit.blocks], dim=-1)
    *hidden, output = unit.linears
    for i, linear in enumerate(hidden):
        h = linear(h)
        normal = _normalised(unit.norms[i], h) if unit.norms else h
        if i + 1 == len(hidden):
            h, normal = h[: len(user)], normal[: len(user)]
        h = _activated(unit, i, h, normal)
        h = h if drop is None else drop(h, i)
    scores: Tensor = output(h)
    return scores.squeeze(-1)


def _normalised(norm: nn.Module, h: Tensor) -> Tensor:
    """[T, M, H] by a norm over the rows; it is not asked about no rows, which have no statistics."""
    rows: Tensor = norm(h.flatten(0, 1)) if h.numel() else h
    return rows.view(h.shape)


def _activated(unit: Unit, i: int, h: Tensor, normal: Tensor) -> Tensor:
    if unit.activation == "leaky_relu":
        return F.leaky_relu(normal, unit.negative_slope)
    if unit.activation == "dice":
        p = torch.sigmoid(normal)
        return h * (p + unit.slopes[i] * (1 - p))
    slope = unit.slopes[i] if len(unit.slopes) else None
    if unit.activation == "dice_row" and slope is not None:
        alpha = slope.expand(h.shape[-1])
        slope = torch.stack([alpha, torch.full_like(alpha, unit.row_eps)])
    return activate(normal, unit.activation, slope)


def _checked(target: Tensor, history: Tensor, where: Where, name: str = "history") -> tuple[Tensor, Tensor, Layout]:
    """Inputs and layout as the public ops check them; float32 under autocast, which the modules then follow."""
    if torch._C._is_any_autocast_enabled():
        low = torch.bfloat16, torch.float16
        target, history = (t.float() if t.dtype in low else t for t in (target, history))
    check_target(target)
    check_float(target, "target", **{name: history})
    place = layout(history, target.shape[0], name=name, trailing=1, **_named(where))
    if history.shape[-1] != target.shape[-1]:
        raise ValueError(f"{name} is {history.shape[-1]} wide and target {target.shape[-1]}; expected the same D")
    return target, history, place


def _named(where: Where) -> dict[str, Any]:
    return {name: where.get(name) for name in ("offsets", "lengths", "mask")}


def _kept(tokens: Tensor, place: Layout) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens that count, their users, and their positions among all of them; None: they all count."""
    user, keep = place.assignment(tokens.device)
    if keep is None:
        return tokens, user, None
    kept = keep.nonzero().squeeze(1)
    return tokens[kept], user[kept], kept


def _spread(rows: Tensor, kept: Tensor | None, place: Layout) -> Tensor:
    """Rows of kept tokens at their places among all, with zeros between them: [..., of a row] behind the layout's."""
    if kept is not None:
        every = rows.new_zeros(place.token_shape[0] * place.token_shape[1], *rows.shape[1:])
        rows = every.index_copy(0, kept, rows)
    return rows.view(*place.token_shape, *rows.shape[1:])
