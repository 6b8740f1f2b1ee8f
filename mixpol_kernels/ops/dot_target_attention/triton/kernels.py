"""The Triton kernels of `dot_target_attention`: softmax(q · x) over each user's tokens x, for several query rows.

The query rows of a user come in `groups` of `rows`: one group of all candidates' heads that see whole tokens, or one
group a head whose rows, one a candidate, see the part of W columns that belongs to the head. Row r of group g is row
r * groups + g of the user. The forward has one program per user, group and block of ROWS rows, which reads the tokens
once, with an online softmax (arXiv 1805.02867). The backward has one per user and group; it computes the weights
again from the two numbers a row that the forward kept, and adds to no memory that another program writes: no atomics.

LAYOUT: see `shared`. W: columns of a row; BW: columns that a program holds and writes. Where W is more, there is a
program for each BW of them, which walks all for its dot products. PRECISION: of float32 products, "ieee" or "tf32x3".
TOP: a row attends to its `top_k` best tokens, which each kernel finds by itself (`best`), so that nothing is kept.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mixpol_kernels.ops.triton.parts import stretch
from mixpol_kernels.ops.triton.shared import kept_tokens


@triton.jit
def row_block(rows, row, w, real, W: tl.constexpr):
    return tl.load(rows + row[:, None] * W + w[None, :], mask=real[:, None] & (w < W)[None, :], other=0.0)


@triton.jit
def token_block(base, l, w, keep, row_stride, W: tl.constexpr):
    inside = keep[:, None] & (w < W)[None, :]
    return tl.load(base + l[:, None] * row_stride + w[None, :], mask=inside, other=0.0)


@triton.jit
def products(
    base, rows, row, block, l, keep, real, row_stride, W: tl.constexpr, BW: tl.constexpr, PRECISION: tl.constexpr
):
    """Tokens times rows, [tokens, rows]. `block`: the columns of the rows where BW holds them all, else not used."""
    if W <= BW:
        x = token_block(base, l, tl.arange(0, BW), keep, row_stride, W)
        found = tl.dot(x, tl.trans(block), input_precision=PRECISION)
    else:
        found = tl.zeros([l.shape[0], row.shape[0]], tl.float32)
        for w0 in range(0, W, BW):
            w = w0 + tl.arange(0, BW)
            x = token_block(base, l, w, keep, row_stride, W)
            found = tl.dot(x, tl.trans(row_block(rows, row, w, real, W)), found, input_precision=PRECISION)
    return found


@triton.jit
def key_of(score, keep):
    """A whole number that orders scores as they compare, NaN as the largest; the least of all at pads."""
    score = tl.where(score == score, tl.where(score == 0.0, 0.0, score), float("inf"))
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(keep[:, None], tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), -(2**31))


@triton.jit
def counts_from(key, low, step):
    """How many of a tile's keys are at least low + step, low + 2 step and low + 3 step, in 10 bits each."""
    found = tl.zeros(key.shape, tl.int32)
    for i in tl.static_range(3):
        found += (key >= (low + (i + 1) * step).to(tl.int32)[None, :]).to(tl.int32) << (10 * i)
    return tl.sum(found, 0)


@triton.jit
def best(
    base, queries, row, q, mask, first, kept, real, row_stride, top_k,
    W: tl.constexpr, BW: tl.constexpr, LAYOUT: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Of each row: the key of its k-th largest score, found two bits at a time, and how many equal ones are chosen.

    A history of at most k tokens is chosen whole: a key below all others. Scores of the first tile stay, those of the
    others are computed again for each two bits.
    """
    tile = tl.arange(0, TILE)
    l = tile.to(tl.int64)
    keep = kept_tokens(mask, first, l, kept, LAYOUT)
    score = products(base, queries, row, q, l, keep, real, row_stride, W, BW, PRECISION)
    nearest = key_of(score, keep)
    low = tl.full(row.shape, -(2**31), tl.int64)
    above = tl.zeros(row.shape, tl.int32)
    steps = tl.where(kept > top_k, 16, 0)
    for i in range(steps):
        step = tl.full([1], 1, tl.int64) << (30 - 2 * i)
        packed = counts_from(nearest, low, step)
        n1 = packed & 1023
        n2 = packed >> 10 & 1023
        n3 = packed >> 20
        for l0 in range(TILE, kept, TILE):
            l = (l0 + tile).to(tl.int64)
            keep = kept_tokens(mask, first, l, kept, LAYOUT)
            score = products(base, queries, row, q, l, keep, real, row_stride, W, BW, PRECISION)
            packed = counts_from(key_of(score, keep), low, step)
            n1 += packed & 1023
            n2 += packed >> 10 & 1023
            n3 += packed >> 20
        above = tl.where(n3 >= top_k, above, tl.where(n2 >= top_k, n3, tl.where(n1 >= top_k, n2, n1)))
        digit = (n1 >= top_k).to(tl.int64) + (n2 >= top_k).to(tl.int64) + (n3 >= top_k).to(tl.int64)
        low += digit * step
    last = low.to(tl.int32)
    return last, tl.where(last == -(2**31), 0, top_k - above)


@triton.jit
def chosen(score, keep, last, ties, seen):
    """Which tokens of a tile are among the best by what `best` found, of equal scores the earlier; `seen` so far."""
    key = key_of(score, keep)
    equal = (keep[:, None] & (key == last[None, :])).to(tl.int32)
    rank = seen[None, :] + tl.cumsum(equal, 0)
    on = keep[:, None] & ((key > last[None, :]) | ((equal != 0) & (rank <= ties[None, :])))
    return on, seen + tl.sum(equal, 0)


@triton.jit
def weights_of(score, on, shift, denominator):
    """softmax from what the forward kept, 0 where a row does not attend."""
    return tl.where(on, tl.exp(score - shift[None, :]) / denominator[None, :], 0.0)


@triton.jit
def forward_kernel(
    queries, history, offsets, lengths, mask, pooled, stats,
    groups, rows, length, user_units, row_units, top_k,
    W: tl.constexpr, BW: tl.constexpr, ROWS: tl.constexpr, LAYOUT: tl.constexpr, PARTS: tl.constexpr,
    TOP: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A block of rows: pooled [ROWS, W], and the largest score and Σ exp(s - largest) of each."""
    SPREAD: tl.constexpr = (W + BW - 1) // BW
    program = tl.program_id(0) // SPREAD  # divided in 32 bits: in 64 it is a call
    blocks = tl.cdiv(rows, ROWS)
    group = program // blocks % groups
    user = (program // blocks // groups).to(tl.int64)
    r = program % blocks * ROWS + tl.arange(0, ROWS)
    first, kept, _ = stretch(offsets, lengths, user, length, LAYOUT, PARTS)
    w = tl.program_id(0) % SPREAD * BW + tl.arange(0, BW)
    tile = tl.arange(0, TILE)
    row_stride = row_units * ALIGN
    base = history + (first * row_stride if LAYOUT == 0 or PARTS else user * user_units * ALIGN) + group * W
    row = user * groups * rows + r * groups + group
    real = r < rows
    q = row_block(queries, row, w, real, W)
    if TOP:
        last, ties = best(
            base, queries, row, q, mask, first, kept, real, row_stride, top_k, W, BW, LAYOUT, PRECISION, TILE
        )
        seen = tl.zeros([ROWS], tl.int32)

    total = tl.zeros([ROWS, BW], tl.float32)
    highest = tl.full([ROWS], -float("inf"), tl.float32)
    denominator = tl.zeros([ROWS], tl.float32)
    for l0 in range(0, kept, TILE):
        l = (l0 + tile).to(tl.int64)
        keep = kept_tokens(mask, first, l, kept, LAYOUT)
        x = token_block(base, l, w, keep, row_stride, W)
        if W <= BW:
            score = tl.dot(x, tl.trans(q), input_precision=PRECISION)
        else:
            score = products(base, queries, row, q, l, keep, real, row_stride, W, BW, PRECISION)
        if TOP:
            on, seen = chosen(score, keep, last, ties, seen)
        else:
            on = keep[:, None]
        now = tl.maximum(highest, tl.max(tl.where(on, score, -float("inf")), 0))
        shift = tl.where(now == -float("inf"), 0.0, now)  # nothing kept so far
        weight = tl.where(on, tl.exp(score - shift[None, :]), 0.0)
        factor = tl.exp(highest - shift)
        denominator = denominator * factor + tl.sum(weight, 0)
        total = total * factor[:, None]
        total = tl.dot(tl.trans(weight.to(x.dtype)), x, total, input_precision=PRECISION)
        highest = now
    some = tl.zeros([ROWS], tl.int32) + kept > 0
    if LAYOUT == 2:  # every position may be a pad
        some = highest != -float("inf")
    total = tl.where(some[:, None], total / denominator[:, None], 0.0)
    square = real[:, None] & (w < W)[None, :]
    tl.store(pooled + row[:, None] * W + w[None, :], total.to(pooled.dtype.element_ty), mask=square)
    once = real & (tl.program_id(0) % SPREAD == 0)
    tl.store(stats + row * 2, highest, mask=once)
    tl.store(stats + row * 2 + 1, denominator, mask=once)


@triton.jit
def kept_numbers(stats, row, real):
    """Shift and denominator of `weights_of`, kept by the forward for each row."""
    shift = tl.load(stats + row * 2, mask=real, other=0.0)
    shift = tl.where(shift == -float("inf"), 0.0, shift)
    return shift, tl.load(stats + row * 2 + 1, mask=real, other=1.0)


@triton.jit
def weights_kernel(
    queries, history, offsets, lengths, mask, stats, attention,
    groups, rows, length, user_units, row_units, top_k,
    W: tl.constexpr, BW: tl.constexpr, ROWS: tl.constexpr, LAYOUT: tl.constexpr, PARTS: tl.constexpr,
    TOP: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The weights of a block of rows at every position."""
    program = tl.program_id(0)  # divided in 32 bits: in 64 it is a call
    blocks = tl.cdiv(rows, ROWS)
    group = program // blocks % groups
    user = (program // blocks // groups).to(tl.int64)
    r = program % blocks * ROWS + tl.arange(0, ROWS)
    first, kept, positions = stretch(offsets, lengths, user, length, LAYOUT, PARTS)
    tile = tl.arange(0, TILE)
    row_stride = row_units * ALIGN
    base = history + (first * row_stride if LAYOUT == 0 or PARTS else user * user_units * ALIGN) + group * W
    row = user * groups * rows + r * groups + group
    real = r < rows
    q = row_block(queries, row, tl.arange(0, BW), real, W)
    if TOP:
        last, ties = best(
            base, queries, row, q, mask, first, kept, real, row_stride, top_k, W, BW, LAYOUT, PRECISION, TILE
        )
        seen = tl.zeros([ROWS], tl.int32)
    shift, denominator = kept_numbers(stats, row, real)
    for l0 in range(0, positions, TILE):
        l = (l0 + tile).to(tl.int64)
        keep = kept_tokens(mask, first, l, kept, LAYOUT)
        score = products(base, queries, row, q, l, keep, real, row_stride, W, BW, PRECISION)
        if TOP:
            on, seen = chosen(score, keep, last, ties, seen)
        else:
            on = keep[:, None]
        weight = weights_of(score, on, shift, denominator)
        at = attention + (first + l)[:, None] * (groups * rows) + (r * groups + group)[None, :]
        inside = (l < positions)[:, None] & real[None, :]
        tl.store(at, weight.to(attention.dtype.element_ty), mask=inside)


@triton.jit
def mean_of(
    base, queries, grad_pooled, row, q, up, mask, shift, denominator, last, ties, first, kept, real, row_stride,
    W: tl.constexpr, BW: tl.constexpr, ROWS: tl.constexpr, LAYOUT: tl.constexpr, TOP: tl.constexpr,
    PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Σ w · dw of a block of rows.

    Not the pooled vector times its gradient, which is the same but for rounding: where one weight is nearly 1, dw minus
    this must cancel.
    """
    tile = tl.arange(0, TILE)
    mean = tl.zeros([ROWS], tl.float32)
    seen = tl.zeros([ROWS], tl.int32)
    for l0 in range(0, kept, TILE):
        l = (l0 + tile).to(tl.int64)
        keep = kept_tokens(mask, first, l, kept, LAYOUT)
        if W <= BW:
            x = token_block(base, l, tl.arange(0, BW), keep, row_stride, W)
            score = tl.dot(x, tl.trans(q), input_precision=PRECISION)
            dw = tl.dot(x, tl.trans(up), input_precision=PRECISION)
        else:
            score = products(base, queries, row, q, l, keep, real, row_stride, W, BW, PRECISION)
            dw = products(base, grad_pooled, row, up, l, keep, real, row_stride, W, BW, PRECISION)
        if TOP:
            on, seen = chosen(score, keep, last, ties, seen)
        else:
            on = keep[:, None]
        mean += tl.sum(weights_of(score, on, shift, denominator) * dw, 0)
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
    q = row_block(queries, row, w, real, W)
    up = row_block(grad_pooled, row, w, real, W)
    shift, denominator = kept_numbers(stats, row, real)
    mean = mean_of(
        history + first * row_stride + group * W, queries, grad_pooled, row, q, up, mask, shift, denominator,
        None, None, first, kept, real, row_stride, W, BW, ROWS, LAYOUT, False, PRECISION, TILE,
    )  # fmt: skip
    tl.store(means + row, mean, mask=real)


@triton.jit
def backward_kernel(
    grad_pooled, stats, queries, history, offsets, lengths, mask, means, grad_queries, grad_history,
    groups, rows, length, user_units, row_units, top_k,
    W: tl.constexpr, BW: tl.constexpr, ROWS: tl.constexpr, LAYOUT: tl.constexpr, ADD: tl.constexpr,
    PARTS: tl.constexpr, TOP: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One user and group, BW columns of it: gradients of its rows, and of its columns of the tokens.

    ADD: more than one block of rows, over which a token's gradient is summed, float32 in memory.
    """
    SPREAD: tl.constexpr = (W + BW - 1) // BW
    program = tl.program_id(0) // SPREAD  # divided in 32 bits: in 64 it is a call
    group = program % groups
    user = (program // groups).to(tl.int64)
    first, kept, positions = stretch(offsets, lengths, user, length, LAYOUT, PARTS)
    w = tl.program_id(0) % SPREAD * BW + tl.arange(0, BW)
    tile = tl.arange(0, TILE)
    row_stride = row_units * ALIGN
    base = history + (first * row_stride if LAYOUT == 0 or PARTS else user * user_units * ALIGN) + group * W
    token_stride = W * groups
    grads = grad_history + first * token_stride + group * W
    for r0 in range(0, rows, ROWS):
        r = r0 + tl.arange(0, ROWS)
        row = user * groups * rows + r * groups + group
        real = r < rows
        q = row_block(queries, row, w, real, W)
        up = row_block(grad_pooled, row, w, real, W)
        shift, denominator = kept_numbers(stats, row, real)
        last = tl.zeros([ROWS], tl.int32)
        ties = tl.zeros([ROWS], tl.int32)
        seen = tl.zeros([ROWS], tl.int32)
        if TOP:
            last, ties = best(
                base, queries, row, q, mask, first, kept, real, row_stride, top_k, W, BW, LAYOUT, PRECISION, TILE
            )
        if PARTS:
            mean = tl.load(means + row, mask=real, other=0.0)
        else:
            mean = mean_of(
                base, queries, grad_pooled, row, q, up, mask, shift, denominator, last, ties, first, kept, real,
                row_stride, W, BW, ROWS, LAYOUT, TOP, PRECISION, TILE,
            )  # fmt: skip
        grad_rows = tl.zeros([ROWS, BW], tl.float32)
        for l0 in range(0, positions, TILE):
            l = (l0 + tile).to(tl.int64)
            keep = kept_tokens(mask, first, l, kept, LAYOUT)
            x = token_block(base, l, w, keep, row_stride, W)
            if W <= BW:
                score = tl.dot(x, tl.trans(q), input_precision=PRECISION)
                dw = tl.dot(x, tl.trans(up), input_precision=PRECISION)
            else:
                score = products(base, queries, row, q, l, keep, real, row_stride, W, BW, PRECISION)
                dw = products(base, grad_pooled, row, up, l, keep, real, row_stride, W, BW, PRECISION)
            if TOP:
                on, seen = chosen(score, keep, last, ties, seen)
            else:
                on = keep[:, None]
            weight = weights_of(score, on, shift, denominator)
            signal = weight * (dw - mean[None, :])
            signal = tl.where(on & real[None, :], signal, 0.0).to(x.dtype)
            grad_rows = tl.dot(tl.trans(signal), x, grad_rows, input_precision=PRECISION)
            dx = tl.dot(signal, q, input_precision=PRECISION)
            dx = tl.dot(weight.to(x.dtype), up, dx, input_precision=PRECISION)
            dx = tl.where(keep[:, None], dx, 0.0)
            at = grads + l[:, None] * token_stride + w[None, :]
            inside = (l < positions)[:, None] & (w < W)[None, :]
            if ADD:
                dx += tl.load(at, mask=inside & (r0 > 0), other=0.0)
            tl.store(at, dx.to(grad_history.dtype.element_ty), mask=inside)
        to = grad_queries + row[:, None] * W + w[None, :]
        tl.store(to, grad_rows.to(grad_queries.dtype.element_ty), mask=real[:, None] & (w < W)[None, :])
        if ADD:
            tl.debug_barrier()  # the next block adds to what this one wrote
