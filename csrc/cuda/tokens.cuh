// Walking a user's tokens in chunks, whatever the layout, and staging them in shared memory.
#pragma once

#include "cuda/args.cuh"

namespace mixpol::cuda {

// The kept tokens that a block works on together; in shared memory.
struct Chunk {
    int64_t position[CHUNK];
    int64_t row[CHUNK];  // where the token's row begins, in floats
    int polarity[CHUNK], extra[CHUNK];
    int count;
};

// What there is to know of the token at a position, into place `i` of a chunk.
__device__ __forceinline__ void note_token(const Pass& pass, int64_t user, int64_t position, int i,
                                           Chunk& chunk) {
    chunk.position[i] = position;
    chunk.row[i] = pass.items.data ? pass.items[position] * pass.tokens.row_stride
                                   : pass.tokens.offset(pass.history, user, position);
    if (pass.fusion.kind != Fusion::none)
        chunk.polarity[i] = static_cast<int>(pass.fusion.polarity[position]);
    if (pass.fusion.extra_rows) chunk.extra[i] = static_cast<int>(pass.fusion.extra[position]);
}

// Yields the positions of a user's kept tokens in order, a chunk at a time. Used by one warp.
class Cursor {
 public:
    __device__ __forceinline__ Cursor(const History& history, int64_t user)
        : next_(history.begin(user)), end_(history.end(user)), mask_(history.mask) {}

    // Fills `chunk` as far as there are tokens; its count is 0 at the end.
    __device__ __forceinline__ void fill(const Pass& pass, int64_t user, Chunk& chunk) {
        const int lane = threadIdx.x % WARP;
        int count = 0;
        while (count < CHUNK && next_ < end_) {
            const int64_t position = next_ + lane;
            const bool kept = position < end_ && (!mask_ || mask_[position]);
            const unsigned votes = __ballot_sync(ALL_LANES, kept);
            const int place = count + __popc(votes & ((1u << lane) - 1));
            const bool taken = kept && place < CHUNK;
            if (taken) note_token(pass, user, position, place, chunk);
            // Go on behind this warp's positions, or behind the last one that still fitted.
            const unsigned filled = __ballot_sync(ALL_LANES, taken && place == CHUNK - 1);
            next_ += filled ? __ffs(static_cast<int>(filled)) : WARP;
            count = filled ? CHUNK : count + __popc(votes);
        }
        if (lane == 0) chunk.count = count;
    }

 private:
    int64_t next_, end_;
    const uint8_t* mask_;
};

constexpr int STAGED_AT_ONCE = 4;  // loads under way per thread

// The rows of a chunk to `out`, [CHUNK][pitch] floats, zeros behind the width and behind the last token.
__device__ __forceinline__ void stage_tokens(const Rows& tokens, const Chunk& chunk, int width, float* out,
                                             int pitch) {
    const int wide = padded(width), per_row = wide / 4, count = chunk.count;
    if (tokens.vectors) {
        for (int first = threadIdx.x; first < CHUNK * per_row; first += STAGED_AT_ONCE * THREADS) {
            float4 value[STAGED_AT_ONCE];
#pragma unroll
            for (int j = 0; j < STAGED_AT_ONCE; j++) {
                const int i = first + j * THREADS, r = i / per_row, c = i % per_row;
                value[j] = r < count ? fetch4(tokens.base + chunk.row[r] + 4 * c)
                                     : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            }
#pragma unroll
            for (int j = 0; j < STAGED_AT_ONCE; j++) {
                const int i = first + j * THREADS, r = i / per_row, c = i % per_row;
                if (r < CHUNK) store4(out + r * pitch + 4 * c, value[j]);
            }
        }
        return;
    }
    for (int i = threadIdx.x; i < CHUNK * wide; i += THREADS) {
        const int r = i / wide, c = i % wide;
        out[r * pitch + c] = r < count && c < width ? __ldg(tokens.base + chunk.row[r] + c) : 0.0f;
    }
}

// Writes zeros to the `width` elements of every position of a user that is a pad; by all threads of a block.
template <class T>
__device__ __forceinline__ void clear_pads(const History& history, int64_t user, T* out, int width) {
    if (!history.has_pads()) return;
    const int64_t begin = user * history.length,
                  end = history.lengths ? begin + history.lengths[user] : begin;
    for (int64_t p = (history.lengths ? end : begin) + threadIdx.x; p < begin + history.length; p += THREADS)
        if (!history.mask || !history.mask[p])
            for (int c = 0; c < width; c++) out[p * width + c] = 0;
}

}  // namespace mixpol::cuda
