"""The staged Triton kernels: activation units of any size, one matrix product a launch.

They work through rows (see `rows`) in chunks; what passes from one launch to the next, pre-activations say, lies in
scratch memory of a bounded size. So neither registers nor shared memory limit D, the units or the layers, and every
accumulation is in float32 while the operands of products have the dtype of the inputs.

Sums over tokens: within a granule, then over a user's granules in order (`chain_kernel`), so that a user's gradients do
not depend on the batch; those of parameters in slabs that `sum_slabs` adds in order. No atomics.

ACT: see `activations`; 7 is dice_row, whose units need the whole row and therefore a launch of their own. ROWS, UNITS,
DEPTH: the tile of a product. THRESHOLD: of dropout, 0 for none. ZEROS: zero tokens count, as `rows.rows` says.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mixpol_kernels.ops.target_attention.triton.activations import activate, derivative, parameter_gradients, parameters
from mixpol_kernels.ops.target_attention.triton.rows import _FIELDS, _GRANULE, dropout, items, rows
from mixpol_kernels.ops.triton.shared import add_to, sigmoid, vector

# Sizes that follow the batch: a kernel is not compiled anew where they happen to divide by 16 or are 1.
VARYING = ["slots", "length", "user_units", "call", "shift", "last"]


@triton.jit
def tile_of(pointer, at, i, j, inside, COLUMNS: tl.constexpr):
    """[i, j] of a matrix of COLUMNS adjacent columns whose rows i begin at `at`."""
    return tl.load(pointer + at[:, None] + j[None, :], mask=inside[:, None] & (j < COLUMNS)[None, :], other=0.0)


@triton.jit
def matrix(pointer, k, n, DEEP: tl.constexpr, WIDE: tl.constexpr):
    """[k, n] of a contiguous matrix [DEEP, WIDE]."""
    inside = (k < DEEP)[:, None] & (n < WIDE)[None, :]
    return tl.load(pointer + k[:, None] * WIDE + n[None, :], mask=inside, other=0.0)


@triton.jit(do_not_specialize=VARYING)
def constants_kernel(
    target, granules, total, weight, bias, constants, g0, c0, block, slots, candidates,
    D: tl.constexpr, H: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """What the first layer's pre-activations of an item share: constants[item] = t (Wq + Wd)ᵀ + b."""
    n = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    if g0 + tl.program_id(1) * ROWS // block >= tl.load(total):
        return
    used, row = items(granules, i, g0, c0, block, slots, candidates)
    sums = tl.zeros([ROWS, UNITS], tl.float32)
    for k0 in range(0, D, DEPTH):
        k = k0 + tl.arange(0, DEPTH)
        t = tl.load(target + (row * D)[:, None] + k[None, :], mask=used[:, None] & (k < D)[None, :], other=0.0)
        sums = tl.dot(t, matrix(weight, k, n, D, H), sums, input_precision=PRECISION)
    sums += vector(bias, n, H)[None, :]
    tl.store(constants + i[:, None] * H + n[None, :], sums, mask=used[:, None] & (n < H)[None, :])


@triton.jit(do_not_specialize=VARYING)
def layer_kernel(
    target, history, index, granules, total, source, weight, product, bias, slopes, out, out_bias,
    before, after, scores, statistics,
    g0, c0, block, slots, candidates, length, user_units, row_units, call, step, shift,
    K: tl.constexpr, H: tl.constexpr, FIRST: tl.constexpr, LAYER: tl.constexpr, ACT: tl.constexpr, NORM: tl.constexpr,
    THRESHOLD: tl.constexpr, SCALE: tl.constexpr, ZEROS: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One layer: what it becomes `before` its activation and `after` it, for outputs that are not None.

    FIRST: [x ; t x] [Wk - Wd ; Wp]ᵀ + constants, which `source` has by item; else source [rows, K] times weight [K, H].
    `scores`: of a last layer of one block of units. `statistics` [tiles, 3, H]: the rows' count, mean and Σ (· - mean)²
    so far, to which this tile's are merged.
    """
    n = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    if g0 + tl.program_id(1) * (ROWS // _GRANULE) // block >= tl.load(total):
        return
    keep, often, at_x, row, cell, place = rows(
        granules, index, r, g0, c0, block, slots, candidates, length, user_units, row_units, ALIGN, ZEROS
    )
    live = often > 0
    sums = tl.zeros([ROWS, UNITS], tl.float32)
    for k0 in range(0, K, DEPTH):
        k = k0 + tl.arange(0, DEPTH)
        w = matrix(weight, k, n, K, H)
        if FIRST:
            x = tile_of(history, at_x, r, k, keep, K)
            t = tile_of(target, row * K, r, k, keep, K)
            sums = tl.dot(x, w, sums, input_precision=PRECISION)
            tx = (x.to(tl.float32) * t.to(tl.float32)).to(x.dtype)
            sums = tl.dot(tx, matrix(product, k, n, K, H), sums, input_precision=PRECISION)
        else:
            sums = tl.dot(tile_of(source, r * K, r, k, live, K), w, sums, input_precision=PRECISION)
    if FIRST:
        sums += tile_of(source, r // _GRANULE * H, r, n, live, H)
    else:
        sums += vector(bias, n, H)[None, :]
    sums = tl.where((n < H)[None, :], sums, 0.0)  # at padded units an infinite input leaves NaN
    inside = live[:, None] & (n < H)[None, :]
    at = r[:, None] * H + n[None, :]
    if before is not None:
        tl.store(before + at, sums, mask=inside)
    if statistics is not None:
        many = tl.sum(often, 0)
        if many > 0:
            mean = tl.sum(tl.where(live[:, None], often[:, None] * sums, 0.0), 0) / many
            off = sums - mean[None, :]
            square = tl.sum(tl.where(live[:, None], often[:, None] * off * off, 0.0), 0)
            at_s = statistics + tl.program_id(1) * (3 * H) + n
            old = tl.load(at_s, mask=n < H, other=0.0)
            old_mean = tl.load(at_s + H, mask=n < H, other=0.0)
            move = mean - old_mean
            share = many / (old + many)
            tl.store(at_s, old + many, mask=n < H)
            tl.store(at_s + H, old_mean + move * share, mask=n < H)
            add_to(at_s + 2 * H, square + move * move * old * share, n < H)
    if (after is not None) or (scores is not None):
        f, s, o = parameters(slopes, n, n < H, H, ACT)
        a = activate(sums, f, s, o, ACT)
        if THRESHOLD:
            a *= dropout(call, row * step + shift, place, n, LAYER, THRESHOLD, SCALE)
        if after is not None:
            tl.store(after + at, a.to(after.dtype.element_ty), mask=inside)
        if scores is not None:
            score = tl.sum(tl.where((n < H)[None, :], a * vector(out, n, H)[None, :], 0.0), 1)
            score += tl.load(out_bias).to(tl.float32)
            if NORM == 2:
                score = sigmoid(score)
            tl.store(scores + cell, score, mask=keep)


@triton.jit(do_not_specialize=VARYING)
def across_kernel(
    granules, index, total, before, slopes, after, g0, c0, block, slots, candidates, length, call, step, shift,
    H: tl.constexpr, LAYER: tl.constexpr, THRESHOLD: tl.constexpr, SCALE: tl.constexpr, ZEROS: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """dice_row: the activation that normalises each row over its units."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if g0 + tl.program_id(0) * (ROWS // _GRANULE) // block >= tl.load(total):
        return
    _, often, _, row, _, place = rows(granules, index, r, g0, c0, block, slots, candidates, length, 0, 0, 1, ZEROS)
    live = often > 0
    mean, inverse = spread(before, slopes, r, live, H, ROWS, UNITS)
    for n0 in range(0, H, UNITS):
        n = n0 + tl.arange(0, UNITS)
        h = tile_of(before, r * H, r, n, live, H)
        alpha = vector(slopes, n, H)
        p = sigmoid((h - mean[:, None]) * inverse[:, None])
        a = h * (p + alpha[None, :] * (1.0 - p))
        if THRESHOLD:
            a *= dropout(call, row * step + shift, place, n, LAYER, THRESHOLD, SCALE)
        inside = live[:, None] & (n < H)[None, :]
        tl.store(after + r[:, None] * H + n[None, :], a.to(after.dtype.element_ty), mask=inside)


@triton.jit
def spread(before, slopes, r, live, H: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """Of rows of H units: the mean m, and 1 / √(Σ_k ((x_k - m)² + ε_k)), 0 for rows that are not live."""
    total = tl.zeros([ROWS], tl.float32)
    for n0 in range(0, H, UNITS):
        total += tl.sum(tile_of(before, r * H, r, n0 + tl.arange(0, UNITS), live, H), 1)
    mean = total / H
    square = tl.zeros([ROWS], tl.float32)
    for n0 in range(0, H, UNITS):
        n = n0 + tl.arange(0, UNITS)
        off = tile_of(before, r * H, r, n, live, H) - mean[:, None]
        terms = off * off + vector(slopes + H, n, H)[None, :]
        square += tl.sum(tl.where((n < H)[None, :], terms, 0.0), 1)
    return mean, tl.where(live, 1.0 / tl.sqrt(square), 0.0)


@triton.jit(do_not_specialize=VARYING)
def score_kernel(
    granules, index, total, after, out, out_bias, scores, g0, c0, block, slots, candidates, length,
    H: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """The output layer: scores[token, candidate], where NORM is 2 their sigmoids."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if g0 + tl.program_id(0) * (ROWS // _GRANULE) // block >= tl.load(total):
        return
    keep, _, _, _, cell, _ = rows(granules, index, r, g0, c0, block, slots, candidates, length, 0, 0, 1, False)
    score = tl.zeros([ROWS], tl.float32) + tl.load(out_bias).to(tl.float32)
    for n0 in range(0, H, UNITS):
        n = n0 + tl.arange(0, UNITS)
        a = tile_of(after, r * H, r, n, keep, H)
        score += tl.sum(a.to(tl.float32) * vector(out, n, H)[None, :], 1)
    if NORM == 2:
        score = sigmoid(score)
    tl.store(scores + cell, score, mask=keep)


@triton.jit
def softmax_kernel(scores, begins, counts, index, candidates, TILE: tl.constexpr):
    """Of one (user, candidate): scores become shares of their softmax."""
    user = (tl.program_id(0) // candidates).to(tl.int64)
    first = tl.load(begins + user)
    count = tl.load(counts + user)
    tile = tl.arange(0, TILE)
    at = scores + tl.program_id(0) % candidates
    highest = -float("inf")
    for l0 in range(0, count, TILE):
        keep = l0 + tile < count
        token = tokens_at(index, first + l0 + tile, keep)
        score = tl.load(at + token * candidates, mask=keep, other=-float("inf"))
        highest = tl.maximum(highest, tl.max(score, 0))
    shift = tl.where(highest == -float("inf"), 0.0, highest)
    denominator = 0.0
    for l0 in range(0, count, TILE):
        keep = l0 + tile < count
        token = tokens_at(index, first + l0 + tile, keep)
        score = tl.load(at + token * candidates, mask=keep, other=-float("inf"))
        denominator += tl.sum(tl.where(keep, tl.exp(score - shift), 0.0), 0)
    for l0 in range(0, count, TILE):
        keep = l0 + tile < count
        token = tokens_at(index, first + l0 + tile, keep)
        score = tl.load(at + token * candidates, mask=keep, other=0.0)
        tl.store(at + token * candidates, tl.exp(score - shift) / denominator, mask=keep)


@triton.jit
def tokens_at(index, place, keep):
    if index is not None:
        place = tl.load(index + place, mask=keep, other=0)
    return place


@triton.jit(do_not_specialize=VARYING)
def pool_kernel(
    weights, history, index, spans, pooled, candidates, length, user_units, row_units,
    D: tl.constexpr, ALIGN: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of one span and candidate, COLUMNS of D: Σ w x."""
    row = tl.program_id(0).to(tl.int64)
    at = spans + row // candidates * _FIELDS
    user = tl.load(at)
    first = tl.load(at + 1)
    count = tl.load(at + 3)
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for l0 in range(0, count, TILE):
        l = l0 + tl.arange(0, TILE)
        token = tokens_at(index, first + l, l < count)
        at_x = user * user_units * ALIGN + (token - user * length) * row_units * ALIGN
        x = tile_of(history, at_x, l, d, l < count, D)
        w = tl.load(weights + token * candidates + row % candidates, mask=l < count, other=0.0)
        total += tl.sum(w[:, None] * x.to(tl.float32), 0)
    tl.store(pooled + row * D + d, total.to(pooled.dtype.element_ty), mask=d < D)


@triton.jit(do_not_specialize=VARYING)
def upstream_kernel(
    grad_pooled, grad_weights, weights, history, index, spans, gradients, means,
    candidates, length, user_units, row_units,
    D: tl.constexpr, ALIGN: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of one span and candidate: gradients of its weights, x · grad_pooled + grad_weights, and Σ w times them.

    Not the pooled vector times its gradient, which is the same but for rounding: where one weight is nearly 1, the
    weights' gradients minus this must cancel.
    """
    program = tl.program_id(0).to(tl.int64)
    at = spans + program // candidates * _FIELDS
    user = tl.load(at)
    first = tl.load(at + 1)
    count = tl.load(at + 3)
    candidate = program % candidates
    up = grad_pooled + (user * candidates + candidate) * D
    mean = 0.0
    for l0 in range(0, count, TILE):
        l = l0 + tl.arange(0, TILE)
        keep = l < count
        token = tokens_at(index, first + l, keep)
        at_x = user * user_units * ALIGN + (token - user * length) * row_units * ALIGN
        dw = tl.zeros([TILE], tl.float32)
        for d0 in range(0, D, COLUMNS):
            d = d0 + tl.arange(0, COLUMNS)
            x = tile_of(history, at_x, l, d, keep, D)
            dw += tl.sum(x.to(tl.float32) * vector(up, d, D)[None, :], 1)
        cell = token * candidates + candidate
        if grad_weights is not None:
            dw += tl.load(grad_weights + cell, mask=keep, other=0.0)
        tl.store(gradients + cell, dw, mask=keep)
        if means is not None:
            mean += tl.sum(tl.where(keep, tl.load(weights + cell, mask=keep, other=0.0) * dw, 0.0), 0)
    if means is not None:
        tl.store(means + program, mean)


@triton.jit
def items_sums(z, tile, sums, n, H: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """Stores the sums over each item's rows."""
    i = tile * (ROWS // _GRANULE) + tl.arange(0, ROWS // _GRANULE)
    each = tl.sum(tl.reshape(z, [ROWS // _GRANULE, _GRANULE, UNITS]), 1)
    tl.store(sums + i[:, None] * H + n[None, :], each, mask=(n < H)[None, :] & (i >= 0)[:, None])


@triton.jit(do_not_specialize=VARYING)
def signal_kernel(
    granules, index, total, weights, gradients, means, out, source, weight, before, after, slopes, moments,
    signals, raw, partials, scalars, sums,
    g0, c0, block, slots, candidates, length, call, step, shift,
    NEXT: tl.constexpr, H: tl.constexpr, LAYER: tl.constexpr, LAST: tl.constexpr, NORM: tl.constexpr,
    ACT: tl.constexpr, THRESHOLD: tl.constexpr, SCALE: tl.constexpr, ZEROS: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Signals of one layer, the gradients of its pre-activations, and what its parameters get of them.

    LAST: 0 from the `source` [rows, NEXT] of the layer above and its weight [NEXT, H]; 1 from the weights of the
    tokens; 2 from `moments` [4, H]: u + v (· - mean - rest), of the gradients of a mean and a variance of the
    pre-activations; 3 from both. `partials` [tiles, 5, H]: bias, three slopes, output weight; `scalars` [tiles]: output
    bias. `sums`: over each item's rows. `raw`: of dice_row, gradients of the activations, of which
    `across_backward_kernel` makes signals.
    """
    n = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    tile = tl.program_id(1)
    r = tile * ROWS + tl.arange(0, ROWS)
    if g0 + tile * (ROWS // _GRANULE) // block >= tl.load(total):
        return
    keep, often, _, row, cell, place = rows(
        granules, index, r, g0, c0, block, slots, candidates, length, 0, 0, 1, ZEROS
    )
    live = often > 0
    inside = live[:, None] & (n < H)[None, :]
    at = r[:, None] * H + n[None, :]
    at_p = partials + tile * (5 * H) + n
    x = tl.load(before + at, mask=inside, other=0.0)
    f, s, o = parameters(slopes, n, n < H, H, ACT)
    factor = 1.0
    if THRESHOLD:
        factor = dropout(call, row * step + shift, place, n, LAYER, THRESHOLD, SCALE)
    z = tl.zeros([ROWS, UNITS], tl.float32)
    if LAST == 0:
        for k0 in range(0, NEXT, DEPTH):
            k = k0 + tl.arange(0, DEPTH)
            above = tile_of(source, r * NEXT, r, k, live, NEXT)
            z = tl.dot(above, matrix(weight, k, n, NEXT, H), z, input_precision=PRECISION)
    if (LAST == 1) or (LAST == 3):
        ds = tl.load(gradients + cell, mask=keep, other=0.0)
        if NORM > 0:
            w = tl.load(weights + cell, mask=keep, other=0.0)
            if NORM == 1:
                ds -= tl.load(means + row, mask=keep, other=0.0)
            if NORM == 2:
                ds *= 1.0 - w
            ds *= w
        ds = tl.where(keep, ds, 0.0)
        if scalars is not None:
            if tl.program_id(0) == 0:
                tl.store(scalars + tile, tl.load(scalars + tile) + tl.sum(ds, 0))
            if ACT == 7:
                a = tl.load(after + at, mask=inside, other=0.0).to(tl.float32)
            else:
                a = activate(x, f, s, o, ACT) * factor
            add_to(at_p + 4 * H, tl.sum(tl.where(keep[:, None], ds[:, None] * a, 0.0), 0), n < H)
        z = ds[:, None] * vector(out, n, H)[None, :]
    z = z * factor
    if raw is not None:
        tl.store(raw + at, z, mask=inside)
    else:
        if LAST != 2:
            e_first, e_scale, e_shift = parameter_gradients(z, x, f, s, o, ACT)
            if (ACT == 1) or (ACT == 6):
                add_to(at_p + H, e_first, n < H)
            if ACT == 6:
                add_to(at_p + 2 * H, e_scale, n < H)
                add_to(at_p + 3 * H, e_shift, n < H)
            z = z * derivative(x, f, s, o, ACT)
        if LAST > 1:
            off = (x - vector(moments + 2 * H, n, H)[None, :]) - vector(moments + 3 * H, n, H)[None, :]
            z += often[:, None] * (vector(moments, n, H)[None, :] + vector(moments + H, n, H)[None, :] * off)
        if signals is not None:
            z = tl.where(live[:, None], z, 0.0)
            tl.store(signals + at, z.to(signals.dtype.element_ty), mask=inside)
            add_to(at_p, tl.sum(z, 0), n < H)
            if sums is not None:
                items_sums(z, tile, sums, n, H, ROWS, UNITS)


@triton.jit(do_not_specialize=VARYING)
def across_backward_kernel(
    granules, index, total, before, raw, slopes, signals, partials, sums, g0, c0, block, slots, candidates, length,
    H: tl.constexpr, ZEROS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """dice_row: from gradients of the activations to signals; see `signal_kernel`."""
    tile = tl.program_id(0)
    r = tile * ROWS + tl.arange(0, ROWS)
    if g0 + tile * (ROWS // _GRANULE) // block >= tl.load(total):
        return
    _, often, _, _, _, _ = rows(granules, index, r, g0, c0, block, slots, candidates, length, 0, 0, 1, ZEROS)
    live = often > 0
    mean, inverse = spread(before, slopes, r, live, H, ROWS, UNITS)
    through = tl.zeros([ROWS], tl.float32)
    along = tl.zeros([ROWS], tl.float32)
    for n0 in range(0, H, UNITS):
        n = n0 + tl.arange(0, UNITS)
        h = tile_of(before, r * H, r, n, live, H)
        off = h - mean[:, None]
        p = sigmoid(off * inverse[:, None])
        d_normal = tile_of(raw, r * H, r, n, live, H) * h * (1.0 - vector(slopes, n, H)[None, :]) * p * (1.0 - p)
        through += tl.sum(d_normal, 1)
        along += tl.sum(d_normal * off, 1)
    cube = along * inverse * inverse * inverse
    d_epsilon = tl.sum(tl.where(live, -0.5 * cube, 0.0), 0)
    for n0 in range(0, H, UNITS):
        n = n0 + tl.arange(0, UNITS)
        h = tile_of(before, r * H, r, n, live, H)
        g = tile_of(raw, r * H, r, n, live, H)
        alpha = vector(slopes, n, H)[None, :]
        off = h - mean[:, None]
        p = sigmoid(off * inverse[:, None])
        d_normal = g * h * (1.0 - alpha) * p * (1.0 - p)
        z = g * (p + alpha * (1.0 - p)) + (d_normal - (through / H)[:, None]) * inverse[:, None] - off * cube[:, None]
        inside = live[:, None] & (n < H)[None, :]
        z = tl.where(inside, z, 0.0)
        at_p = partials + tile * (5 * H) + n
        add_to(at_p, tl.sum(z, 0), n < H)
        add_to(at_p + H, tl.sum(tl.where(inside, g * h * (1.0 - p), 0.0), 0), n < H)
        add_to(at_p + 2 * H, d_epsilon + tl.zeros([UNITS], tl.float32), n < H)
        tl.store(signals + r[:, None] * H + n[None, :], z.to(signals.dtype.element_ty), mask=inside)
        if sums is not None:
            items_sums(z, tile, sums, n, H, ROWS, UNITS)


@triton.jit(do_not_specialize=VARYING)
def outer_kernel(
    target, history, index, granules, total, signals, source, slabs,
    g0, c0, block, slots, candidates, length, user_units, row_units, last, stride,
    H: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, ZEROS: tl.constexpr, ALIGN: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Adds Σ signalᵀ input [H, K] of every S-th tile to slab s of S.

    KIND: of the input. 0 `source`, the layer below; 1 the tokens x, and behind that sum the one of t x; 2 the targets
    of items, whose signals are sums in float32.
    """
    columns = tl.cdiv(K, COLUMNS)
    n = tl.program_id(0) // columns * UNITS + tl.arange(0, UNITS)
    k = tl.program_id(0) % columns * COLUMNS + tl.arange(0, COLUMNS)
    rows_used = (tl.load(total).to(tl.int32) - g0) * block
    if KIND < 2:
        rows_used *= _GRANULE
    tiles = tl.minimum(tl.cdiv(rows_used, ROWS), last)
    sums = tl.zeros([UNITS, COLUMNS], tl.float32)
    products = tl.zeros([UNITS, COLUMNS], tl.float32)
    for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
        r = tile * ROWS + tl.arange(0, ROWS)
        if KIND == 2:
            live, row = items(granules, r, g0, c0, block, slots, candidates)
            z = tile_of(signals, r * H, r, n, live, H).to(target.dtype.element_ty)
            x = tile_of(target, row * K, r, k, live, K)
        else:
            keep, often, at_x, row, _, _ = rows(
                granules, index, r, g0, c0, block, slots, candidates, length, user_units, row_units, ALIGN, ZEROS
            )
            live = often > 0
            z = tile_of(signals, r * H, r, n, live, H)
            if KIND == 1:
                x = tile_of(history, at_x, r, k, keep, K)
                t = tile_of(target, row * K, r, k, keep, K)
                tx = (x.to(tl.float32) * t.to(tl.float32)).to(x.dtype)
                products = tl.dot(tl.trans(z), tx, products, input_precision=PRECISION)
            else:
                x = tile_of(source, r * K, r, k, live, K)
        sums = tl.dot(tl.trans(z), x, sums, input_precision=PRECISION)
    inside = (n < H)[:, None] & (k < K)[None, :]
    at = slabs + tl.program_id(1).to(tl.int64) * stride + n[:, None] * K + k[None, :]
    add_to(at, sums, inside)
    if KIND == 1:
        add_to(at + H * K, products, inside)


@triton.jit(do_not_specialize=VARYING)
def tokens_kernel(
    target, history, index, granules, total, signals, weight, product, weights, grad_pooled, grad_history, terms,
    g0, c0, block, slots, candidates, length, user_units, row_units,
    H: tl.constexpr, D: tl.constexpr, ADD: tl.constexpr, ALIGN: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Gradients of the tokens of ROWS / 16 granules: Σ over candidates of z (Wk - Wd) + t (z Wp) + w grad_pooled.

    `terms` [items, D]: Σ x (z Wp) over each item's tokens, a part of the target's gradient. ADD: to what is there.
    """
    d = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    g = tl.program_id(1) * (ROWS // _GRANULE)
    if g0 + g >= tl.load(total):
        return
    r = tl.arange(0, ROWS)
    own = (g + r // _GRANULE) * _GRANULE + r % _GRANULE
    keep, _, at_x, _, token, _ = rows(
        granules, index, own, g0, 0, 1, slots, 1, length, user_units, row_units, ALIGN, False
    )
    x = tile_of(history, at_x, r, d, keep, D).to(tl.float32)
    grad = tl.zeros([ROWS, COLUMNS], tl.float32)
    for m in range(block):
        item = (g + r // _GRANULE) * block + m
        at_z = item * _GRANULE + r % _GRANULE
        _, _, _, row, cell, _ = rows(granules, index, at_z, g0, c0, block, slots, candidates, length, 0, 0, 1, False)
        through = tl.zeros([ROWS, COLUMNS], tl.float32)
        for k0 in range(0, H, DEPTH):
            k = k0 + tl.arange(0, DEPTH)
            z = tile_of(signals, at_z * H, r, k, keep, H)
            grad = tl.dot(z, matrix(weight, k, d, H, D), grad, input_precision=PRECISION)
            through = tl.dot(z, matrix(product, k, d, H, D), through, input_precision=PRECISION)
        grad += through * tile_of(target, row * D, r, d, keep, D).to(tl.float32)
        if grad_pooled is not None:
            w = tl.load(weights + cell, mask=keep, other=0.0)
            grad += w[:, None] * tile_of(grad_pooled, row * D, r, d, keep, D).to(tl.float32)
        each = tl.sum(tl.reshape(tl.where(keep[:, None], x * through, 0.0), [ROWS // _GRANULE, _GRANULE, COLUMNS]), 1)
        i = (g + tl.arange(0, ROWS // _GRANULE)) * block + m
        tl.store(terms + i[:, None] * D + d[None, :], each, mask=(i >= 0)[:, None] & (d < D)[None, :])
    at = grad_history + (token * D)[:, None] + d[None, :]
    inside = keep[:, None] & (d < D)[None, :]
    if ADD:
        grad += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, grad.to(grad_history.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def targets_kernel(
    granules, total, sums, weight, terms, g0, c0, block, slots, candidates,
    H: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Adds the rest of each item's part of its target's gradient, Σ z (Wq + Wd), to `terms`."""
    d = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    if g0 + tl.program_id(1) * ROWS // block >= tl.load(total):
        return
    used, _ = items(granules, i, g0, c0, block, slots, candidates)
    grad = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k0 in range(0, H, DEPTH):
        k = k0 + tl.arange(0, DEPTH)
        w = matrix(weight, k, d, H, D)
        z = tile_of(sums, i * H, i, k, used, H).to(w.dtype)
        grad = tl.dot(z, w, grad, input_precision=PRECISION)
    add_to(terms + i[:, None] * D + d[None, :], grad, used[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=[*VARYING, "many"])
def chain_kernel(
    granules, total, terms, grad_target, g0, c0, block, many, candidates, D: tl.constexpr, COLUMNS: tl.constexpr
):
    """Adds the items of a user among `many` granules to its target's gradient, in order: one program takes them all."""
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    item = tl.program_id(0)
    g = (g0 + item // block).to(tl.int64)
    end = tl.minimum(g0 + many, tl.load(total))
    if g >= end:
        return
    user = tl.load(granules + g * _FIELDS)
    if (g > g0) & (tl.load(granules + tl.maximum(g - 1, 0) * _FIELDS) == user):
        return
    at = grad_target + (user * candidates + c0 + item % block) * D + d
    grad = tl.load(at, mask=d < D, other=0.0)
    at_terms = terms + item.to(tl.int64) * D + d
    same = user
    while same == user:
        grad += tl.load(at_terms, mask=d < D, other=0.0)
        at_terms += block * D
        g += 1
        same = tl.load(granules + g * _FIELDS, mask=g < end, other=-1)
    tl.store(at, grad, mask=d < D)


@triton.jit
def merge_statistics(
    statistics, mean, variance, rest, tiles, H: tl.constexpr, UNITS: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Count, mean and squares of tiles [tiles, 3, H] to one mean and biased variance; `rest`: what rounding took."""
    n = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    r = tl.arange(0, ROWS)
    count = tl.zeros([ROWS, UNITS], tl.float64)
    total = tl.zeros([ROWS, UNITS], tl.float64)
    for r0 in range(0, tiles, ROWS):
        inside = (r0 + r < tiles)[:, None] & (n < H)[None, :]
        at = statistics + (r0 + r)[:, None] * (3 * H) + n[None, :]
        each = tl.load(at, mask=inside, other=0.0).to(tl.float64)
        count += each
        total += each * tl.load(at + H, mask=inside, other=0.0).to(tl.float64)
    many = tl.maximum(tl.sum(count, 0), 1.0)
    middle = tl.sum(total, 0) / many
    square = tl.zeros([ROWS, UNITS], tl.float64)
    for r0 in range(0, tiles, ROWS):
        inside = (r0 + r < tiles)[:, None] & (n < H)[None, :]
        at = statistics + (r0 + r)[:, None] * (3 * H) + n[None, :]
        off = tl.load(at + H, mask=inside, other=0.0).to(tl.float64) - middle[None, :]
        each = tl.load(at, mask=inside, other=0.0).to(tl.float64)
        square += tl.load(at + 2 * H, mask=inside, other=0.0).to(tl.float64) + each * off * off
    rounded = middle.to(tl.float32).to(mean.dtype.element_ty)
    tl.store(mean + n, rounded, mask=n < H)
    tl.store(variance + n, (tl.sum(square, 0) / many).to(tl.float32).to(variance.dtype.element_ty), mask=n < H)
    tl.store(rest + n, (middle - rounded.to(tl.float32).to(tl.float64)).to(rest.dtype.element_ty), mask=n < H)
