"""The Triton kernels of `dot_target_attention`: softmax(q · x) over each user's tokens x, for several query rows.

The query rows of a user come in `groups` of `rows`: one group of all candidates' heads that see whole tokens, or one
group a head whose rows, one a candidate, see the part of W columns that belongs to the head. Row r of group g is row
r * groups + g of the user. The forward has one program per user, group and block of ROWS rows, which reads the tokens
once, with an online softmax (arXiv 1805.02867). The backward has one per user and group; it computes the weights
again from the two numbers a row that the forward kept, and adds to no memory that another program writes: no atomics.

LAYOUT: see `shared`. W: columns of a row, BW: their block. PRECISION: of float32 products, "ieee" or "tf32x3".
"""

from __future__ import annotations

import triton
import triton.language as tl

from mixpol_kernels.ops.triton.parts import stretch
from mixpol_kernels.ops.triton.shared import kept_tokens


@triton.jit
def weights_of(score, keep, shift, denominator):
    """softmax from what the forward kept, 0 at pads."""
    return tl.where(keep[:, None], tl.exp(score - shift[None, :]) / denominator[None, :], 0.0)


@triton.jit
def forward_kernel(
    queries, history, offsets, lengths, mask, pooled, stats,
    groups, rows, length, user_units, row_units,
    W: tl.constexpr, BW: tl.constexpr, ROWS: tl.constexpr, LAYOUT: tl.constexpr, PARTS: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A block of rows: pooled [ROWS, W], and the largest score and Σ exp(s - largest) of each."""
    program = tl.program_id(0)  # divided in 32 bits: in 64 it is a call
    blocks = tl.cdiv(rows, ROWS)
    group = program // blocks % groups
    user = (program // blocks // groups).to(tl.int64)
    r = program % blocks * ROWS + tl.arange(0, ROWS)
    first, kept, _ = stretch(offsets, lengths, user, length, LAYOUT, PARTS)
    w = tl.arange(0, BW)
    tile = tl.arange(0, TILE)
    row_stride = row_units * ALIGN
    base = history + (first * row_stride if LAYOUT == 0 or PARTS else user * user_units * ALIGN) + group * W
    row = user * groups * rows + r * groups + group
    real = r < rows
    square = real[:, None] & (w < W)[None, :]
    q = tl.load(queries + row[:, None] * W + w[None, :], mask=square, other=0.0)

    total = tl.zeros([ROWS, BW], tl.float32)
    highest = tl.full([ROWS], -float("inf"), tl.float32)
    denominator = tl.zeros([ROWS], tl.float32)
    for l0 in range(0, kept, TILE):
        l = (l0 + tile).to(tl.int64)
        keep = kept_tokens(mask, first, l, kept, LAYOUT)
        x = tl.load(base + l[:, None] * row_stride + w[None, :], mask=keep[:, None] & (w < W)[None, :], other=0.0)
        score = tl.dot(x, tl.trans(q), input_precision=PRECISION)
        now = tl.maximum(highest, tl.max(tl.where(keep[:, None], score, -float("inf")), 0))
        shift = tl.where(now == -float("inf"), 0.0, now)  # nothing kept so far
        weight = tl.where(keep[:, None], tl.exp(score - shift[None, :]), 0.0)
        factor = tl.exp(highest - shift)
        denominator = denominator * factor + tl.sum(weight, 0)
        total = total * factor[:, None]
        total = tl.dot(tl.trans(weight.to(x.dtype)), x, total, input_precision=PRECISION)
        highest = now
    some = tl.zeros([ROWS], tl.int32) + kept > 0
    if LAYOUT == 2:  # every position may be a pad
        some = highest != -float("inf")
    total = tl.where(some[:, None], total / denominator[:, None], 0.0)
    tl.store(pooled + row[:, None] * W + w[None, :], total.to(pooled.dtype.element_ty), mask=square)
    tl.store(stats + row * 2, highest, mask=real)
    tl.store(stats + row * 2 + 1, denominator, mask=real)


@triton.jit
def kept_numbers(stats, row, real):
    """Shift and denominator of `weights_of`, kept by the forward for each row."""
    shift = tl.load(stats + row * 2, mask=real, other=0.0)
    shift = tl.where(shift == -float("inf"), 0.0, shift)
    return shift, tl.load(stats + row * 2 + 1, mask=real, other=1.0)


@triton.jit
def weights_kernel(
    queries, history, offsets, lengths, mask, stats, attention,
    groups, rows, length, user_units, row_units,
    W: tl.constexpr, BW: tl.constexpr, ROWS: tl.constexpr, LAYOUT: tl.constexpr, PARTS: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The weights of a block of rows at every position."""
    program = tl.program_id(0)  # divided in 32 bits: in 64 it is a call
    blocks = tl.cdiv(rows, ROWS)
    group = program // blocks % groups
    user = (program // blocks // groups).to(tl.int64)
    r = program % blocks * ROWS + tl.arange(0, ROWS)
    first, kept, positions = stretch(offsets, lengths, user, length, LAYOUT, PARTS)
    w = tl.arange(0, BW)
    tile = tl.arange(0, TILE)
    row_stride = row_units * ALIGN
    base = history + (first * row_stride if LAYOUT == 0 or PARTS else user * user_units * ALIGN) + group * W
    row = user * groups * rows + r * groups + group
    real = r < rows
    q = tl.load(queries + row[:, None] * W + w[None, :], mask=real[:, None] & (w < W)[None, :], other=0.0)
    shift, denominator = kept_numbers(stats, row, real)
    for l0 in range(0, positions, TILE):
        l = (l0 + tile).to(tl.int64)
        keep = kept_tokens(mask, first, l, kept, LAYOUT)
        x = tl.load(base + l[:, None] * row_stride + w[None, :], mask=keep[:, None] & (w < W)[None, :], other=0.0)
        score = tl.dot(x, tl.trans(q), input_precision=PRECISION)
        weight = weights_of(score, keep, shift, denominator)
        at = attention + (first + l)[:, None] * (groups * rows) + (r * groups + group)[None, :]
        inside = (l < positions)[:, None] & real[None, :]
        tl.store(at, weight.to(attention.dtype.element_ty), mask=inside)


@triton.jit
def mean_of(
    base, mask, q, up, shift, denominator, first, kept, row_stride,
    W: tl.constexpr, BW: tl.constexpr, ROWS: tl.constexpr, LAYOUT: tl.constexpr,
    PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Σ w · dw of a block of rows.

    Not the pooled vector times its gradient, which is the same but for rounding: where one weight is nearly 1, dw minus
    this must cancel.
    """
    w = tl.arange(0, BW)
    tile = tl.arange(0, TILE)
    mean = tl.zeros([ROWS], tl.float32)
    for l0 in range(0, kept, TILE):
        l = (l0 + tile).to(tl.int64)
        keep = kept_tokens(mask, first, l, kept, LAYOUT)
        x = tl.load(base + l[:, None] * row_stride + w[None, :], mask=keep[:, None] & (w < W)[None, :], other=0.0)
        score = tl.dot(x, tl.trans(q), input_precision=PRECISION)
        weight = weights_of(score, keep, shift, denominator)
        mean += tl.sum(weight * tl.dot(x, tl.trans(up), input_precision=PRECISION), 0)
    return mean


@triton.jit
def mean_kernel(
    grad_pooled, stats, queries, history, offsets, lengths, mask, means, groups, rows, row_units,
    W: tl.constexpr, BW: tl.constexpr, ROWS: tl.constexpr, LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One part and block of rows: its terms of Σ w · dw."""
    program = tl.program_id(0)  # divided in 32 bits: in 64 it is a call
    blocks = tl.cdiv(rows, ROWS)
    group = program // blocks % groups
    slot = (program // blocks // groups).to(tl.int64)
    r = program % blocks * ROWS + tl.arange(0, ROWS)
    first, kept, _ = stretch(offsets, lengths, slot, 0, LAYOUT, True)
    w = tl.arange(0, BW)
    row_stride = row_units * ALIGN
    row = slot * groups * rows + r * groups + group
    real = r < rows
    square = real[:, None] & (w < W)[None, :]
    q = tl.load(queries + row[:, None] * W + w[None, :], mask=square, other=0.0)
    up = tl.load(grad_pooled + row[:, None] * W + w[None, :], mask=square, other=0.0)
    shift, denominator = kept_numbers(stats, row, real)
    mean = mean_of(
        history + first * row_stride + group * W, mask, q, up, shift, denominator, first, kept, row_stride,
        W, BW, ROWS, LAYOUT, PRECISION, TILE,
    )  # fmt: skip
    tl.store(means + row, mean, mask=real)


@triton.jit
def backward_kernel(
    grad_pooled, stats, queries, history, offsets, lengths, mask, means, grad_queries, grad_history,
    groups, rows, length, user_units, row_units,
    W: tl.constexpr, BW: tl.constexpr, ROWS: tl.constexpr, LAYOUT: tl.constexpr, ADD: tl.constexpr,
    PARTS: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One user and group: gradients of its rows, and of its columns of the tokens.

    ADD: more than one block of rows, over which a token's gradient is summed, float32 in memory.
    """
    program = tl.program_id(0)  # divided in 32 bits: in 64 it is a call
    group = program % groups
    user = (program // groups).to(tl.int64)
    first, kept, positions = stretch(offsets, lengths, user, length, LAYOUT, PARTS)
    w = tl.arange(0, BW)
    tile = tl.arange(0, TILE)
    row_stride = row_units * ALIGN
    base = history + (first * row_stride if LAYOUT == 0 or PARTS else user * user_units * ALIGN) + group * W
    token_stride = W * groups
    grads = grad_history + first * token_stride + group * W
    for r0 in range(0, rows, ROWS):
        r = r0 + tl.arange(0, ROWS)
        row = user * groups * rows + r * groups + group
        real = r < rows
        square = real[:, None] & (w < W)[None, :]
        q = tl.load(queries + row[:, None] * W + w[None, :], mask=square, other=0.0)
        up = tl.load(grad_pooled + row[:, None] * W + w[None, :], mask=square, other=0.0)
        shift, denominator = kept_numbers(stats, row, real)
        if PARTS:
            mean = tl.load(means + row, mask=real, other=0.0)
        else:
            mean = mean_of(
                base, mask, q, up, shift, denominator, first, kept, row_stride,
                W, BW, ROWS, LAYOUT, PRECISION, TILE,
            )  # fmt: skip
        grad_rows = tl.zeros([ROWS, BW], tl.float32)
        for l0 in range(0, positions, TILE):
            l = (l0 + tile).to(tl.int64)
            keep = kept_tokens(mask, first, l, kept, LAYOUT)
            x = tl.load(base + l[:, None] * row_stride + w[None, :], mask=keep[:, None] & (w < W)[None, :], other=0.0)
            score = tl.dot(x, tl.trans(q), input_precision=PRECISION)
            weight = weights_of(score, keep, shift, denominator)
            signal = weight * (tl.dot(x, tl.trans(up), input_precision=PRECISION) - mean[None, :])
            signal = tl.where(keep[:, None] & real[None, :], signal, 0.0).to(x.dtype)
            grad_rows = tl.dot(tl.trans(signal), x, grad_rows, input_precision=PRECISION)
            dx = tl.dot(signal, q, input_precision=PRECISION)
            dx = tl.dot(weight.to(x.dtype), up, dx, input_precision=PRECISION)
            dx = tl.where(keep[:, None], dx, 0.0)
            at = grads + l[:, None] * token_stride + w[None, :]
            inside = (l < positions)[:, None] & (w < W)[None, :]
            if ADD:
                dx += tl.load(at, mask=inside & (r0 > 0), other=0.0)
            tl.store(at, dx.to(grad_history.dtype.element_ty), mask=inside)
        tl.store(grad_queries + row[:, None] * W + w[None, :], grad_rows.to(grad_queries.dtype.element_ty), mask=square)
        if ADD:
            tl.debug_barrier()  # the next block adds to what this one wrote
