// Polarity fusion of a chunk of tokens (DESIGN: x' = x + P[s] + sign_s * g * (Wt t), g = σ(Wg (x * t) + bg)).
// The gate is the target-conditioned linear with only the product block; in its full form
// σ(Wg [x ; t ; x * t] + bg) it has all blocks. An extra table adds one more row, E[r], to x'.
#pragma once

#include "cuda/math.cuh"
#include "cuda/shared_memory.cuh"

namespace mixpol::cuda {

__device__ __forceinline__ void build_gate_table(const Pass& pass, const SharedLayout& at, float* memory,
                                                 int first, int columns) {
    const int wide = padded(pass.width);
    const PackedFusion& packed = pass.packed_fusion;
    build_table(memory + at.gate_table, packed.gate_token, packed.gate, wide, memory + at.target, wide, first,
                columns);
}

// Once per target, after it is in shared memory: its pull Wt t, the gate's constants, and the gate's table if
// that stays. The caller waits for the block before tokens are fused.
__device__ __forceinline__ void fusion_target(const Pass& pass, const Tables& tables, const SharedLayout& at,
                                              float* memory) {
    if (pass.fusion.kind != Fusion::tapf) return;
    const int wide = padded(pass.width);
    const PackedFusion& packed = pass.packed_fusion;
    multiply_target(memory + at.pull, memory + at.target, packed.target, nullptr, wide, wide);
    if (packed.gate_constant) {
        multiply_target(memory + at.gate_constants, memory + at.target, packed.gate_constant, packed.bias,
                        wide, wide);
    } else {
        for (int c = threadIdx.x; c < wide; c += THREADS) memory[at.gate_constants + c] = packed.bias[c];
    }
    if (tables.resident) build_gate_table(pass, at, memory, 0, wide);
}

// The fused tokens of a chunk, staged raw at `raw`, to `tokens`. By all threads of a block, which has waited
// for the raw tokens; it has to wait for the fused ones.
__device__ __forceinline__ void fuse_chunk(const Pass& pass, const Tables& tables, const SharedLayout& at,
                                           float* memory, const Chunk& chunk) {
    const PolarityFusion& fusion = pass.fusion;
    const int width = pass.width, wide = padded(width), pitch = row_pitch(width), count = chunk.count;
    float* const tokens = memory + at.tokens;
    if (fusion.kind == Fusion::bias) {  // in place
        for (int i = threadIdx.x; i < count * width; i += THREADS) {
            const int r = i / width, c = i % width;
            float x = tokens[r * pitch + c] +
                      __ldg(fusion.table + static_cast<int64_t>(chunk.polarity[r]) * width + c);
            if (fusion.extra_rows)
                x += __ldg(fusion.extra_table + static_cast<int64_t>(chunk.extra[r]) * width + c);
            tokens[r * pitch + c] = x;
        }
        return;
    }
    const float* const raw = memory + at.raw;
    const int row = tile_row();
    for (int first = 0; first < wide; first += tables.gate_columns) {
        const int columns = wide - first < tables.gate_columns ? wide - first : tables.gate_columns;
        if (!tables.resident) {
            __syncthreads();  // the table is not read any more
            build_gate_table(pass, at, memory, first, columns);
            __syncthreads();
        }
        for (int strip = tile_column(); strip < columns; strip += STRIP) {
            Tile gate;
            multiply(gate, raw + row * pitch, pitch, memory + at.gate_table + strip, columns, wide);
            add_to_rows(gate, load4(memory + at.gate_constants + first + strip));
#pragma unroll
            for (int i = 0; i < TILE; i++) {
                const int r = row + i;
                const bool real = r < count;
                const int64_t polarity = real ? chunk.polarity[r] : 0, extra = real ? chunk.extra[r] : 0;
                const float sign = real ? __ldg(fusion.sign + polarity) : 0.0f;
#pragma unroll
                for (int j = 0; j < TILE; j++) {
                    const int c = first + strip + j;
                    float x = 0.0f;
                    if (real && c < width) {
                        const float open = math::sigmoid<Scalar>(gate.at[i][j]);
                        const float token = raw[r * pitch + c] + __ldg(fusion.table + polarity * width + c);
                        x = fmaf(sign * open, memory[at.pull + c], token);
                        if (fusion.extra_rows) x += __ldg(fusion.extra_table + extra * width + c);
                    }
                    tokens[r * pitch + c] = x;
                }
            }
        }
    }
}

}  // namespace mixpol::cuda
