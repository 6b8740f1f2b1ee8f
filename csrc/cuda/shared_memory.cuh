// What a block over one target's history keeps in shared memory.
#pragma once

#include "cuda/linear.cuh"
#include "cuda/tokens.cuh"

namespace mixpol::cuda {

// Tables that do not fit side by side are built anew for every chunk, a few columns at a time. The choice
// depends on shapes alone and does not change a bit of the results.
struct Tables {
    bool resident = true;
    int unit_columns = 0, gate_columns = 0;  // built at a time
    int64_t floats = 0;
};

// Places in floats from the beginning of the block's shared memory.
struct SharedLayout {
    int target, constants, pooled, scores, tokens, raw, pull, gate_constants, first_hidden, second_hidden;
    int table, gate_table;
    int64_t floats;

    // The outputs of a hidden layer that another one reads.
    __host__ __device__ int hidden(int layer) const { return layer == 0 ? first_hidden : second_hidden; }
};

constexpr int CHUNK_FLOATS = padded(sizeof(Chunk) / sizeof(float));

// The two chunks at the beginning: the next one is filled while a block works on this one.
__device__ __forceinline__ Chunk& chunk_at(float* memory, int parity) {
    return *reinterpret_cast<Chunk*>(memory + parity * CHUNK_FLOATS);
}

__host__ __device__ inline SharedLayout shared_layout(const Pass& pass, const Tables& tables) {
    SharedLayout at{};
    int64_t used = 2 * CHUNK_FLOATS;
    auto take = [&used](int64_t floats) {
        const int64_t place = used;
        used += (floats + 3) & ~int64_t{3};
        return static_cast<int>(place);
    };
    const int wide = padded(pass.width);
    const bool gate = pass.fusion.kind == Fusion::tapf;
    at.target = take(wide);
    at.tokens = take(int64_t{CHUNK} * row_pitch(pass.width));
    if (pass.unit.layers) {
        at.constants = take(padded(pass.unit.units[0]));
        at.pooled = take(wide);
        at.scores = take(CHUNK);
        if (pass.unit.layers > 1) at.first_hidden = take(int64_t{CHUNK} * row_pitch(pass.unit.units[0]));
        if (pass.unit.layers > 2) at.second_hidden = take(int64_t{CHUNK} * row_pitch(pass.unit.units[1]));
    }
    if (gate) {
        at.raw = take(int64_t{CHUNK} * row_pitch(pass.width));
        at.pull = take(wide);
        at.gate_constants = take(wide);
    }
    at.table = at.gate_table = static_cast<int>(used);
    if (tables.resident && gate) at.gate_table += wide * tables.unit_columns;
    used += tables.floats;
    at.floats = used;
    return at;
}

__host__ inline int64_t shared_bytes(const Pass& pass, const Tables& tables) {
    return shared_layout(pass, tables).floats * static_cast<int64_t>(sizeof(float));
}

// How the tables fit into a block's `limit` bytes of shared memory; no columns if they do not.
__host__ inline Tables plan_tables(const Pass& pass, int64_t limit) {
    const int wide = padded(pass.width);
    const int unit = pass.unit.layers ? padded(pass.unit.units[0]) : 0;
    const int gate = pass.fusion.kind == Fusion::tapf ? wide : 0;
    auto least = [](int a, int b) { return a < b ? a : b; };
    Tables tables{true, unit, gate, int64_t{wide} * (unit + gate)};
    for (int columns = STRIP; shared_bytes(pass, tables) > limit; columns /= 2) {
        if (columns < TILE) return {};
        tables = {false, least(columns, unit), least(columns, gate), 0};
        tables.floats = int64_t{wide} * (tables.unit_columns > tables.gate_columns ? tables.unit_columns
                                                                                   : tables.gate_columns);
    }
    return tables;
}

}  // namespace mixpol::cuda
