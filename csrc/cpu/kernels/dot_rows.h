// Rows of softmax weights over a chunk of tokens: what both forms of dot-product attention do with them.
#pragma once

#include <cmath>

#include "cpu/kernels/tokens.h"

namespace mixpol::cpu::MIXPOL_ISA {

static_assert(CHUNK % 4 == 0 && CHUNK % W == 0);

// What the softmax of each row knows by now.
struct Softmax {
    float highest[DOT_ROWS], totals[DOT_ROWS];  // the shift, and Σ exp(score - shift) when finished
    double total[DOT_ROWS];                     // that sum so far; in the backward Σ w
    double mean[DOT_ROWS];                      // Σ w dw
};

// out[rows][wide] += weights [rows][CHUNK] times the n tokens.
[[maybe_unused]] static __attribute__((noinline)) void pool(const float* weights, int rows,
                                                            const float* const* tokens, int n, int wide,
                                                            float* out) {
    for_rows(rows, [&]<int R>(int r) __attribute__((always_inline)) {
        for_columns(wide, [&]<int V>(int c) __attribute__((always_inline)) {
            Tile<R, V> acc;
            clear(acc);
            const float* w = weights + r * CHUNK;
            for (int i = 0; i < n; i++, w++) {
                vec column[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) column[v] = load(tokens[i] + c + v * W);
#pragma GCC unroll 6
                for (int k = 0; k < R; k++) {
                    vec weight = broadcast(w[k * CHUNK]);
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) acc.at[k][v] = fma(weight, column[v], acc.at[k][v]);
                }
            }
            add_tile(acc, out + r * int64_t{wide} + c, wide);
            store_tile(acc, out + r * int64_t{wide} + c, wide);
        });
    });
}

// out[i] (+)= Σ_k a[k][i] · b[k], for n tokens i; a is [depth][CHUNK].
[[maybe_unused]] static __attribute__((noinline)) void combine(const float* a, int depth,
                                                               const float* const* b, int n, int wide,
                                                               float* const* out, bool add) {
    for_rows(n, [&]<int R>(int i) __attribute__((always_inline)) {
        for_columns(wide, [&]<int V>(int c) __attribute__((always_inline)) {
            Tile<R, V> acc;
            clear(acc);
            accumulate_tn(acc, a + i, CHUNK, b, c, depth);
#pragma GCC unroll 6
            for (int k = 0; k < R; k++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    float* at = out[i + k] + c + v * W;
                    store(at, add ? load(at) + acc.at[k][v] : acc.at[k][v]);
                }
        });
    });
}

MIXPOL_INLINE int whole_vectors(int n) { return (n + W - 1) & ~(W - 1); }

// What a row's scores are shifted by: about the largest, or 0 where all of them are -inf.
MIXPOL_INLINE float shift_of(float highest) { return highest == -INFINITY ? 0.0f : highest; }

// A chunk's scores [rows][CHUNK] to exp(score - shift), under a running softmax; rescales what was pooled,
// [rows][wide].
[[maybe_unused]] static __attribute__((noinline)) void weigh(Softmax& s, float* scores, int rows, int n,
                                                             int wide, LongSums& pooled) {
    const int filled = whole_vectors(n);
    for (int r = 0; r < rows; r++) {
        float* p = scores + r * CHUNK;
        for (int i = n; i < filled; i++) p[i] = -INFINITY;
        vec largest = broadcast(-INFINITY);
        for (int i = 0; i < filled; i += W) {
            vec score = load(p + i);
            largest = score > largest ? score : largest;  // a NaN is passed over here, and stays in the sum
        }
        float now = largest[0];
        for (int i = 1; i < W; i++) now = largest[i] > now ? largest[i] : now;
        if (raises(s.highest[r], now)) {
            vec factor = exp(broadcast(s.highest[r] - now));
            s.total[r] *= factor[0];
            pooled.scale(r * int64_t{wide}, wide, factor);
            s.highest[r] = now;
        }
        vec shift = broadcast(shift_of(s.highest[r])), total{};
        for (int i = 0; i < filled; i += W) {
            vec weight = exp(load(p + i) - shift);
            total += weight;
            store(p + i, weight);
        }
        s.total[r] += sum(total);
    }
}

// Scores to weights, with the finished statistics.
MIXPOL_INLINE void normalise(float* p, int n, float highest, float total) {
    vec shift = broadcast(shift_of(highest)), sum = broadcast(total);
    for (int i = 0; i < n; i += W) store(p + i, exp(load(p + i) - shift) / sum);
}

typedef double doubles __attribute__((vector_size(W * 8)));  // one for each float of a vec

MIXPOL_INLINE double sum(doubles v) {
    double total = 0;
    for (int i = 0; i < W; i++) total += v[i];
    return total;
}

// Of a chunk in the backward: scores to weights w, and what they add to Σ w and Σ w dw. That sum comes from
// the same products, not from the pooled vector, and is divided by Σ w, which rounding keeps from 1: where
// one weight is nearly 1, dw minus it must cancel to the last bit.
[[maybe_unused]] static __attribute__((noinline)) void weigh_again(Softmax& s, float* scores,
                                                                   float* weight_grads, int rows, int n) {
    const int filled = whole_vectors(n);
    for (int r = 0; r < rows; r++) {
        float *w = scores + r * CHUNK, *dw = weight_grads + r * CHUNK;
        for (int i = n; i < filled; i++) w[i] = -INFINITY, dw[i] = 0;
        normalise(w, n, s.highest[r], s.totals[r]);
        doubles total{}, mean{};
        for (int i = 0; i < filled; i += W) {
            const doubles weight = __builtin_convertvector(load(w + i), doubles);
            total += weight;
            mean += weight * __builtin_convertvector(load(dw + i), doubles);
        }
        s.total[r] += sum(total);
        s.mean[r] += sum(mean);
    }
}

// dw of a chunk to the gradients of its scores, w (dw - mean).
[[maybe_unused]] static __attribute__((noinline)) void to_score_grads(const Softmax& s, const float* weights,
                                                                      float* grads, int rows, int n) {
    for (int r = 0; r < rows; r++) {
        // In two parts, since the double itself does not fit into a float.
        const double mean = s.total[r] > 0 ? s.mean[r] / s.total[r] : 0;
        const float high = static_cast<float>(mean);
        const vec head = broadcast(high), tail = broadcast(static_cast<float>(mean - high));
        for (int at = r * CHUNK; at < r * CHUNK + n; at += W)
            store(grads + at, load(weights + at) * ((load(grads + at) - head) - tail));
    }
}

}  // namespace mixpol::cpu::MIXPOL_ISA
