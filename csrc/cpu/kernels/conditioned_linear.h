// The target-conditioned linear (DESIGN, "The one idea"): x · G(t) with G(t) = tokenᵀ + diag(t) productᵀ, one
// small table per target. The activation unit's first layer and the full TAPF gate have both blocks; the
// plain TAPF gate has the product only. Tables and blocks lie in panels (cpu/gemm.h), and a panel serves all
// targets of a chunk before the next one is read: of short histories the blocks weigh more than the tokens.
#pragma once

#include "cpu/kernels/pairs.h"
#include "cpu/kernels/tokens.h"

namespace mixpol::cpu::MIXPOL_ISA {

// What a target's table is made of, [depth][columns] in panels.
struct Blocks {
    const float *token, *product;  // token may be null
    int depth, columns;
    // Of Gᵀ the target scales columns, and one more row may follow: its own of [GROUP][columns], or null.
    bool transposed;
    const float* extra;

    int rows() const { return depth + (extra != nullptr); }
};

// V vectors of row k of G(t), from column c.
template <int V>
MIXPOL_INLINE void table_row(const Blocks& b, const float* target, int k, int c, vec (&row)[V]) {
    const int64_t at = panel_at(b.depth, c) + k * int64_t{V * W};
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
        const vec t = b.transposed ? load(target + c + v * W) : broadcast(target[k]);
        row[v] = fma(t, load(b.product + at + v * W), b.token ? load(b.token + at + v * W) : vec{});
    }
}

// One panel of a target's table.
template <int V>
MIXPOL_INLINE void build_panel(const Blocks& b, const Span& span, int c, float* panel) {
    vec row[V];
    for (int k = 0; k < b.depth; k++, panel += V * W) {
        table_row(b, span.target, k, c, row);
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(panel + v * W, row[v]);
    }
    if (b.extra)
        for (int v = 0; v < V; v++)
            store(panel + v * W, load(b.extra + span.in_group * int64_t{b.columns} + c + v * W));
}

// The same with two rows of the table in one of pairs.
template <int V>
MIXPOL_INLINE void build_pairs(const Blocks& b, const Span& span, int c, uint32_t* panel) {
    const float* const extra = b.extra ? b.extra + span.in_group * int64_t{b.columns} + c : nullptr;
    vec row[2][V];
    for (int k = 0; k < b.rows(); k += 2, panel += V * W) {
        for (int i = 0; i < 2; i++) {
            if (k + i < b.depth) {
                table_row(b, span.target, k + i, c, row[i]);
            } else {
                for (int v = 0; v < V; v++) row[i][v] = k + i < b.rows() ? load(extra + v * W) : vec{};
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store_pairs(panel + v * W, pack_pairs(row[0][v], row[1][v]));
    }
}

// acc[r][:] += rows[r] · G(t), with a table that is never stored.
template <int R, int V>
MIXPOL_INLINE void accumulate_unbuilt(Tile<R, V>& acc, const Blocks& b, const Span& span,
                                      const float* const* rows, int c) {
    const float* x[R];
    for (int r = 0; r < R; r++) x[r] = rows[r];
    vec column[V];
    auto add = [&](int k) __attribute__((always_inline)) {
#pragma GCC unroll 6
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) acc.at[r][v] = fma(broadcast(x[r][k]), column[v], acc.at[r][v]);
    };
    for (int k = 0; k < b.depth; k++) {
        table_row(b, span.target, k, c, column);
        add(k);
    }
    if (!b.extra) return;
    for (int v = 0; v < V; v++) column[v] = load(b.extra + span.in_group * int64_t{b.columns} + c + v * W);
    add(b.depth);
}

// The product of a chunk's rows with their targets' tables: calls emit(tile, span, row, column). Whole
// histories of up to a tile's rows do without a table; of the others a panel is made in `table` on the first
// chunk, and there it stays for the next ones. With `halves` a table's products are in bfloat16.
template <class Emit>
MIXPOL_INLINE void conditioned(const Blocks& blocks, const Chunk& chunk, const float* const* rows,
                               float* table, const Halves& halves, Emit&& emit) {
    const Blocks b = blocks;  // a copy that no store can change
    const int count = chunk.count, coming = chunk.next.n;
    const char* const* const next = chunk.next.rows;
    const int64_t row_bytes = chunk.next.bytes;
    if (coming) chunk.next.ask(0, CHUNK, b.columns * int64_t{4});  // what no tile lies over
    const bool low = halves.on();
    const uint32_t* narrow[CHUNK];
    if (low) narrow_rows(rows, chunk.n, b.rows(), narrow, halves.rows, halves.widest / 2);
    for_columns(b.columns, [&]<int V>(int c) __attribute__((always_inline)) {
        float* panel = table + panel_at(b.rows(), c);
        for (int i = 0; i < count; i++) {
            const Span span = chunk.spans[i];
            const bool build = span.n > MAX_ROWS || !span.whole();
            if (build && span.first()) {
                if (low) {
                    build_pairs<V>(b, span, c, reinterpret_cast<uint32_t*>(panel));
                } else {
                    build_panel<V>(b, span, c, panel);
                }
            }
            for_rows(span.n, [&]<int R>(int r) __attribute__((always_inline)) {
                const float* const* x = rows + span.begin + r;
                if (span.begin + r < coming)
                    prefetch_under<R, V>(next + span.begin + r, c * int64_t{4}, row_bytes);
                Tile<R, V> acc;
                clear(acc);
                if (build && low) {
                    accumulate_pairs(acc, narrow + span.begin + r, (b.rows() + 1) / 2,
                                     reinterpret_cast<const uint32_t*>(panel), V * W);
                } else if (build) {
                    accumulate_nn(acc, x, b.rows(), panel, V * W);
                } else {
                    accumulate_unbuilt(acc, b, span, x, c);
                }
                emit(acc, span, span.begin + r, c);
            });
        }
    });
}

// The blocks' gradients: Σ z xᵀ over a target's tokens (into sum_token, if any) and Σ z (t * x)ᵀ over those
// of all targets, and the target's share Σ_h (Σ z xᵀ)[h] * product[h]. All [units][wide] in panels.
struct Outer {
    float* partial;      // one target's sum between chunks
    LongSums* in_parts;  // the same
    const float* product;
    float *sum_token, *sum_product;
    float* grad_targets;  // [GROUP][wide]
};

// Adds one chunk: signal [n][ld] and token rows. On a target's last chunk the sum is folded, straight from
// registers.
[[maybe_unused]] static __attribute__((noinline)) void add_outer(const Outer& outer, const float* signal,
                                                                 int ld, int units, const Chunk& chunk,
                                                                 const float* const* tokens, int wide,
                                                                 const Halves& halves) {
    const Outer o = outer;  // a copy that the stores below cannot change
    const Halves low = halves;
    const Span* const spans = chunk.spans;
    const int count = chunk.count;
    if (spans[0].first()) {
        o.in_parts->restart();
    } else if (spans[0].last) {
        o.in_parts->finish();
    }
    for (int s = 0; low.on() && s < count; s++) {
        const Span& span = spans[s];
        const float* signals[CHUNK];
        for (int i = 0; i < span.n; i++) signals[i] = signal + (span.begin + i) * int64_t{ld};
        pair_rows(signals, span.n, padded(units), low.left + span.begin * low.widest, low.widest);
        pair_rows(tokens + span.begin, span.n, wide, low.right + span.begin * low.widest, low.widest);
    }
    for_rows(units, [&]<int R>(int r) __attribute__((always_inline)) {
        for_columns(wide, [&]<int V>(int c) __attribute__((always_inline)) {
            const int64_t corner = panel_at(units, c) + r * int64_t{V * W};
            float* const partial = o.partial + corner;
            for (int s = 0; s < count; s++) {
                const int n = spans[s].n, begin = spans[s].begin;
                if (n == 0) continue;
                const bool last = spans[s].last, first = spans[s].first();
                const float* const target = spans[s].target + c;
                float* const grad_target = o.grad_targets + spans[s].in_group * int64_t{wide} + c;
                Tile<R, V> acc;
                clear(acc);
                if (low.on()) {
                    const int64_t at = begin * low.widest;
                    accumulate_token_pairs(acc, low.left + at + r, low.right + at + c, low.widest,
                                           (n + 1) / 2);
                } else {
                    accumulate_tn(acc, signal + begin * int64_t{ld} + r, ld, tokens + begin, c, n);
                }
                if (!first) add_tile(acc, partial, V * W);
                if (!last) {
                    store_tile(acc, partial, V * W);
                    continue;
                }
                if (o.sum_token) {
                    float* const sum = opaque(o.sum_token + corner);
#pragma GCC unroll 6
                    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
                        for (int v = 0; v < V; v++) {
                            const int at = (i * V + v) * W;
                            store(sum + at, load(sum + at) + acc.at[i][v]);
                        }
                }
                float* const sum = opaque(o.sum_product + corner);
                const float* const product = opaque(o.product + corner);
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    const vec t = load(target + v * W);
                    vec dt = load(grad_target + v * W);
#pragma GCC unroll 6
                    for (int i = 0; i < R; i++) {
                        const int at = (i * V + v) * W;
                        store(sum + at, fma(t, acc.at[i][v], load(sum + at)));
                        dt = fma(acc.at[i][v], load(product + at), dt);
                    }
                    store(grad_target + v * W, dt);
                }
            }
        });
    });
    if (!spans[0].last) o.in_parts->step();
}

}  // namespace mixpol::cpu::MIXPOL_ISA
