// Polarity fusion of whole histories, for backbones that need the tokens themselves. Tokens do not depend on
// each other, so several blocks share a user's history.
#pragma once

#include "cuda/fusion.cuh"

namespace mixpol::cuda {

constexpr int FUSION_CHUNKS = 8;  // chunks of an average history that one block takes

// The kept ones of CHUNK positions from `first` on. By one warp.
__device__ __forceinline__ void note_positions(const FusionForward& a, int64_t user, int64_t first,
                                               int64_t end, Chunk& chunk) {
    const int lane = threadIdx.x % WARP;
    const int64_t position = first + lane;
    const bool kept = position < end && a.history.keeps_of(user, position);
    const unsigned votes = __ballot_sync(ALL_LANES, kept);
    if (kept) note_token(a, user, position, __popc(votes & ((1u << lane) - 1)), chunk);
    if (lane == 0) chunk.count = __popc(votes);
}

static __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
    polarity_fusion_forward(const FusionForward a, const Tables tables) {
    MIXPOL_SHARED(float, memory);
    const SharedLayout at = shared_layout(a, tables);
    const int64_t user = blockIdx.y + static_cast<int64_t>(gridDim.y) * blockIdx.z;
    if (user >= a.history.users) return;
    const int thread = threadIdx.x, width = a.width, wide = padded(width), pitch = row_pitch(width);
    const int64_t begin = a.history.begin(user);
    const int64_t end = a.history.offsets ? a.history.end(user) : begin + a.history.length;
    if (begin + static_cast<int64_t>(blockIdx.x) * CHUNK >= end) return;
    for (int c = thread; c < wide; c += THREADS)
        memory[at.target + c] = c < width ? __ldg(a.target + user * width + c) : 0.0f;
    __syncthreads();
    fusion_target(a, tables, at, memory);
    Chunk& chunk = chunk_at(memory, 0);
    const bool gate = a.fusion.kind == Fusion::tapf;
    for (int64_t first = begin + static_cast<int64_t>(blockIdx.x) * CHUNK; first < end;
         first += static_cast<int64_t>(gridDim.x) * CHUNK) {
        if (thread < WARP) note_positions(a, user, first, end, chunk);
        __syncthreads();
        stage_tokens(a.tokens, chunk, width, memory + (gate ? at.raw : at.tokens), pitch);
        __syncthreads();
        fuse_chunk(a, tables, at, memory, chunk);
        __syncthreads();
        for (int i = thread; i < chunk.count * width; i += THREADS) {
            const int r = i / width, c = i % width;
            a.fused[chunk.position[r] * width + c] = memory[at.tokens + r * pitch + c];
        }
        for (int i = thread; a.history.has_pads() && i < CHUNK * width; i += THREADS) {
            const int64_t position = first + i / width;
            if (position < end && !a.history.keeps_of(user, position))
                a.fused[position * width + i % width] = 0.0f;
        }
        __syncthreads();  // the chunk is not read any more
    }
}

inline void launch_polarity_fusion(const FusionForward& a, const Tables& tables, cudaStream_t stream) {
    if (a.history.tokens == 0) return;
    const int64_t bytes = shared_bytes(a, tables), average = ceil_div(a.history.tokens, a.history.users);
    const int64_t users = a.history.users, most = 32768;  // users side by side in a grid
    const int64_t parts = ceil_div(average, int64_t{CHUNK} * FUSION_CHUNKS);
    const dim3 grid(static_cast<unsigned>(parts), static_cast<unsigned>(users < most ? users : most),
                    static_cast<unsigned>(ceil_div(users, most)));
    allow_shared(&polarity_fusion_forward, bytes);
    MIXPOL_LAUNCH(polarity_fusion_forward, grid, THREADS, bytes, stream, a, tables);
}

}  // namespace mixpol::cuda
