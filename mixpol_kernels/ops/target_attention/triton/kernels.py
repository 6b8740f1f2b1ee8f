"""The Triton kernels of `target_attention`.

One program per (user, candidate) in the forward; in the backward a fixed number of programs that take users in turn,
each with a slab of its own for the sums of parameter gradients, which `sum_slabs` adds in order: no atomics.

Per target: G(t) = (Wk - Wd)ᵀ + diag(t) Wpᵀ, [D, H1] on chip, and c(t) = (Wq + Wd) t + b. Then tiles of TILE tokens are
read once, scored and pooled; only attention weights leave. Every accumulation is in float32; the operands of matrix
products have the dtype of the inputs. Sizes of blocks are powers of two from 16 on; what lies beyond the real sizes is
masked to 0.

LAYOUT: 0 jagged (offsets), 1 lengths, 2 mask, 3 full. NORM: an index into `autograd.NORMALIZERS`: 0 none, 1 softmax,
2 sigmoid. PARTS: users are parts of a history (`parts`), and the softmax's Σ w · dw of the whole comes from
`mean_kernel` by way of `combine_kernel`. ACT: see `activations`. PRECISION: of float32 products, "ieee" or "tf32x3".
"""

from __future__ import annotations

import triton
import triton.language as tl

from mixpol_kernels.ops.target_attention.triton.activations import activate, derivative, parameter_gradients, parameters
from mixpol_kernels.ops.triton.parts import stretch
from mixpol_kernels.ops.triton.shared import add_to, kept_tokens, sigmoid, vector


@triton.jit
def table(weight, bias, t, d, h, D: tl.constexpr, H: tl.constexpr):
    """G(t) [BD, B1] and c(t) [B1] of the first layer's weight [H, 4 D]: blocks q, k, d, p."""
    inside = (d < D)[:, None] & (h < H)[None, :]
    at = weight + h[None, :] * (4 * D) + d[:, None]
    w_d = tl.load(at + 2 * D, mask=inside, other=0.0).to(tl.float32)
    w_q = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + h, mask=h < H, other=0.0).to(tl.float32)
    constant = tl.sum((w_q + w_d) * t[:, None], 0) + b
    w_k = tl.load(at + D, mask=inside, other=0.0).to(tl.float32)
    w_p = tl.load(at + 3 * D, mask=inside, other=0.0).to(tl.float32)
    return (w_k - w_d) + t[:, None] * w_p, constant


@triton.jit
def transposed_weight(weight, below, units, BELOW: tl.constexpr, UNITS: tl.constexpr):
    """A deeper layer's weight [UNITS, BELOW] as [below, units]."""
    inside = (below < BELOW)[:, None] & (units < UNITS)[None, :]
    return tl.load(weight + units[None, :] * BELOW + below[:, None], mask=inside, other=0.0)


@triton.jit
def only_real(x, units, UNITS: tl.constexpr, BLOCK: tl.constexpr):
    """Zeros at padded units, where an infinite input would leave NaN."""
    if UNITS < BLOCK:
        x = tl.where((units < UNITS)[None, :], x, 0.0)
    return x


@triton.jit
def forward_kernel(
    target, history, offsets, lengths, mask, w1, b1, s1, w2, b2, s2, w3, b3, s3, w_out, b_out,  # inputs
    pooled, stats, attention,  # outputs
    candidates, length, user_units, row_units,
    D: tl.constexpr, H1: tl.constexpr, H2: tl.constexpr, H3: tl.constexpr,
    BD: tl.constexpr, B1: tl.constexpr, B2: tl.constexpr, B3: tl.constexpr,
    LAYERS: tl.constexpr, ACT: tl.constexpr, NORM: tl.constexpr, LAYOUT: tl.constexpr, SAVE: tl.constexpr,
    PARTS: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One (user, candidate): pooled [D], and the attention weights where SAVE is set.

    PARTS: of one part's tokens alone; and a softmax's largest score and Σ exp(s - largest).
    """
    row = tl.program_id(0).to(tl.int64)
    user = row // candidates
    candidate = row % candidates
    first, kept, positions = stretch(offsets, lengths, user, length, LAYOUT, PARTS)
    d = tl.arange(0, BD)
    u1 = tl.arange(0, B1)
    u2 = tl.arange(0, B2)
    u3 = tl.arange(0, B3)
    tile = tl.arange(0, TILE)
    row_stride = row_units * ALIGN
    base = history + (first * row_stride if LAYOUT == 0 or PARTS else user * user_units * ALIGN)
    attention += first * candidates + candidate

    t = vector(target + row * D, d, D)
    g, c = table(w1, b1, t, d, u1, D, H1)
    g = g.to(history.dtype.element_ty)
    H_OUT: tl.constexpr = H1 if LAYERS == 1 else (H2 if LAYERS == 2 else H3)
    if LAYERS == 1:
        u_out = u1
    elif LAYERS == 2:
        u_out = u2
    else:
        u_out = u3
    out_bias = tl.load(b_out).to(tl.float32)

    total = tl.zeros([BD], tl.float32)
    highest = -float("inf")
    denominator = 0.0
    for l0 in range(0, kept, TILE):
        l = (l0 + tile).to(tl.int64)
        keep = kept_tokens(mask, first, l, kept, LAYOUT)
        x = tl.load(base + l[:, None] * row_stride + d[None, :], mask=keep[:, None] & (d < D)[None, :], other=0.0)
        # Slopes and deeper layers are loaded anew for every tile: registers are what is scarce.
        a = only_real(tl.dot(x, g, input_precision=PRECISION) + c[None, :], u1, H1, B1)
        f1, k1, o1 = parameters(s1, u1, u1 < H1, H1, ACT)
        a = activate(a, f1, k1, o1, ACT)
        if LAYERS > 1:
            w2t = transposed_weight(w2, u1, u2, H1, H2)
            a = tl.dot(a.to(x.dtype), w2t, input_precision=PRECISION) + vector(b2, u2, H2)[None, :]
            f2, k2, o2 = parameters(s2, u2, u2 < H2, H2, ACT)
            a = activate(only_real(a, u2, H2, B2), f2, k2, o2, ACT)
        if LAYERS > 2:
            w3t = transposed_weight(w3, u2, u3, H2, H3)
            a = tl.dot(a.to(x.dtype), w3t, input_precision=PRECISION) + vector(b3, u3, H3)[None, :]
            f3, k3, o3 = parameters(s3, u3, u3 < H3, H3, ACT)
            a = activate(only_real(a, u3, H3, B3), f3, k3, o3, ACT)
        out = vector(w_out, u_out, H_OUT)
        score = tl.sum(a * out[None, :], 1) + out_bias
        x = x.to(tl.float32)
        if NORM == 1:
            now = tl.maximum(highest, tl.max(tl.where(keep, score, -float("inf")), 0))
            shift = tl.where(now == -float("inf"), 0.0, now)  # nothing kept so far
            weight = tl.where(keep, tl.exp(score - shift), 0.0)
            factor = tl.exp(highest - shift)
            denominator = denominator * factor + tl.sum(weight, 0)
            total = total * factor + tl.sum(weight[:, None] * x, 0)
            highest = now
        else:
            if NORM == 2:
                score = sigmoid(score)
            score = tl.where(keep, score, 0.0)
            total += tl.sum(score[:, None] * x, 0)
        if SAVE:
            tl.store(attention + l * candidates, tl.where(keep, score, 0.0), mask=l < positions)
    if NORM == 1:
        total = tl.where(kept > 0, total / denominator, 0.0)
        if LAYOUT == 2:  # every position may be a pad
            total = tl.where(highest == -float("inf"), 0.0, total)
        if PARTS:
            tl.store(stats + row * 2, highest)
            tl.store(stats + row * 2 + 1, denominator)
        if SAVE:
            tl.debug_barrier()  # scores come back as weights
            for l0 in range(0, kept, TILE):
                l = (l0 + tile).to(tl.int64)
                keep = kept_tokens(mask, first, l, kept, LAYOUT)
                score = tl.load(attention + l * candidates, mask=keep, other=0.0)
                tl.store(attention + l * candidates, tl.exp(score - highest) / denominator, mask=keep)
    if SAVE and LAYOUT == 1:
        for l0 in range(tl.cdiv(kept, TILE) * TILE, positions, TILE):
            l = (l0 + tile).to(tl.int64)
            tl.store(attention + l * candidates, tl.zeros([TILE], tl.float32), mask=l < positions)
    tl.store(pooled + row * D + d, total.to(pooled.dtype.element_ty), mask=d < D)


@triton.jit
def add_parameters(at, units, first, scale, shift, COUNT: tl.constexpr, ACT: tl.constexpr):
    if ACT == 1:
        add_to(at + units, first, units < COUNT)
    if ACT == 6:
        add_to(at + units, first, units < COUNT)
        add_to(at + COUNT + units, scale, units < COUNT)
        add_to(at + 2 * COUNT + units, shift, units < COUNT)


@triton.jit
def add_matrix(at, units, below, product, UNITS: tl.constexpr, BELOW: tl.constexpr):
    inside = (units < UNITS)[:, None] & (below < BELOW)[None, :]
    add_to(at + units[:, None] * BELOW + below[None, :], product, inside)


@triton.jit
def mean_of(
    base, mask, attention, grad_attention, upstream, first, kept, candidates, row_stride,
    D: tl.constexpr, BD: tl.constexpr, LAYOUT: tl.constexpr, WEIGHTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Σ w · dw of one candidate, whose weights `attention` points to, as `grad_attention` to their gradients.

    Not the pooled vector times its gradient, which is the same but for rounding: where one weight is nearly 1, dw minus
    this must cancel.
    """
    d = tl.arange(0, BD)
    tile = tl.arange(0, TILE)
    mean = 0.0
    for l0 in range(0, kept, TILE):
        l = (l0 + tile).to(tl.int64)
        keep = kept_tokens(mask, first, l, kept, LAYOUT)
        x = tl.load(base + l[:, None] * row_stride + d[None, :], mask=keep[:, None] & (d < D)[None, :], other=0.0)
        w = tl.load(attention + l * candidates, mask=keep, other=0.0)
        dw = tl.sum(x.to(tl.float32) * upstream[None, :], 1)
        if WEIGHTS:
            dw += tl.load(grad_attention + l * candidates, mask=keep, other=0.0)
        mean += tl.sum(w * dw, 0)
    return mean


@triton.jit
def mean_kernel(
    grad_pooled, grad_attention, attention, history, offsets, lengths, mask, means, candidates, row_units,
    D: tl.constexpr, BD: tl.constexpr, LAYOUT: tl.constexpr, WEIGHTS: tl.constexpr,
    ALIGN: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One part and candidate: its terms of Σ w · dw."""
    program = tl.program_id(0).to(tl.int64)
    slot = (tl.program_id(0) // candidates).to(tl.int64)
    first, kept, _ = stretch(offsets, lengths, slot, 0, LAYOUT, True)
    at = first * candidates + tl.program_id(0) % candidates
    upstream = vector(grad_pooled + program * D, tl.arange(0, BD), D)
    row_stride = row_units * ALIGN
    mean = mean_of(
        history + first * row_stride, mask, attention + at, grad_attention + at if WEIGHTS else None, upstream,
        first, kept, candidates, row_stride, D, BD, LAYOUT, WEIGHTS, TILE,
    )  # fmt: skip
    tl.store(means + program, mean)


@triton.jit
def backward_kernel(
    grad_pooled, grad_attention, attention, means,
    target, history, offsets, lengths, mask, w1, b1, s1, w2, b2, s2, w3, b3, s3, w_out,  # inputs
    grad_target, grad_history, slabs,  # outputs
    users, candidates, length, user_units, row_units, slab_stride,
    D: tl.constexpr, H1: tl.constexpr, H2: tl.constexpr, H3: tl.constexpr,
    BD: tl.constexpr, B1: tl.constexpr, B2: tl.constexpr, B3: tl.constexpr,
    LAYERS: tl.constexpr, ACT: tl.constexpr, NORM: tl.constexpr, LAYOUT: tl.constexpr, WEIGHTS: tl.constexpr,
    ADD: tl.constexpr, PARTS: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
    FLUSH: tl.constexpr,
):  # fmt: skip
    """Users p, p + P, ... of program p of P: gradients of their targets and tokens, and the program's slab of sums.

    Recomputes the unit. WEIGHTS: the attention weights have a gradient too. ADD: a token's gradient is the sum over
    candidates, float32 in memory. A slab holds Σ z xᵀ, Σ z (x t)ᵀ, Σ z tᵀ [H1, D] each and Σ z [H1], from which the
    first layer's gradients follow; the slopes' gradients; then weight, bias and slopes of each deeper layer; then
    weight and bias of the output layer. `launch.slab_sizes` names the same order. FLUSH: what goes to the slab
    (or, of a target, to scratch behind it) after every tile instead of staying in registers: 0 nothing, 1 the sums that
    are vectors, 2 all of them.
    """
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0)
    d = tl.arange(0, BD)
    u1 = tl.arange(0, B1)
    u2 = tl.arange(0, B2)
    u3 = tl.arange(0, B3)
    tile = tl.arange(0, TILE)
    SLOPES: tl.constexpr = 3 if ACT == 6 else (1 if ACT == 1 else 0)
    row_stride = row_units * ALIGN
    element = history.dtype.element_ty

    slab = slabs + program * slab_stride
    slab_b1 = slab + 3 * H1 * D
    slab_2 = slab_b1 + (1 + SLOPES) * H1
    slab_3 = slab_2
    if LAYERS > 1:
        slab_3 = slab_2 + (H1 + 1 + SLOPES) * H2
    slab_out = slab_3
    if LAYERS > 2:
        slab_out = slab_3 + (H2 + 1 + SLOPES) * H3

    H_OUT: tl.constexpr = H1 if LAYERS == 1 else (H2 if LAYERS == 2 else H3)
    scratch = slab_out + H_OUT + 1  # FLUSH: of the target at hand, Σ z xᵀ, Σ z and c(t)

    if LAYERS == 1:
        u_out = u1
    elif LAYERS == 2:
        u_out = u2
    else:
        u_out = u3

    for user in range(program, users, programs):
        first, kept, positions = stretch(offsets, lengths, user, length, LAYOUT, PARTS)
        base = history + (first * row_stride if LAYOUT == 0 or PARTS else user * user_units * ALIGN)
        grads = grad_history + first * D
        for candidate in range(candidates):
            row = user * candidates + candidate
            weights = attention + first * candidates + candidate
            t = vector(target + row * D, d, D)
            upstream = vector(grad_pooled + row * D, d, D)
            mean = 0.0
            if NORM == 1 and not PARTS:
                grads_of_weights = grad_attention
                if WEIGHTS:
                    grads_of_weights += first * candidates + candidate
                mean = mean_of(
                    base, mask, weights, grads_of_weights, upstream, first, kept, candidates, row_stride,
                    D, BD, LAYOUT, WEIGHTS, TILE,
                )  # fmt: skip
            g, c = table(w1, b1, t, d, u1, D, H1)
            g = g.to(element)
            at_outer = scratch + u1[:, None] * D + d[None, :]
            square = (u1 < H1)[:, None] & (d < D)[None, :]
            if FLUSH > 1:
                tl.store(at_outer, tl.zeros([B1, BD], tl.float32), mask=square)
            else:
                outer = tl.zeros([B1, BD], tl.float32)
                if LAYERS > 1:
                    outer_2 = tl.zeros([B2, B1], tl.float32)
                if LAYERS > 2:
                    outer_3 = tl.zeros([B3, B2], tl.float32)
            if FLUSH > 0:
                tl.store(scratch + H1 * D + u1, tl.zeros([B1], tl.float32), mask=u1 < H1)
                tl.store(scratch + H1 * (D + 1) + u1, c, mask=u1 < H1)
                tl.debug_barrier()
            else:
                signal = tl.zeros([B1], tl.float32)
                p_first = tl.zeros([B1], tl.float32)
                p_scale = tl.zeros([B1], tl.float32)
                p_shift = tl.zeros([B1], tl.float32)
                if LAYERS > 1:
                    signal_2 = tl.zeros([B2], tl.float32)
                    q_first = tl.zeros([B2], tl.float32)
                    q_scale = tl.zeros([B2], tl.float32)
                    q_shift = tl.zeros([B2], tl.float32)
                if LAYERS > 2:
                    signal_3 = tl.zeros([B3], tl.float32)
                    r_first = tl.zeros([B3], tl.float32)
                    r_scale = tl.zeros([B3], tl.float32)
                    r_shift = tl.zeros([B3], tl.float32)
                grad_out = tl.zeros_like(u_out).to(tl.float32)
            grad_out_bias = 0.0
            for l0 in range(0, kept, TILE):
                l = (l0 + tile).to(tl.int64)
                keep = kept_tokens(mask, first, l, kept, LAYOUT)
                inside = keep[:, None] & (d < D)[None, :]
                x = tl.load(base + l[:, None] * row_stride + d[None, :], mask=inside, other=0.0)
                w = tl.load(weights + l * candidates, mask=keep, other=0.0)
                ds = tl.sum(x.to(tl.float32) * upstream[None, :], 1)
                if WEIGHTS:
                    at = grad_attention + (first + l) * candidates + candidate
                    ds += tl.load(at, mask=keep, other=0.0)
                if NORM == 1:
                    if PARTS:  # loaded anew for every tile: registers are what is scarce
                        mean = tl.load(means + row)
                    ds = w * (ds - mean)
                if NORM == 2:
                    ds = ds * w * (1.0 - w)
                ds = tl.where(keep, ds, 0.0)
                grad_out_bias += tl.sum(ds, 0)

                # Vectors and deeper weights are loaded anew for every tile: registers are what is scarce.
                out = vector(w_out, u_out, H_OUT)
                if FLUSH > 0:
                    c = vector(scratch + H1 * (D + 1), u1, H1)
                f1, k1, o1 = parameters(s1, u1, u1 < H1, H1, ACT)
                before_1 = only_real(tl.dot(x, g, input_precision=PRECISION) + c[None, :], u1, H1, B1)
                a1 = activate(before_1, f1, k1, o1, ACT)
                if LAYERS == 1:
                    grad = tl.sum(ds[:, None] * a1, 0)
                    z1 = ds[:, None] * out[None, :]
                else:
                    a1 = a1.to(element)
                    w2t = transposed_weight(w2, u1, u2, H1, H2)
                    f2, k2, o2 = parameters(s2, u2, u2 < H2, H2, ACT)
                    before_2 = tl.dot(a1, w2t, input_precision=PRECISION) + vector(b2, u2, H2)[None, :]
                    before_2 = only_real(before_2, u2, H2, B2)
                    a2 = activate(before_2, f2, k2, o2, ACT)
                    if LAYERS == 2:
                        grad = tl.sum(ds[:, None] * a2, 0)
                        z2 = ds[:, None] * out[None, :]
                    else:
                        a2 = a2.to(element)
                        w3t = transposed_weight(w3, u2, u3, H2, H3)
                        f3, k3, o3 = parameters(s3, u3, u3 < H3, H3, ACT)
                        before_3 = tl.dot(a2, w3t, input_precision=PRECISION) + vector(b3, u3, H3)[None, :]
                        before_3 = only_real(before_3, u3, H3, B3)
                        grad = tl.sum(ds[:, None] * activate(before_3, f3, k3, o3, ACT), 0)
                        z3 = ds[:, None] * out[None, :]
                        e_first, e_scale, e_shift = parameter_gradients(z3, before_3, f3, k3, o3, ACT)
                        z3 = z3 * derivative(before_3, f3, k3, o3, ACT)
                        bias_3 = tl.sum(z3, 0)
                        z3 = z3.to(element)
                        if FLUSH > 1:
                            product_3 = tl.dot(tl.trans(z3), a2, input_precision=PRECISION)
                            add_matrix(slab_3, u3, u2, product_3, H3, H2)
                        else:
                            outer_3 = tl.dot(tl.trans(z3), a2, outer_3, input_precision=PRECISION)
                        if FLUSH > 0:
                            add_to(slab_3 + H3 * H2 + u3, bias_3, u3 < H3)
                            add_parameters(slab_3 + H3 * (H2 + 1), u3, e_first, e_scale, e_shift, H3, ACT)
                        else:
                            signal_3 += bias_3
                            r_first += e_first
                            r_scale += e_scale
                            r_shift += e_shift
                        z2 = tl.dot(z3, tl.trans(w3t), input_precision=PRECISION)
                    e_first, e_scale, e_shift = parameter_gradients(z2, before_2, f2, k2, o2, ACT)
                    z2 = z2 * derivative(before_2, f2, k2, o2, ACT)
                    bias_2 = tl.sum(z2, 0)
                    z2 = z2.to(element)
                    if FLUSH > 1:
                        product_2 = tl.dot(tl.trans(z2), a1, input_precision=PRECISION)
                        add_matrix(slab_2, u2, u1, product_2, H2, H1)
                    else:
                        outer_2 = tl.dot(tl.trans(z2), a1, outer_2, input_precision=PRECISION)
                    if FLUSH > 0:
                        add_to(slab_2 + H2 * H1 + u2, bias_2, u2 < H2)
                        add_parameters(slab_2 + H2 * (H1 + 1), u2, e_first, e_scale, e_shift, H2, ACT)
                    else:
                        signal_2 += bias_2
                        q_first += e_first
                        q_scale += e_scale
                        q_shift += e_shift
                    z1 = tl.dot(z2, tl.trans(w2t), input_precision=PRECISION)
                e_first, e_scale, e_shift = parameter_gradients(z1, before_1, f1, k1, o1, ACT)
                z1 = z1 * derivative(before_1, f1, k1, o1, ACT)
                bias_1 = tl.sum(z1, 0)
                z1 = z1.to(element)
                if FLUSH > 1:
                    add_to(at_outer, tl.dot(tl.trans(z1), x, input_precision=PRECISION), square)
                else:
                    outer = tl.dot(tl.trans(z1), x, outer, input_precision=PRECISION)
                if FLUSH > 0:
                    add_to(scratch + H1 * D + u1, bias_1, u1 < H1)
                    add_parameters(slab_b1 + H1, u1, e_first, e_scale, e_shift, H1, ACT)
                    add_to(slab_out + u_out, grad, u_out < H_OUT)
                else:
                    signal += bias_1
                    p_first += e_first
                    p_scale += e_scale
                    p_shift += e_shift
                    grad_out += grad
                dx = tl.dot(z1, tl.trans(g), input_precision=PRECISION)
                dx += w[:, None] * vector(grad_pooled + row * D, d, D)[None, :]
                dx = tl.where(keep[:, None], dx, 0.0)
                at = grads + l[:, None] * D + d[None, :]
                inside = (l < positions)[:, None] & (d < D)[None, :]
                if ADD:
                    dx += tl.load(at, mask=inside & (candidate > 0), other=0.0)
                tl.store(at, dx.to(grad_history.dtype.element_ty), mask=inside)
                if FLUSH > 0:
                    tl.debug_barrier()  # the next tile adds to what this one wrote

            if FLUSH > 1:
                outer = tl.load(at_outer, mask=square, other=0.0)
            if FLUSH > 0:
                signal = vector(scratch + H1 * D, u1, H1)
            at = w1 + u1[:, None] * (4 * D) + d[None, :]
            w_q = tl.load(at, mask=square, other=0.0).to(tl.float32)
            w_d = tl.load(at + 2 * D, mask=square, other=0.0).to(tl.float32)
            w_p = tl.load(at + 3 * D, mask=square, other=0.0).to(tl.float32)
            dt = tl.sum(outer * w_p + signal[:, None] * (w_q + w_d), 0)
            tl.store(grad_target + row * D + d, dt.to(grad_target.dtype.element_ty), mask=d < D)
            at = slab + u1[:, None] * D + d[None, :]
            add_to(at, outer, square)
            add_to(at + H1 * D, outer * t[None, :], square)
            add_to(at + 2 * H1 * D, signal[:, None] * t[None, :], square)
            add_to(slab_b1 + u1, signal, u1 < H1)
            if FLUSH < 2:
                if LAYERS > 1:
                    add_matrix(slab_2, u2, u1, outer_2, H2, H1)
                if LAYERS > 2:
                    add_matrix(slab_3, u3, u2, outer_3, H3, H2)
            if FLUSH == 0:
                add_parameters(slab_b1 + H1, u1, p_first, p_scale, p_shift, H1, ACT)
                if LAYERS > 1:
                    add_to(slab_2 + H2 * H1 + u2, signal_2, u2 < H2)
                    add_parameters(slab_2 + H2 * (H1 + 1), u2, q_first, q_scale, q_shift, H2, ACT)
                if LAYERS > 2:
                    add_to(slab_3 + H3 * H2 + u3, signal_3, u3 < H3)
                    add_parameters(slab_3 + H3 * (H2 + 1), u3, r_first, r_scale, r_shift, H3, ACT)
                add_to(slab_out + u_out, grad_out, u_out < H_OUT)
            tl.store(slab_out + H_OUT, tl.load(slab_out + H_OUT) + grad_out_bias)
            tl.debug_barrier()  # the next target adds to what this one wrote
        if LAYOUT == 1:
            for l0 in range(tl.cdiv(kept, TILE) * TILE, positions, TILE):
                l = (l0 + tile).to(tl.int64)
                at = grads + l[:, None] * D + d[None, :]
                nothing = tl.zeros([TILE, BD], grad_history.dtype.element_ty)
                tl.store(at, nothing, mask=(l < positions)[:, None] & (d < D)[None, :])
