// The target-conditioned linear (DESIGN, "The one idea"): x · G(t) with G(t) = token + diag(t) product, one
// table per target, built in shared memory; and the register tile that multiplies by it.
#pragma once

#include "cuda/args.cuh"

namespace mixpol::cuda {

constexpr int TILE = 4;         // each thread's corner of the product: 4 tokens by 4 columns
constexpr int TILES_WIDE = 16;  // threads side by side: a strip of 64 columns
constexpr int STRIP = TILE * TILES_WIDE;
static_assert(THREADS / TILES_WIDE * TILE == CHUNK, "the threads of a block cover a chunk");

struct Tile {
    float at[TILE][TILE];  // [token][column]
};

__device__ __forceinline__ int tile_row() { return threadIdx.x / TILES_WIDE * TILE; }
__device__ __forceinline__ int tile_column() { return threadIdx.x % TILES_WIDE * TILE; }
// Whether a thread's warp has any of the first `count` rows.
__device__ __forceinline__ bool warp_has_rows(int count) {
    return static_cast<int>(threadIdx.x) / WARP * (WARP / TILES_WIDE * TILE) < count;
}

// Rows [TILE][depth] at `a` times columns [depth][TILE] at `b`. Each element is one chain of fused
// multiply-adds in the order of k; the depth is a multiple of 4.
__device__ __forceinline__ void multiply(Tile& tile, const float* a, int pitch, const float* b, int64_t ld,
                                         int depth) {
#pragma unroll
    for (int i = 0; i < TILE; i++)
#pragma unroll
        for (int j = 0; j < TILE; j++) tile.at[i][j] = 0.0f;
    for (int k = 0; k < depth; k += 4) {
        float4 row[TILE];
#pragma unroll
        for (int i = 0; i < TILE; i++) row[i] = load4(a + i * pitch + k);
#pragma unroll
        for (int step = 0; step < 4; step++) {
            const float4 column = load4(b + (k + step) * ld);
#pragma unroll
            for (int i = 0; i < TILE; i++) {
                const float x = step == 0 ? row[i].x : step == 1 ? row[i].y : step == 2 ? row[i].z : row[i].w;
                tile.at[i][0] = fmaf(x, column.x, tile.at[i][0]);
                tile.at[i][1] = fmaf(x, column.y, tile.at[i][1]);
                tile.at[i][2] = fmaf(x, column.z, tile.at[i][2]);
                tile.at[i][3] = fmaf(x, column.w, tile.at[i][3]);
            }
        }
    }
}

__device__ __forceinline__ void add_to_rows(Tile& tile, float4 constant) {
#pragma unroll
    for (int i = 0; i < TILE; i++) {
        tile.at[i][0] += constant.x;
        tile.at[i][1] += constant.y;
        tile.at[i][2] += constant.z;
        tile.at[i][3] += constant.w;
    }
}

// Columns first ... first + columns - 1 of G to `table` [depth][columns]. The blocks are packed, [depth][ld];
// `token` may be null. By all threads of a block.
__device__ __forceinline__ void build_table(float* table, const float* token, const float* product,
                                            int64_t ld, const float* target, int depth, int first,
                                            int columns) {
    const int per_row = columns / 4;
    for (int i = threadIdx.x; i < depth * per_row; i += THREADS) {
        const int k = i / per_row, c = 4 * (i % per_row);
        const int64_t at = k * ld + first + c;
        const float4 p = fetch4(product + at);
        float4 g = token ? fetch4(token + at) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const float t = target[k];
        g.x = fmaf(t, p.x, g.x);
        g.y = fmaf(t, p.y, g.y);
        g.z = fmaf(t, p.z, g.z);
        g.w = fmaf(t, p.w, g.w);
        store4(table + k * columns + c, g);
    }
}

// out = target · matrix + bias, with a packed matrix [depth][columns]; `bias` may be null. By all threads.
__device__ __forceinline__ void multiply_target(float* out, const float* target, const float* matrix,
                                                const float* bias, int depth, int columns) {
    for (int c = threadIdx.x; c < columns; c += THREADS) {
        float sum = 0.0f;
#pragma unroll 8
        for (int k = 0; k < depth; k++)
            sum = fmaf(target[k], __ldg(matrix + static_cast<int64_t>(k) * columns + c), sum);
        out[c] = bias ? sum + __ldg(bias + c) : sum;
    }
}

}  // namespace mixpol::cuda
