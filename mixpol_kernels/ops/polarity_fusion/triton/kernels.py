"""The Triton kernels of `polarity_fusion`: x' = x + P[s] + E[e] + sign_s · σ(x · G(t) + c(t)) · (W_t t).

One program per user in the forward; in the backward a fixed number of programs that take users in turn, each with a
slab of sums. G(t) = W_xᵀ + diag(t) W_pᵀ [D, D] on chip, c(t) = W_q t + b_g, for the gate inputs [x ; t ; x t], of which
"product" has the last only. Ids outside their tables are clamped and reported: a kernel cannot raise.

GATE: -1 nothing is added, 0 no gate ("bias"), 1 product, 2 full. EXTRA: whether there is an extra table. ITEMS: tokens
are rows of a table [table_rows, D] by the ids in `items`. LAYOUT: see `shared`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mixpol_kernels.ops.triton.ids import table_row, table_row_again
from mixpol_kernels.ops.triton.shared import add_to, extent, kept_tokens, sigmoid, vector


@triton.jit
def gate_table(weight, bias, t, k, j, D: tl.constexpr, GATE: tl.constexpr):
    """G(t) [k, j] and c(t) [j]."""
    WIDE: tl.constexpr = 3 * D if GATE == 2 else D
    inside = (k < D)[:, None] & (j < D)[None, :]
    at = weight + j[None, :] * WIDE + k[:, None]
    constant = vector(bias, j, D)
    if GATE == 2:
        w_q = tl.load(at + D, mask=inside, other=0.0).to(tl.float32)
        constant += tl.sum(w_q * t[:, None], 0)
        table = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        table += tl.load(at + 2 * D, mask=inside, other=0.0).to(tl.float32) * t[:, None]
    else:
        table = tl.load(at, mask=inside, other=0.0).to(tl.float32) * t[:, None]
    return table, constant


@triton.jit
def pull(weight, t, k, j, D: tl.constexpr):
    """W_t t, [j]."""
    inside = (k < D)[:, None] & (j < D)[None, :]
    return tl.sum(tl.load(weight + j[None, :] * D + k[:, None], mask=inside, other=0.0).to(tl.float32) * t[:, None], 0)


@triton.jit
def forward_kernel(
    target, tokens, items, polarity, polarity_table, sign, gate_weight, gate_bias, target_weight, extra_ids,
    extra_table, offsets, lengths, mask, fused, reports, length, user_units, row_units, table_rows, polarities, extras,
    D: tl.constexpr, BD: tl.constexpr, GATE: tl.constexpr, EXTRA: tl.constexpr, ITEMS: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The tokens of one user, fused; pads are zeros."""
    user = tl.program_id(0).to(tl.int64)
    first, kept, positions = extent(offsets, lengths, user, length, LAYOUT)
    d = tl.arange(0, BD)
    k = tl.arange(0, BD)
    tile = tl.arange(0, TILE)
    row_stride = row_units * ALIGN
    base = tokens
    if not ITEMS:
        base += first * row_stride if LAYOUT == 0 else user * user_units * ALIGN
    out = fused + first * D
    if GATE > 0:
        t = vector(target + user * D, k, D)
        g, c = gate_table(gate_weight, gate_bias, t, k, d, D, GATE)
        g = g.to(tokens.dtype.element_ty)
        v = pull(target_weight, t, k, d, D)
    for l0 in range(0, positions, TILE):
        l = (l0 + tile).to(tl.int64)
        keep = kept_tokens(mask, first, l, kept, LAYOUT)
        inside = keep[:, None] & (d < D)[None, :]
        token = l
        if ITEMS:
            token = table_row(items, first + l, keep, table_rows, reports, 1)
        x = tl.load(base + token[:, None] * row_stride + d[None, :], mask=inside, other=0.0)
        y = x.to(tl.float32)
        if GATE >= 0:
            row = table_row(polarity, first + l, keep, polarities, reports, 2)
            y += tl.load(polarity_table + row[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        if GATE > 0:
            gate = sigmoid(tl.dot(x, g, input_precision=PRECISION) + c[None, :])
            s = tl.load(sign + row, mask=keep, other=0.0).to(tl.float32)
            y += s[:, None] * gate * v[None, :]
        if EXTRA:
            other = table_row(extra_ids, first + l, keep, extras, reports, 3)
            y += tl.load(extra_table + other[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        y = tl.where(keep[:, None], y, 0.0)
        inside = (l < positions)[:, None] & (d < D)[None, :]
        tl.store(out + l[:, None] * D + d[None, :], y.to(fused.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    grad_fused, target, tokens, items, polarity, sign, gate_weight, gate_bias, target_weight, extra_ids,
    offsets, lengths, mask, grad_target, grad_tokens, slabs,
    users, length, user_units, row_units, table_rows, polarities, extras, slab_stride,
    D: tl.constexpr, BD: tl.constexpr, GATE: tl.constexpr, EXTRA: tl.constexpr, ITEMS: tl.constexpr,
    LAYOUT: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Users p, p + P, ... of program p of P. A slab holds the sums for the polarity table [ROWS, D] and the extra table
    [ROWS, D]; with a gate for W_p, W_x and W_q [D, D] each (the last two where they exist), W_t [D, D] and b_g [D].
    `launch.slab_sizes` names the same order.
    """
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0)
    d = tl.arange(0, BD)
    k = tl.arange(0, BD)
    r = tl.arange(0, ROWS)
    tile = tl.arange(0, TILE)
    row_stride = row_units * ALIGN
    element = tokens.dtype.element_ty
    SQUARE: tl.constexpr = D * D
    WIDE: tl.constexpr = 3 * D if GATE == 2 else D
    slab = slabs + program * slab_stride
    slab_gate = slab + 2 * ROWS * D
    slab_pull = slab_gate + (3 * SQUARE if GATE == 2 else SQUARE)

    by_polarity = tl.zeros([ROWS, BD], tl.float32)
    by_extra = tl.zeros([ROWS, BD], tl.float32)
    for user in range(program, users, programs):
        first, kept, positions = extent(offsets, lengths, user, length, LAYOUT)
        base = tokens
        if not ITEMS:
            base += first * row_stride if LAYOUT == 0 else user * user_units * ALIGN
        upstream = grad_fused + first * D
        grads = grad_tokens + first * D
        if GATE > 0:
            t = vector(target + user * D, k, D)
            g, c = gate_table(gate_weight, gate_bias, t, k, d, D, GATE)
            g = g.to(element)
            v = pull(target_weight, t, k, d, D)
            outer = tl.zeros([BD, BD], tl.float32)
            signal = tl.zeros([BD], tl.float32)
            pulled = tl.zeros([BD], tl.float32)
        for l0 in range(0, positions, TILE):
            l = (l0 + tile).to(tl.int64)
            keep = kept_tokens(mask, first, l, kept, LAYOUT)
            inside = keep[:, None] & (d < D)[None, :]
            dy = tl.load(upstream + l[:, None] * D + d[None, :], mask=inside, other=0.0)
            row = table_row_again(polarity, first + l, keep, polarities)
            chosen = ((row[None, :] == r[:, None]) & keep[None, :]).to(tl.float32).to(element)
            by_polarity = tl.dot(chosen, dy, by_polarity, input_precision="ieee")
            if EXTRA:
                other = table_row_again(extra_ids, first + l, keep, extras)
                chosen = ((other[None, :] == r[:, None]) & keep[None, :]).to(tl.float32).to(element)
                by_extra = tl.dot(chosen, dy, by_extra, input_precision="ieee")
            dx = dy.to(tl.float32)
            if GATE > 0:
                token = l
                if ITEMS:
                    token = table_row_again(items, first + l, keep, table_rows)
                x = tl.load(base + token[:, None] * row_stride + d[None, :], mask=inside, other=0.0)
                gate = sigmoid(tl.dot(x, g, input_precision=PRECISION) + c[None, :])
                s = tl.load(sign + row, mask=keep, other=0.0).to(tl.float32)
                signed = s[:, None] * dx
                pulled += tl.sum(signed * gate, 0)
                z = signed * v[None, :] * gate * (1.0 - gate)
                signal += tl.sum(z, 0)
                z = z.to(element)
                outer = tl.dot(tl.trans(z), x, outer, input_precision=PRECISION)
                # Masked before it is added: otherwise the compiler sums the product on top of dy, and each of its
                # roundings is as large as dy's.
                dx += tl.where(keep[:, None], tl.dot(z, tl.trans(g), input_precision=PRECISION), 0.0)
            inside = (l < positions)[:, None] & (d < D)[None, :]
            tl.store(grads + l[:, None] * D + d[None, :], dx.to(grad_tokens.dtype.element_ty), mask=inside)
        if GATE > 0:
            square = (d < D)[:, None] & (k < D)[None, :]
            at = gate_weight + d[:, None] * WIDE + k[None, :]
            into = slab_gate + d[:, None] * D + k[None, :]
            w_t = tl.load(target_weight + d[:, None] * D + k[None, :], mask=square, other=0.0).to(tl.float32)
            dt = tl.sum(w_t * pulled[:, None], 0)
            if GATE == 2:
                w_q = tl.load(at + D, mask=square, other=0.0).to(tl.float32)
                w_p = tl.load(at + 2 * D, mask=square, other=0.0).to(tl.float32)
                dt += tl.sum(w_q * signal[:, None], 0)
                add_to(into + SQUARE, outer, square)
                add_to(into + 2 * SQUARE, signal[:, None] * t[None, :], square)
            else:
                w_p = tl.load(at, mask=square, other=0.0).to(tl.float32)
            dt += tl.sum(outer * w_p, 0)
            tl.store(grad_target + user * D + k, dt.to(grad_target.dtype.element_ty), mask=k < D)
            add_to(into, outer * t[None, :], square)
            add_to(slab_pull + d[:, None] * D + k[None, :], pulled[:, None] * t[None, :], square)
            add_to(slab_pull + SQUARE + d, signal, d < D)
            tl.debug_barrier()  # the next user adds to what this one wrote
        else:
            tl.store(grad_target + user * D + k, tl.zeros([BD], grad_target.dtype.element_ty), mask=k < D)
    table = (r < ROWS)[:, None] & (d < D)[None, :]
    tl.store(slab + r[:, None] * D + d[None, :], by_polarity, mask=table)
    if EXTRA:
        tl.store(slab + (ROWS + r)[:, None] * D + d[None, :], by_extra, mask=table)
