// Target attention forward: one block per target walks its user's history in chunks. Tokens are staged (and
// fused) in shared memory, scored against G(t), which was built there too, and pooled; one score a token and
// a bit per hidden unit leave the kernel where they are asked for.
#pragma once

#include <type_traits>

#include "cuda/fusion.cuh"
#include "cuda/pack.cuh"

namespace mixpol::cuda {

// Running softmax over chunks. Every warp keeps the same one, in all of its lanes.
struct Softmax {
    float highest = -INFINITY, total = 0.0f;

    // The weight of this lane's score (-inf: no token). `factor` rescales what was pooled so far.
    __device__ float weigh(float score, bool token, float& factor) {
        const float now = fmaxf(highest, warp_max(token ? score : -INFINITY));
        factor = 1.0f;
        if (now > highest) {
            factor = expf(highest - now);
            highest = now;
        }
        const float weight = token ? expf(score - highest) : 0.0f;
        total = total * factor + warp_sum(weight);
        return weight;
    }
};

__device__ __forceinline__ void build_unit_table(const Pass& pass, const SharedLayout& at, float* memory,
                                                 int first, int columns) {
    const PackedUnit& packed = pass.packed_unit;
    build_table(memory + at.table, packed.token, packed.product, padded(pass.unit.units[0]),
                memory + at.target, padded(pass.width), first, columns);
}

// A bit for each of a thread's 4 x 4 pre-activations that is above 0 (or NaN).
__device__ __forceinline__ unsigned positive_bits(const Tile& tile) {
    unsigned on = 0;
#pragma unroll
    for (int i = 0; i < TILE; i++)
#pragma unroll
        for (int j = 0; j < TILE; j++)
            if (!(tile.at[i][j] <= 0.0f)) on |= 1u << (TILE * i + j);
    return on;
}

// Gathers those bits over a strip, which is all units there are, and writes them. By whole warps.
__device__ __forceinline__ void write_bits(const AttentionForward& a, unsigned mine, const Chunk& chunk,
                                           int candidate) {
    const int bytes = (a.unit.units[0] + 7) / 8, column = tile_column();
#pragma unroll
    for (int i = 0; i < TILE; i++) {
        unsigned long long on = static_cast<unsigned long long>(mine >> (TILE * i) & 15u) << column;
        for (int step = TILES_WIDE / 2; step > 0; step /= 2) on |= __shfl_xor_sync(ALL_LANES, on, step);
        const int r = tile_row() + i;
        if (column != 0 || r >= chunk.count) continue;
        uint8_t* to = a.bits + (chunk.position[r] * a.candidates + candidate) * bytes;
        for (int byte = 0; byte < bytes; byte++) to[byte] = static_cast<uint8_t>(on >> (8 * byte));
    }
}

// The raw scores of a chunk to shared memory. By all threads of a block, which has waited for the tokens; it
// has to wait for the scores.
template <Activation A>
__device__ __forceinline__ void score_chunk(const AttentionForward& a, const Tables& tables,
                                            const SharedLayout& at, float* memory, const Chunk& chunk,
                                            int candidate) {
    const ActivationUnit& unit = a.unit;
    const PackedUnit& packed = a.packed_unit;
    const int row = tile_row(), last = unit.layers - 1;
    const bool busy = warp_has_rows(chunk.count);
    float score[TILE] = {};
    [[maybe_unused]] unsigned on = 0;

    // Bias, activation, and on to the next layer's input or into the scores.
    auto finish = [&](Tile& tile, int layer, int column, float4 constant) {
        const int wide = padded(unit.units[layer]);
        add_to_rows(tile, constant);
        float4 weight = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (layer == last) weight = fetch4(packed.output + column);
        const float weights[TILE] = {weight.x, weight.y, weight.z, weight.w};
        float after[TILE][TILE];
#pragma unroll
        for (int j = 0; j < TILE; j++) {
            const math::UnitParameters<float> parameters =
                unit_parameters<A>(packed.slope[layer], wide, column + j);
#pragma unroll
            for (int i = 0; i < TILE; i++) {
                after[i][j] = math::activate<A, Scalar>(tile.at[i][j], parameters);
                score[i] = fmaf(after[i][j], weights[j], score[i]);
            }
        }
        if (layer == last) return;
        float* const to = memory + at.hidden(layer);
        const int pitch = row_pitch(unit.units[layer]);
#pragma unroll
        for (int i = 0; i < TILE; i++)
            store4(to + (row + i) * pitch + column,
                   make_float4(after[i][0], after[i][1], after[i][2], after[i][3]));
    };

    const int wide = padded(unit.units[0]), depth = padded(a.width), pitch = row_pitch(a.width);
    for (int first = 0; first < wide; first += tables.unit_columns) {
        const int columns = wide - first < tables.unit_columns ? wide - first : tables.unit_columns;
        if (!tables.resident) {
            __syncthreads();  // the table is not read any more
            build_unit_table(a, at, memory, first, columns);
            __syncthreads();
        }
        // A column is always the same thread's, whatever the tables' width: so the scores' bits do not depend
        // on it.
        for (int strip = first - first % STRIP; busy && strip < first + columns; strip += STRIP) {
            const int column = strip + tile_column();
            if (column < first || column >= first + columns) continue;
            Tile tile;
            multiply(tile, memory + at.tokens + row * pitch, pitch, memory + at.table + column - first,
                     columns, depth);
            finish(tile, 0, column, load4(memory + at.constants + column));
            if constexpr (A == Activation::relu) on |= positive_bits(tile);
        }
    }
    if constexpr (A == Activation::relu)
        if (a.bits && busy) write_bits(a, on, chunk, candidate);
    for (int layer = 1; layer <= last; layer++) {
        __syncthreads();
        const int units = padded(unit.units[layer]), below = row_pitch(unit.units[layer - 1]);
        for (int column = tile_column(); busy && column < units; column += STRIP) {
            Tile tile;
            multiply(tile, memory + at.hidden(layer - 1) + row * below, below, packed.weight[layer] + column,
                     units, padded(unit.units[layer - 1]));
            finish(tile, layer, column, fetch4(packed.bias[layer] + column));
        }
    }
    if (!busy) return;
    const float bias = __ldg(unit.bias[unit.layers]);
#pragma unroll
    for (int i = 0; i < TILE; i++) {
        for (int step = TILES_WIDE / 2; step > 0; step /= 2)
            score[i] += __shfl_xor_sync(ALL_LANES, score[i], step);
        if (tile_column() == 0) memory[at.scores + row + i] = score[i] + bias;
    }
}

template <Activation A, bool FUSED>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
    attention_forward(const AttentionForward a, const Tables tables) {
    MIXPOL_SHARED(float, memory);
    const SharedLayout at = shared_layout(a, tables);
    const unsigned target_in_grid = blockIdx.x, candidates_in_grid = a.candidates;
    const int64_t candidates = a.candidates, target = target_in_grid,
                  user = target_in_grid / candidates_in_grid;
    const int candidate = static_cast<int>(target_in_grid % candidates_in_grid);
    const int thread = threadIdx.x, lane = thread % WARP;
    const int width = a.width, wide = padded(width), pitch = row_pitch(width);
    const bool softmax = a.unit.normalize == Normalize::softmax;

    Cursor cursor(a.history, user);
    if (thread < WARP) cursor.fill(a, user, chunk_at(memory, 0));
    for (int c = thread; c < wide; c += THREADS) {
        memory[at.target + c] = c < width ? __ldg(a.target + target * width + c) : 0.0f;
        memory[at.pooled + c] = 0.0f;
    }
    if (candidate == 0 && a.attention) clear_pads(a.history, user, a.attention, a.candidates);
    if (candidate == 0 && a.bits)
        clear_pads(a.history, user, a.bits, a.candidates * ((a.unit.units[0] + 7) / 8));
    __syncthreads();
    const bool any = chunk_at(memory, 0).count > 0;
    if (any) {
        multiply_target(memory + at.constants, memory + at.target, a.packed_unit.target,
                        a.packed_unit.bias[0], wide, padded(a.unit.units[0]));
        if (tables.resident) build_unit_table(a, at, memory, 0, padded(a.unit.units[0]));
        if constexpr (FUSED) fusion_target(a, tables, at, memory);
    }

    Softmax running;
    for (int parity = 0;; parity ^= 1) {
        const Chunk& chunk = chunk_at(memory, parity);
        const int count = chunk.count;
        if (count == 0) break;
        if (thread < WARP) cursor.fill(a, user, chunk_at(memory, parity ^ 1));
        const bool gate = FUSED && a.fusion.kind == Fusion::tapf;
        stage_tokens(a.tokens, chunk, width, memory + (gate ? at.raw : at.tokens), pitch);
        __syncthreads();
        if constexpr (FUSED) {
            fuse_chunk(a, tables, at, memory, chunk);
            __syncthreads();
        }
        score_chunk<A>(a, tables, at, memory, chunk, candidate);
        __syncthreads();

        const bool token = lane < count;
        const float score = token ? memory[at.scores + lane] : 0.0f;
        float weight = token ? score : 0.0f, factor = 1.0f;
        if (softmax) weight = running.weigh(score, token, factor);
        if (a.unit.normalize == Normalize::sigmoid && token) weight = math::sigmoid<Scalar>(score);
        if (a.attention && token && thread < WARP)  // a softmax is finished when all is known
            a.attention[chunk.position[lane] * candidates + candidate] = softmax ? score : weight;
        for (int first = thread - lane; first < width; first += THREADS) {
            const int c = first + lane;
            float sum = 0.0f;
            for (int i = 0; i < count; i++)
                sum = fmaf(__shfl_sync(ALL_LANES, weight, i),
                           c < width ? memory[at.tokens + i * pitch + c] : 0.0f, sum);
            if (c < width) memory[at.pooled + c] = memory[at.pooled + c] * factor + sum;
        }
        __syncthreads();
    }

    for (int c = thread; c < width; c += THREADS) {
        const float pooled = memory[at.pooled + c];
        a.pooled[target * width + c] = softmax && any ? pooled / running.total : pooled;
    }
    if (!softmax || !any || !a.attention) return;
    for (int64_t p = a.history.begin(user) + thread; p < a.history.end(user); p += THREADS)
        if (!a.history.mask || a.history.mask[p]) {
            float& weight = a.attention[p * candidates + candidate];
            weight = expf(weight - running.highest) / running.total;
        }
}

// Starts the kernel for `pass.history.users * candidates` targets; `tables` as planned for the device.
inline void launch_attention(const AttentionForward& a, const Tables& tables, cudaStream_t stream) {
    const int64_t targets = a.history.users * a.candidates, bytes = shared_bytes(a, tables);
    if (targets == 0) return;
    auto start = [&](auto kernel) {
        allow_shared(kernel, bytes);
        MIXPOL_LAUNCH(kernel, dim3(static_cast<unsigned>(targets)), THREADS, bytes, stream, a, tables);
    };
    auto with = [&](auto activation) {
        constexpr Activation A = decltype(activation)::value;
        if constexpr (!row_wise(A)) {  // which read_unit refuses
            if (a.fusion.kind == Fusion::none) {
                start(&attention_forward<A, false>);
            } else {
                start(&attention_forward<A, true>);
            }
        }
    };
    switch (a.unit.activation) {
#define MIXPOL_CASE(name)  \
    case Activation::name: \
        return with(std::integral_constant<Activation, Activation::name>{});
        MIXPOL_ACTIVATIONS(MIXPOL_CASE)
#undef MIXPOL_CASE
    }
}

}  // namespace mixpol::cuda
