// Products of bfloat16 pairs: float32 sums of a0 * b0 + a1 * b1, one pair a lane, which AVX512-BF16 does in
// one instruction: twice the arithmetic of a fused multiply-add. Operands in float32 are rounded for it.
#pragma once

#include "cpu/gemm.h"
#include "cpu/half.h"

namespace mixpol::cpu::MIXPOL_ISA {

// A lane is two bfloat16 numbers, the first in the low half.
typedef uvec pairs;

MIXPOL_INLINE pairs load_pairs(const uint32_t* p) {
    pairs v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

MIXPOL_INLINE void store_pairs(uint32_t* p, pairs v) { std::memcpy(p, &v, sizeof v); }

#if defined(MIXPOL_ISA_avx512)

// Assembly: this level also serves CPUs without these instructions, so the compiler must not choose them
// itself. Pass::halves says that they are there.
MIXPOL_INLINE vec dot_pairs(vec acc, pairs a, pairs b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}

MIXPOL_INLINE halves round_bf16(vec v) {
    halves h;
    asm("vcvtneps2bf16 %1, %0" : "=v"(h) : "v"(v));
    return h;
}

#else

// The same in the instruction's order, for tests; it flushes numbers below 2^-126, and this does not.
MIXPOL_INLINE vec dot_pairs(vec acc, pairs a, pairs b) {
    const pairs bits[4] = {a << 16, b << 16, a & 0xffff0000u, b & 0xffff0000u};
    vec x[4];
    std::memcpy(x, bits, sizeof x);
    return fma(x[0], x[1], fma(x[2], x[3], acc));
}

MIXPOL_INLINE halves round_bf16(vec v) { return to_bf16(v); }

#endif

MIXPOL_INLINE pairs pack_pairs(vec first, vec second) {
    return __builtin_convertvector(round_bf16(first), uvec) |
           __builtin_convertvector(round_bf16(second), uvec) << 16;
}

// Scratch for operands in bfloat16; without memory the products are in float32.
struct Halves {
    uint32_t* rows = nullptr;  // a chunk's rows, [CHUNK][widest / 2]
    // Of two tokens each: their elements beside each other, [CHUNK][widest].
    uint32_t *left = nullptr, *right = nullptr;
    int64_t widest = 0;

    bool on() const { return rows != nullptr; }
};

static inline Halves carve_halves(int64_t widest, bool backward, Arena& arena) {
    auto take = [&](int64_t elements) { return reinterpret_cast<uint32_t*>(arena.take(elements)); };
    Halves h;
    h.widest = widest;
    h.rows = take(CHUNK * widest / 2);
    if (backward) h.left = take(CHUNK * widest), h.right = take(CHUNK * widest);
    return h;
}

// to[i] = rows[i] of `depth` floats in bfloat16, and 0 behind an odd depth.
MIXPOL_INLINE void narrow_rows(const float* const* rows, int n, int depth, const uint32_t** to,
                               uint32_t* memory, int64_t ld) {
    for (int i = 0; i < n; i++, memory += ld) {
        uint16_t* out = reinterpret_cast<uint16_t*>(memory);
        narrow_with(out, rows[i], depth, [](vec v) { return round_bf16(v); });
        if (depth % 2) out[depth] = 0;
        to[i] = memory;
    }
}

// acc[r][:] += sum_k a[r][k] * b[k * ldb + :], over `depth` pairs.
template <int R, int V>
MIXPOL_INLINE void accumulate_pairs(Tile<R, V>& acc, const uint32_t* const* a, int depth, const uint32_t* b,
                                    int ldb) {
    const uint32_t* row[R];
    for (int r = 0; r < R; r++) row[r] = a[r];
    for (int k = 0; k < depth; k++, b += ldb) {
        pairs column[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) column[v] = load_pairs(b + v * W);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            const pairs x = row[r][k] - pairs{};
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) acc.at[r][v] = dot_pairs(acc.at[r][v], x, column[v]);
        }
    }
}

// acc[r][:] += sum_i a[i * ld + r] * b[i * ld + :], over pairs of tokens.
template <int R, int V>
MIXPOL_INLINE void accumulate_token_pairs(Tile<R, V>& acc, const uint32_t* a, const uint32_t* b, int64_t ld,
                                          int depth) {
    for (int i = 0; i < depth; i++, a += ld, b += ld) {
        pairs column[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) column[v] = load_pairs(b + v * W);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            const pairs x = a[r] - pairs{};
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) acc.at[r][v] = dot_pairs(acc.at[r][v], x, column[v]);
        }
    }
}

// to[i] = rows 2i and 2i + 1 of n, element by element; behind an odd n zeros.
MIXPOL_INLINE void pair_rows(const float* const* rows, int n, int columns, uint32_t* to, int64_t ld) {
    for (int i = 0; i < n; i += 2, to += ld)
        for (int c = 0; c < columns; c += W)
            store_pairs(to + c, pack_pairs(load(rows[i] + c), i + 1 < n ? load(rows[i + 1] + c) : vec{}));
}

// Rows of a packed matrix [depth][columns] in panels, in place to rows of pairs; panels begin where they did.
MIXPOL_INLINE void pair_in_place(float* matrix, int depth, int columns) {
    for (int c = 0; c < columns; c += PANEL) {
        const int width = panel_width(columns, c);
        const float* from = matrix + panel_at(depth, c);
        uint32_t* to = reinterpret_cast<uint32_t*>(matrix + panel_at(depth, c));
        for (int k = 0; k < depth; k += 2, to += width) {
            const float* rows[] = {from + k * int64_t{width}, from + (k + 1) * int64_t{width}};
            pair_rows(rows, depth - k < 2 ? 1 : 2, width, to, width);
        }
    }
}

// gemm.h's multiply_panels with panels of pairs of rows.
[[maybe_unused]] static __attribute__((noinline)) void multiply(const float* const* a, int rows, int depth,
                                                                const uint32_t* b, int columns,
                                                                const float* init, float* out, int64_t ldo,
                                                                const Halves& halves) {
    const uint32_t* narrow[CHUNK];
    narrow_rows(a, rows, depth, narrow, halves.rows, halves.widest / 2);
    for_rows(rows, [&]<int R>(int r) __attribute__((always_inline)) {
        for_columns(columns, [&]<int V>(int c) __attribute__((always_inline)) {
            Tile<R, V> acc;
            clear(acc);
            accumulate_pairs(acc, narrow + r, (depth + 1) / 2, b + panel_at(depth, c), V * W);
            if (init) add_tile(acc, init + c, 0);
            store_tile(acc, out + r * ldo + c, ldo);
        });
    });
}

// gemm.h's add_transposed_panels over pairs of tokens.
[[maybe_unused]] static __attribute__((noinline)) void add_transposed(const float* const* a, int rows,
                                                                      const float* const* b, int tokens,
                                                                      int columns, float* out,
                                                                      const Halves& halves) {
    const Halves low = halves;
    pair_rows(a, tokens, padded(rows), low.left, low.widest);
    pair_rows(b, tokens, columns, low.right, low.widest);
    for_rows(rows, [&]<int R>(int r) __attribute__((always_inline)) {
        for_columns(columns, [&]<int V>(int c) __attribute__((always_inline)) {
            Tile<R, V> acc;
            clear(acc);
            accumulate_token_pairs(acc, low.left + r, low.right + c, low.widest, (tokens + 1) / 2);
            float* to = out + panel_at(rows, c) + r * int64_t{V * W};
            add_tile(acc, to, V * W);
            store_tile(acc, to, V * W);
        });
    });
}

}  // namespace mixpol::cpu::MIXPOL_ISA
