// Sums and products of rows, and sums over long histories that keep their low bits.
#pragma once

#include "cpu/gemm.h"

namespace mixpol::cpu::MIXPOL_ISA {

// Whether a running softmax moves its shift to a larger score. Each move rounds what was summed so far, so
// that scores that rise little by little move it seldom; no exponential passes e.
MIXPOL_INLINE bool raises(float shift, float score) { return score > shift + 1.0f; }

// Calls body.template operator()<V>(column) over columns, a multiple of 16, in blocks of sums that are enough
// side by side to hide each other's latency.
constexpr int SUMS = 8;
template <class Body>
MIXPOL_INLINE void for_sums(int columns, Body&& body) {
    int c = 0;
    for (; c + SUMS * W <= columns; c += SUMS * W) body.template operator()<SUMS>(c);
    for (; c < columns; c += 16) body.template operator()<16 / W>(c);
}

MIXPOL_INLINE float dot(const float* a, const float* b, int padded_width) {
    vec s{};
    for (int i = 0; i < padded_width; i += W) s = fma(load(a + i), load(b + i), s);
    return sum(s);
}

// out[i] = rows[i] · b, each as `dot` has it.
MIXPOL_INLINE void rows_dot(const float* const* rows, int n, const float* b, int padded_width, float* out) {
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        vec s[4]{};
        for (int c = 0; c < padded_width; c += W) {
            const vec x = load(b + c);
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) s[k] = fma(load(rows[i + k] + c), x, s[k]);
        }
        const quad four = sums(s[0], s[1], s[2], s[3]);
        std::memcpy(out + i, &four, sizeof four);
    }
    for (; i < n; i++) out[i] = dot(rows[i], b, padded_width);
}

// out += a * x
MIXPOL_INLINE void axpy(float* out, float a, const float* x, int padded_width) {
    for (int i = 0; i < padded_width; i += W) store(out + i, fma(broadcast(a), load(x + i), load(out + i)));
}

template <int V>
MIXPOL_INLINE void column_sums(const float* rows, int64_t ld, int n, vec (&total)[V]) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) total[v] = vec{};
    for (int r = 0; r < n; r++, rows += ld)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) total[v] += load(rows + v * W);
}

// out += the sum of n rows.
MIXPOL_INLINE void add_rows(float* out, const float* rows, int64_t ld, int n, int padded_width) {
    for_sums(padded_width, [&]<int V>(int c) __attribute__((always_inline)) {
        vec total[V];
        column_sums(rows + c, ld, n, total);
        for (int v = 0; v < V; v++) store(out + c + v * W, load(out + c + v * W) + total[v]);
    });
}

// out += x for sums over many chunks, where one chain would lose its low bits: `compensation` gathers what
// the additions round away (Knuth's exact difference), for `compensated`. `out` itself is the plain chain.
MIXPOL_INLINE void add_compensated(float* out, float* compensation, vec x) {
    const vec before = load(out), after = before + x, added = after - before;
    store(compensation, load(compensation) + ((before - (after - added)) + (x - added)));
    store(out, after);
}

// The sum with its compensation, which of an infinite sum is NaN and does not count.
MIXPOL_INLINE vec compensated(vec sum, vec compensation) {
    return compensation - compensation == vec{} ? sum + compensation : sum;
}

MIXPOL_INLINE void compensate_sums(float* sums, const float* compensation, int64_t floats) {
    for (int64_t i = 0; i < floats; i += W)
        store(sums + i, compensated(load(sums + i), load(compensation + i)));
}

MIXPOL_INLINE void add_rows(float* out, float* compensation, const float* rows, int64_t ld, int n,
                            int padded_width) {
    for_sums(padded_width, [&]<int V>(int c) __attribute__((always_inline)) {
        vec total[V];
        column_sums(rows + c, ld, n, total);
        for (int v = 0; v < V; v++) add_compensated(out + c + v * W, compensation + c + v * W, total[v]);
    });
}

// Sums to which a chunk adds in every element: one chain of a chunk's sums loses its low bits where there are
// many. After every FOLD chunks they move to a total that does not; fewer stay what they are.
constexpr int FOLD = 32;
[[maybe_unused]] static __attribute__((noinline)) void move_sums(float* sums, float* total,
                                                                 float* compensation, int64_t floats) {
    for (int64_t i = 0; i < floats; i += W) {
        add_compensated(total + i, compensation + i, load(sums + i));
        store(sums + i, vec{});
    }
}

class LongSums {
 public:
    LongSums() = default;
    // `spare`: [2][floats], not read before the first FOLD chunks are over. Many sums move more seldom.
    inline __attribute__((always_inline)) LongSums(float* sums, int64_t floats, float* spare)
        : sums_(sums),
          total_(spare),
          lost_(spare ? spare + floats : nullptr),
          floats_(floats),
          period_(floats > SEEN * FOLD ? floats / SEEN : FOLD) {}

    inline __attribute__((always_inline)) void restart() { chunks_ = 0, moved_ = false; }

    // Behind each chunk.
    inline __attribute__((always_inline)) void step() {
        if (++chunks_ % period_ == 0 && floats_ > 0) move();
    }

    // The sums become what was added to them in all.
    inline __attribute__((always_inline)) void finish() {
        if (!moved_) return;
        move();
        for (int64_t i = 0; i < floats_; i += W)
            store(sums_ + i, compensated(load(total_ + i), load(lost_ + i)));
    }

    // All that was added to [at, at + floats) so far times a factor.
    inline __attribute__((always_inline)) void scale(int64_t at, int64_t floats, vec factor) {
        for (int64_t i = at; i < at + floats; i += W) store(sums_ + i, load(sums_ + i) * factor);
        for (int64_t i = at; moved_ && i < at + floats; i += W) {
            store(total_ + i, load(total_ + i) * factor);
            store(lost_ + i, load(lost_ + i) * factor);
        }
    }

 private:
    static constexpr int64_t SEEN = 2048;  // moving so many sums takes a small part of a chunk's time

    inline __attribute__((always_inline)) void move() {
        if (!moved_) std::memset(total_, 0, sizeof(float) * 2 * floats_);
        moved_ = true;
        move_sums(sums_, total_, lost_, floats_);
    }

    float *sums_ = nullptr, *total_ = nullptr, *lost_ = nullptr;
    int64_t floats_ = 0, period_ = FOLD, chunks_ = 0;
    bool moved_ = false;
};

// out += Σ weights[i] rows[i]; `compensation` as in add_compensated, or null where that is the whole sum.
MIXPOL_INLINE void add_weighted(float* out, float* compensation, const float* weights,
                                const float* const* rows, int n, int padded_width) {
    for_sums(padded_width, [&]<int V>(int c) __attribute__((always_inline)) {
        vec total[V]{};
        for (int i = 0; i < n; i++) {
            const vec weight = broadcast(weights[i]);
            const float* row = rows[i] + c;
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) total[v] = fma(weight, load(row + v * W), total[v]);
        }
        for (int v = 0; v < V; v++) {
            float* const to = out + c + v * W;
            if (compensation) {
                add_compensated(to, compensation + c + v * W, total[v]);
            } else {
                store(to, load(to) + total[v]);
            }
        }
    });
}

MIXPOL_INLINE void zero(float* out, int64_t floats) { std::memset(out, 0, sizeof(float) * floats); }
}  // namespace mixpol::cpu::MIXPOL_ISA
