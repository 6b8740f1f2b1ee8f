// The target-conditioned linear (DESIGN, "The one idea"): x · G(t) with G(t) = tokenᵀ + diag(t) productᵀ, one
// small table per target. The activation unit's first layer and the full TAPF gate have both blocks; the
// plain TAPF gate has the product only.
#pragma once

#include "cpu/kernels/tokens.h"

namespace mixpol::cpu::MIXPOL_ISA {

// G [depth][columns] from the transposed blocks; token_t may be null.
MIXPOL_INLINE void build_table(float* table, const float* token_t, const float* product_t,
                               const float* target, int depth, int columns) {
    for (int k = 0; k < depth; k++) {
        vec t = broadcast(target[k]);
        for (int64_t at = int64_t{k} * columns; at < int64_t{k + 1} * columns; at += W)
            store(table + at, fma(t, load(product_t + at), token_t ? load(token_t + at) : vec{}));
    }
}

// Gᵀ [units][wide] from the blocks themselves; token_n may be null.
MIXPOL_INLINE void build_table_n(float* table, const float* token_n, const float* product_n,
                                 const float* target, int units, int wide) {
    for (int h = 0; h < units; h++)
        for (int c = 0; c < wide; c += W) {
            int64_t at = h * int64_t{wide} + c;
            store(table + at,
                  fma(load(target + c), load(product_n + at), token_n ? load(token_n + at) : vec{}));
        }
}

// The blocks' gradients: Σ z xᵀ over a target's tokens (into sum_token, if any) and Σ z (t * x)ᵀ over those
// of all targets, and the target's share Σ_h (Σ z xᵀ)[h] * product[h].
struct Outer {
    float* partial;                  // [units][wide], one target's sum between chunks
    const float* product_n;          // [units][wide]
    float *sum_token, *sum_product;  // [units][wide]
    float* grad_target;              // [wide]
};

// Adds one chunk: signal [n][ld] and token rows. On a target's last chunk the sum is folded, straight from
// registers.
[[maybe_unused]] static __attribute__((noinline)) void add_outer(const Outer& o, const float* signal, int ld,
                                                                 int units, const float* const* tokens, int n,
                                                                 int wide, const float* target, bool first,
                                                                 bool last) {
    for_rows(units, [&]<int R>(int r) __attribute__((always_inline)) {
        for_columns(wide, [&]<int V>(int c) __attribute__((always_inline)) {
            Tile<R, V> acc;
            const int64_t corner = r * int64_t{wide} + c;
            clear(acc);
            accumulate_tn(acc, signal + r, ld, tokens, c, n);
            if (!first) add_tile(acc, o.partial + corner, wide);
            if (!last) return store_tile(acc, o.partial + corner, wide);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                vec dt = load(o.grad_target + c + v * W), t = load(target + c + v * W);
#pragma GCC unroll 6
                for (int i = 0; i < R; i++) {
                    const int64_t at = corner + i * int64_t{wide} + v * W;
                    vec x = acc.at[i][v];
                    if (o.sum_token) store(o.sum_token + at, load(o.sum_token + at) + x);
                    store(o.sum_product + at, fma(t, x, load(o.sum_product + at)));
                    dt = fma(x, load(o.product_n + at), dt);
                }
                store(o.grad_target + c + v * W, dt);
            }
        });
    });
}

}  // namespace mixpol::cpu::MIXPOL_ISA
