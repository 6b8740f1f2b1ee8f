// Dice normalised over the units of one token, and its backward.
#pragma once

#include "cpu/kernels/tokens.h"
#include "math/activations.h"

namespace mixpol::cpu::MIXPOL_ISA {

// What the units of one row share, by Dice as torch-rechub has it (`basic/activation.py`):
// n(x_j) = (x_j - mean) / sqrt(Σ ((x_k - mean)² + epsilon_k)). The columns that pad a row do not count.
struct RowMoments {
    vec mean, rsqrt;
};

MIXPOL_INLINE float sum_of(const float* row, int hp) {
    vec total{};
    for (int c = 0; c < hp; c += W) total += load(row + c);
    return sum(total);
}

// `padding`: Σ epsilon_k.
MIXPOL_INLINE RowMoments row_moments(const float* row, int h, int hp, float padding) {
    const vec mean = broadcast(sum_of(row, hp) / static_cast<float>(h));
    vec squares{};
    for (int c = 0; c < hp; c += W) {
        const vec off = first_lanes(load(row + c) - mean, h - c);
        squares = fma(off, off, squares);
    }
    return {mean, broadcast(1.0f / __builtin_sqrtf(sum(squares) + padding))};
}

MIXPOL_INLINE void dice_rows(const float* before, const float* slope, int n, int h, float* after) {
    const int hp = padded(h);
    const float padding = sum_of(slope + hp, hp);
    for (int r = 0; r < n; r++) {
        const float* row = before + r * int64_t{hp};
        const RowMoments m = row_moments(row, h, hp, padding);
        for (int c = 0; c < hp; c += W) {
            const vec x = load(row + c);
            store(after + r * int64_t{hp} + c, math::dice<Simd>(x, (x - m.mean) * m.rsqrt, load(slope + c)));
        }
    }
}

// As activation_backward, for all columns. With dn_j the gradient of n(x_j): that of x_j through n is
// rsqrt (dn_j - Σ dn / H - n_j Σ dn n), and that of each epsilon is -rsqrt² / 2 Σ dn n.
MIXPOL_INLINE void dice_rows_backward(const float* before, int n, const float* slope, int h, float* grads,
                                      int64_t ldg, float* sums, float* scratch) {
    const int hp = padded(h);
    const float padding = sum_of(slope + hp, hp);
    float *by_n = scratch, *alpha = scratch + hp, epsilon = 0;
    zero(alpha, hp);
    for (int r = 0; r < n; r++) {
        const float* row = before + r * int64_t{hp};
        float* grad = grads + r * ldg;
        const RowMoments m = row_moments(row, h, hp, padding);
        vec total{}, product{};
        for (int c = 0; c < hp; c += W) {
            const vec x = load(row + c), normal = (x - m.mean) * m.rsqrt, g = load(grad + c);
            const math::DiceDerivatives<vec> d = math::dice_derivatives<Simd>(x, normal, load(slope + c));
            const vec dn = first_lanes(g * d.n, h - c);
            total += dn;
            product = fma(dn, normal, product);
            store(alpha + c, fma(g, d.alpha, load(alpha + c)));
            store(by_n + c, dn);
            store(grad + c, g * d.x);
        }
        const float along = sum(product);
        const vec mean = broadcast(sum(total) / static_cast<float>(h));
        for (int c = 0; c < hp; c += W) {
            const vec normal = (load(row + c) - m.mean) * m.rsqrt;
            const vec through = m.rsqrt * (load(by_n + c) - mean - normal * broadcast(along));
            store(grad + c, load(grad + c) + first_lanes(through, h - c));
        }
        epsilon -= 0.5f * m.rsqrt[0] * m.rsqrt[0] * along;
    }
    for (int c = 0; c < hp; c += W) {
        store(sums + c, load(sums + c) + load(alpha + c));
        store(sums + hp + c, load(sums + hp + c) + broadcast(epsilon));
    }
}

}  // namespace mixpol::cpu::MIXPOL_ISA
