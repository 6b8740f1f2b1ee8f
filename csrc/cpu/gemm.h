// Small matrix products in register tiles, for operands that lie in L1 or L2. Every output element is one
// chain of fused multiply-adds in the order of the contraction, whatever tile it falls into: results do not
// depend on how many rows are computed together.
#pragma once

#include "cpu/args.h"
#include "cpu/simd.h"

namespace mixpol::cpu::MIXPOL_ISA {

constexpr int padded(int n) { return (n + 15) & ~15; }  // columns are padded to 16 floats on every level

// The same pointer, of which the compiler knows nothing more: or else it keeps one in memory for each
// constant offset that a loop adds to it.
template <class T>
MIXPOL_INLINE T* opaque(T* pointer) {
    asm("" : "+r"(pointer));
    return pointer;
}

template <int R, int V>
struct Tile {
    vec at[R][V];
};

template <int R, int V>
MIXPOL_INLINE void clear(Tile<R, V>& acc) {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) acc.at[r][v] = vec{};
}

template <int R, int V>
MIXPOL_INLINE void add_tile(Tile<R, V>& acc, const float* p, int64_t ld) {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) acc.at[r][v] += load(p + r * ld + v * W);
}

template <int R, int V>
MIXPOL_INLINE void store_tile(const Tile<R, V>& acc, float* p, int64_t ld) {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(p + r * ld + v * W, acc.at[r][v]);
}

// acc[r][:] += sum_k a[r][k] * b[k * ldb + :]
template <int R, int V>
MIXPOL_INLINE void accumulate_nn(Tile<R, V>& acc, const float* const* a, int depth, const float* b, int ldb) {
    const float* row[R];
    for (int r = 0; r < R; r++) row[r] = a[r];
    for (int k = 0; k < depth; k++, b += ldb) {
        vec column[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) column[v] = load(b + v * W);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            vec x = broadcast(row[r][k]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) acc.at[r][v] = fma(x, column[v], acc.at[r][v]);
        }
    }
}

// acc[r][:] += sum_i a[i * lda + r] * b[i][:]
template <int R, int V>
MIXPOL_INLINE void accumulate_tn(Tile<R, V>& acc, const float* a, int lda, const float* const* b, int column0,
                                 int depth) {
    for (int i = 0; i < depth; i++, a += lda) {
        const float* row = b[i] + column0;
        vec column[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) column[v] = load(row + v * W);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            vec x = broadcast(a[r]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) acc.at[r][v] = fma(x, column[v], acc.at[r][v]);
        }
    }
}

// Where a panel begins: matrices that are read more than once lie as their tiles read them, [depth][PANEL]
// for each PANEL columns; the last panel is as narrow as what is left.
constexpr int PANEL = MAX_COLUMNS * W;
constexpr int64_t panel_at(int depth, int column) { return int64_t{depth} * (column / PANEL * PANEL); }
constexpr int panel_width(int columns, int column) {
    const int rest = columns - column / PANEL * PANEL;
    return rest < PANEL ? rest : PANEL;
}

// Element k of row j; the rest of its vector follows.
MIXPOL_INLINE int64_t in_panels(int rows, int columns, int j, int k) {
    return panel_at(rows, k) + j * int64_t{panel_width(columns, k)} + k % PANEL;
}

// Calls body.template operator()<V>(column) over columns, a multiple of 16, in blocks of up to MAX_COLUMNS
// vectors, a panel each.
template <class Body>
MIXPOL_INLINE void for_columns(int columns, Body&& body) {
    int c = 0;
    for (; c + MAX_COLUMNS * W <= columns; c += MAX_COLUMNS * W) body.template operator()<MAX_COLUMNS>(c);
    if constexpr (MAX_COLUMNS == 4) {
        switch ((columns - c) / W) {
            case 3:
                body.template operator()<3>(c);
                break;
            case 2:
                body.template operator()<2>(c);
                break;
            case 1:
                body.template operator()<1>(c);
                break;
        }
    }
}

// Calls body.template operator()<R>(row) over rows in blocks of up to MAX_ROWS, the last two about as high: a
// tile of few rows takes as long as one of four.
template <class Body>
MIXPOL_INLINE void for_rows(int rows, Body&& body) {
    for (int r = 0; r < rows;) {
        const int rest = rows - r, size = rest <= MAX_ROWS || rest >= 2 * MAX_ROWS ? rest : (rest + 1) / 2;
        switch (size) {
            case 1:
                body.template operator()<1>(r);
                break;
            case 2:
                body.template operator()<2>(r);
                break;
            case 3:
                body.template operator()<3>(r);
                break;
            case 4:
                body.template operator()<4>(r);
                break;
            case 5:
                body.template operator()<5>(r);
                break;
            default:
                body.template operator()<MAX_ROWS>(r);
        }
        r += size < MAX_ROWS ? size : MAX_ROWS;
    }
}

// Calls body.template operator()<R, V>(row, column) for the tiles of a product whose other operand, of so
// many floats, lies in panels: row after row, or panel after panel where it does not stay in L1.
constexpr int64_t STAYS_IN_L1 = 16384;  // twice what fits: from there on the other order is faster
template <class Body>
MIXPOL_INLINE void for_tiles(int rows, int columns, int64_t floats, Body&& body) {
    if (floats > STAYS_IN_L1) {
        for_columns(columns, [&]<int V>(int c) __attribute__((always_inline)) {
            for_rows(rows, [&]<int R>(int r)
                               __attribute__((always_inline)) { body.template operator()<R, V>(r, c); });
        });
    } else {
        for_rows(rows, [&]<int R>(int r) __attribute__((always_inline)) {
            for_columns(columns, [&]<int V>(int c) __attribute__((always_inline)) {
                body.template operator()<R, V>(r, c);
            });
        });
    }
}

// out[rows][ldo] = a · b + init, with b [depth][columns] in panels and one row `init` for all (null: zeros).
[[maybe_unused]] static __attribute__((noinline)) void multiply_panels(const float* const* a, int rows,
                                                                       int depth, const float* b, int columns,
                                                                       const float* init, float* out,
                                                                       int64_t ldo) {
    for_tiles(rows, columns, int64_t{depth} * columns,
              [&]<int R, int V>(int r, int c) __attribute__((always_inline)) {
                  Tile<R, V> acc;
                  clear(acc);
                  accumulate_nn(acc, a + r, depth, b + panel_at(depth, c), V * W);
                  if (init) add_tile(acc, init + c, 0);
                  store_tile(acc, out + r * ldo + c, ldo);
              });
}

// out[rows][columns], in panels, += aᵀ · b, with a [depth][lda] and rows of b by pointer. Of a large product
// a panel of b is copied to where its rows do not push each other out of L1.
[[maybe_unused]] static __attribute__((noinline)) void add_transposed_panels(const float* a, int lda,
                                                                             int rows, const float* const* b,
                                                                             int depth, int columns,
                                                                             float* out) {
    const bool large = int64_t{rows} * columns > STAYS_IN_L1;
    float packed[CHUNK * PANEL];
    const float* packed_rows[CHUNK];
    int there = -1;
    for_tiles(rows, columns, int64_t{rows} * columns,
              [&]<int R, int V>(int r, int c) __attribute__((always_inline)) {
                  constexpr int WIDTH = V * W;
                  if (large && there != c) {
                      for (int i = 0; i < depth; i++) {
                          for (int v = 0; v < WIDTH; v += W)
                              store(packed + i * WIDTH + v, load(b[i] + c + v));
                          packed_rows[i] = packed + i * WIDTH;
                      }
                      there = c;
                  }
                  Tile<R, V> acc;
                  clear(acc);
                  accumulate_tn(acc, a + r, lda, large ? packed_rows : b, large ? 0 : c, depth);
                  float* to = out + panel_at(rows, c) + r * int64_t{WIDTH};
                  add_tile(acc, to, WIDTH);
                  store_tile(acc, to, WIDTH);
              });
}

// out[rows][ldo] = a · b + init, with init [rows][ldi] (ldi 0: one row for all; null: zeros). Columns are
// padded.
[[maybe_unused]] static __attribute__((noinline)) void multiply(const float* const* a, int rows, int depth,
                                                                const float* b, int ldb, int columns,
                                                                const float* init, int64_t ldi, float* out,
                                                                int64_t ldo) {
    for_rows(rows, [&]<int R>(int r) __attribute__((always_inline)) {
        for_columns(columns, [&]<int V>(int c) __attribute__((always_inline)) {
            Tile<R, V> acc;
            clear(acc);
            accumulate_nn(acc, a + r, depth, b + c, ldb);
            if (init) add_tile(acc, init + r * ldi + c, ldi);
            store_tile(acc, out + r * ldo + c, ldo);
        });
    });
}

// out[rows][ldo] += aᵀ · b, with a [depth][lda] and rows of b by pointer. Columns are padded.
[[maybe_unused]] static __attribute__((noinline)) void add_transposed(const float* a, int lda, int rows,
                                                                      const float* const* b, int depth,
                                                                      int columns, float* out, int64_t ldo) {
    for_rows(rows, [&]<int R>(int r) __attribute__((always_inline)) {
        for_columns(columns, [&]<int V>(int c) __attribute__((always_inline)) {
            Tile<R, V> acc;
            clear(acc);
            accumulate_tn(acc, a + r, lda, b, c, depth);
            add_tile(acc, out + r * ldo + c, ldo);
            store_tile(acc, out + r * ldo + c, ldo);
        });
    });
}

}  // namespace mixpol::cpu::MIXPOL_ISA
