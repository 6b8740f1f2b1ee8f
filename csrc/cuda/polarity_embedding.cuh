// Look-up of tokens: item row + polarity row (+ extra row). Groups of lanes take a token each.
#pragma once

#include "cuda/args.cuh"

namespace mixpol::cuda {

constexpr int LOOKUP_THREADS = 256;
constexpr int64_t LOOKUP_BLOCKS = 1 << 16;

struct EmbeddingForward {
    History history;
    Ids items, polarity, extra;
    const float *item_table, *polarity_table, *extra_table;  // rows at the strides; extra_table may be null
    int64_t item_stride, polarity_stride, extra_stride;      // floats
    int width;                                               // D
    bool vectors;   // D, every stride and every address are whole float4
    float* tokens;  // [tokens, D]
};

__device__ __forceinline__ float4 add(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// blockDim: (lanes of a token, tokens of a block).
static __global__ void __launch_bounds__(LOOKUP_THREADS)
    polarity_embedding_forward(const EmbeddingForward a) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
    for (int64_t p = blockIdx.x * static_cast<int64_t>(blockDim.y) + threadIdx.y; p < a.history.tokens;
         p += step) {
        float* const out = a.tokens + p * a.width;
        const bool kept = a.history.keeps(p);
        const float *item = a.item_table, *polarity = a.polarity_table, *extra = nullptr;
        if (kept) {
            item += a.items[p] * a.item_stride;
            polarity += a.polarity[p] * a.polarity_stride;
            if (a.extra_table) extra = a.extra_table + a.extra[p] * a.extra_stride;
        }
        if (a.vectors) {
            for (int c = 4 * threadIdx.x; c < a.width; c += 4 * blockDim.x) {
                float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (kept) x = add(fetch4(item + c), fetch4(polarity + c));
                if (extra) x = add(x, fetch4(extra + c));
                store4(out + c, x);
            }
        } else {
            for (int c = threadIdx.x; c < a.width; c += blockDim.x) {
                float x = kept ? __ldg(item + c) + __ldg(polarity + c) : 0.0f;
                if (extra) x += __ldg(extra + c);
                out[c] = x;
            }
        }
    }
}

// Lanes that share a row of `width` floats: a power of two up to a warp.
__host__ inline int row_lanes(int width, bool vectors) {
    int lanes = 1;
    while (lanes < WARP && lanes < (vectors ? width / 4 : width)) lanes *= 2;
    return lanes;
}

inline void launch_polarity_embedding(const EmbeddingForward& a, cudaStream_t stream) {
    if (a.history.tokens == 0 || a.width == 0) return;
    const int lanes = row_lanes(a.width, a.vectors), rows = LOOKUP_THREADS / lanes;
    const int64_t blocks = ceil_div(a.history.tokens, rows);
    MIXPOL_LAUNCH(polarity_embedding_forward,
                  dim3(static_cast<unsigned>(blocks < LOOKUP_BLOCKS ? blocks : LOOKUP_BLOCKS)),
                  dim3(lanes, rows), 0, stream, a);
}

}  // namespace mixpol::cuda
