// Polarity fusion of a chunk of tokens (DESIGN: x' = x + P[s] + sign_s * g * (Wt t), g = σ(Wg (x * t) + bg)),
// and its backward. The gate is the target-conditioned linear with only the product block: x · diag(t) Wgᵀ.
// In its full form σ(Wg [x ; t ; x * t] + bg) it has all blocks: x · (Wxᵀ + diag(t) Wpᵀ) + (Wt' t + bg), and
// the constant is computed in groups of targets. An extra table adds one more row, E[r], to x'.
#pragma once

#include "cpu/kernels/conditioned_linear.h"

namespace mixpol::cpu::MIXPOL_ISA {

struct FusionScratch {
    float* gate_table;    // the gate's table of one target [D][Dp] in panels, of histories of several chunks
    float* gate_table_n;  // its transpose, so too
    float* pulls;         // Wt t for a group of targets, [GROUP][Dp]
    float* constants;     // the full gate's constants for a group of targets, [GROUP][Dp]
    float* fused;         // x' [CHUNK][Dp]
    float* gates;         // g, then dz [CHUNK][Dp]
    float* gate_sum;      // Σ dz xᵀ [D][Dp] in panels
    float* gate_spare;    // [2][D][Dp]; of LongSums, as `spare`
    float* spare;         // [2][floats of FusionSums, but for large tables]
    float* tables;        // a chunk's sums of small tables [rows + extra_rows][Dp]
    float* grad_pulls;    // [GROUP][Dp]
    float* grad_constants;  // [GROUP][Dp], full gate only
    float* compensation;    // what the sums of one of each lost [2][Dp]
    LongSums gate_sums;
    const float* raw[CHUNK];
    Halves halves;

    // Of a block's sums, which lie as carve_sums has them.
    inline __attribute__((always_inline)) LongSums long_sums(const PolarityFusion& fusion,
                                                             const FusionSums& sums) const {
        const int64_t floats = long_floats(fusion);
        if (floats == 0) return {};
        return {floats == sum_floats(fusion) ? sums.table : sums.gate, floats, spare};
    }
    static inline __attribute__((always_inline)) int64_t sum_floats(const PolarityFusion& fusion) {
        Arena arena(nullptr);
        carve_sums(fusion, arena);
        return arena.used();
    }
    static inline __attribute__((always_inline)) int64_t long_floats(const PolarityFusion& fusion) {
        const int64_t all = sum_floats(fusion);
        const int64_t tables = (int64_t{fusion.rows} + fusion.extra_rows) * padded(fusion.width);
        return tables <= LARGE_TABLES ? all : all - tables;
    }
    // Their gradients wait for no total: it would be as much memory again, twice a thread.
    static constexpr int64_t LARGE_TABLES = 1 << 18;
};

// Rows of a table whose gradients a chunk sums up by itself: of a larger one few tokens share a row.
constexpr int SMALL_TABLE = 8;

static inline FusionScratch carve_scratch(const PolarityFusion& fusion, bool backward, const Halves& halves,
                                          Arena& arena) {
    FusionScratch s{};
    s.halves = halves;
    int64_t d = fusion.width, dp = padded(fusion.width);
    if (fusion.kind == Fusion::none) return s;
    s.fused = arena.take(CHUNK * dp);
    if (backward) {
        s.spare = arena.take(2 * FusionScratch::long_floats(fusion));
        s.tables = arena.take(2 * SMALL_TABLE * dp);
    }
    if (fusion.kind != Fusion::tapf) return s;
    s.gate_table = arena.take(d * dp);
    s.pulls = arena.take(GROUP * dp);
    s.gates = arena.take(CHUNK * dp);
    if (fusion.full_gate) s.constants = arena.take(GROUP * dp);
    if (backward) {
        s.gate_table_n = arena.take(d * dp);
        s.gate_sum = arena.take(d * dp);
        s.gate_spare = arena.take(2 * d * dp);
        s.gate_sums = {s.gate_sum, d * dp, s.gate_spare};
        s.compensation = arena.take(2 * dp);
        s.grad_pulls = arena.take(GROUP * dp);
        if (fusion.full_gate) s.grad_constants = arena.take(GROUP * dp);
    }
    return s;
}

// Once per group of targets (padded rows [n][Dp]): their pulls Wt t and gate constants; clears their
// gradients.
MIXPOL_INLINE void fusion_group(const PolarityFusion& fusion, const PackedFusion& packed,
                                const float* const* targets, int n, FusionScratch& s) {
    if (fusion.kind != Fusion::tapf) return;
    int wide = padded(fusion.width);
    multiply(targets, n, fusion.width, packed.target_t, wide, wide, nullptr, 0, s.pulls, wide);
    if (fusion.full_gate)
        multiply(targets, n, fusion.width, packed.gate_constant_t, wide, wide, packed.bias, 0, s.constants,
                 wide);
    if (s.grad_pulls) zero(s.grad_pulls, GROUP * wide);
    if (s.grad_constants) zero(s.grad_constants, GROUP * wide);
}

// Replaces rows by the fused tokens; keeps the raw rows and the gate values for the backward.
MIXPOL_INLINE void fuse(const PolarityFusion& fusion, const PackedFusion& packed, const Chunk& chunk,
                        FusionScratch& s, const float** rows) {
    if (fusion.kind == Fusion::none) return;
    const int wide = padded(fusion.width), n = chunk.n;
    const int64_t* positions = chunk.positions;
    for (int i = 0; i < n; i++) s.raw[i] = rows[i];
    if (fusion.kind == Fusion::bias) {
        for (int i = 0; i < n; i++) {
            const float* polarity = packed.table + fusion.polarity[positions[i]] * wide;
            for (int c = 0; c < wide; c += W)
                store(s.fused + i * wide + c, load(rows[i] + c) + load(polarity + c));
        }
    } else {
        const Blocks blocks{packed.gate_token_t, packed.gate_t, fusion.width, wide, false, nullptr};
        conditioned(blocks, chunk, s.raw, s.gate_table, s.halves,
                    [&]<int R, int V>(Tile<R, V>& acc, const Span& span, int i, int c)
                        __attribute__((always_inline)) {
                            const int64_t constant = span.in_group * int64_t{wide} + c;
                            add_tile(acc, fusion.full_gate ? s.constants + constant : packed.bias + c, 0);
                            store_tile(acc, s.gates + i * wide + c, wide);
                        });
        for (int k = 0; k < chunk.count; k++) {
            const Span& span = chunk.spans[k];
            const float* pull = s.pulls + span.in_group * wide;
            for (int i = span.begin; i < span.begin + span.n; i++) {
                int64_t row = fusion.polarity[positions[i]];
                vec sign = broadcast(fusion.sign[row]);
                for (int c = 0; c < wide; c += W) {
                    vec gate = math::sigmoid<Simd>(load(s.gates + i * wide + c));
                    store(s.gates + i * wide + c, gate);
                    vec token = load(s.raw[i] + c) + load(packed.table + row * wide + c);
                    store(s.fused + i * wide + c, fma(sign * gate, load(pull + c), token));
                }
            }
        }
    }
    for (int i = 0; i < n && fusion.extra_rows; i++)
        axpy(s.fused + i * wide, 1.0f, packed.extra + fusion.extra[positions[i]] * wide, wide);
    for (int i = 0; i < n; i++) rows[i] = s.fused + i * wide;
}

// Turns the gradients of the fused tokens, rows of Dp floats, in place into those of the raw tokens; adds to
// the block's sums and, with TAPF, to the gradients of the targets [GROUP][Dp], of their pulls and of their
// gate constants.
MIXPOL_INLINE void fuse_backward(const PolarityFusion& fusion, const PackedFusion& packed, const Chunk& chunk,
                                 float* const* grads, float* grad_targets, FusionScratch& s,
                                 const FusionSums& sums) {
    if (fusion.kind == Fusion::none) return;
    const int d = fusion.width, wide = padded(d), n = chunk.n;
    const int64_t* positions = chunk.positions;
    const bool small = fusion.rows <= SMALL_TABLE, small_extra = fusion.extra_rows <= SMALL_TABLE;
    float* const polarities = small ? s.tables : sums.table;
    float* const extras = small_extra ? s.tables + SMALL_TABLE * int64_t{wide} : sums.extra;
    if (small) zero(polarities, fusion.rows * int64_t{wide});
    if (small_extra) zero(extras, fusion.extra_rows * int64_t{wide});
    for (int i = 0; i < n && fusion.extra_rows; i++)
        axpy(extras + fusion.extra[positions[i]] * wide, 1.0f, grads[i], wide);
    if (fusion.kind == Fusion::bias)
        for (int i = 0; i < n; i++)
            axpy(polarities + fusion.polarity[positions[i]] * wide, 1.0f, grads[i], wide);
    for (int k = 0; k < chunk.count && fusion.kind == Fusion::tapf; k++) {
        const Span& span = chunk.spans[k];
        const int64_t in_group = span.in_group * int64_t{wide};
        const float* pull = s.pulls + in_group;
        float *grad_pull = s.grad_pulls + in_group,
              *grad_constant = s.grad_constants ? s.grad_constants + in_group : sums.bias;
        if (span.first() && !span.last) zero(s.compensation, 2 * wide);
        for (int c = 0; c < wide; c += W) {
            vec pulled{}, biased{};
            for (int i = span.begin; i < span.begin + span.n; i++) {
                int64_t row = fusion.polarity[positions[i]];
                float *dz = s.gates + i * wide + c, *table = polarities + row * wide + c;
                vec g = load(grads[i] + c), gate = load(dz), moved = broadcast(fusion.sign[row]) * g;
                store(table, load(table) + g);
                pulled = fma(moved, gate, pulled);
                vec z = moved * load(pull + c) * gate * (1.0f - gate);
                store(dz, z);
                biased += z;
            }
            if (span.whole()) {
                store(grad_pull + c, load(grad_pull + c) + pulled);
                store(grad_constant + c, load(grad_constant + c) + biased);
                continue;
            }
            add_compensated(grad_pull + c, s.compensation + c, pulled);
            if (s.grad_constants) {
                add_compensated(grad_constant + c, s.compensation + wide + c, biased);
            } else {
                store(grad_constant + c, load(grad_constant + c) + biased);
            }
        }
        if (span.whole() || !span.last) continue;
        compensate_sums(grad_pull, s.compensation, wide);
        if (s.grad_constants) compensate_sums(grad_constant, s.compensation + wide, wide);
    }
    if (small) axpy(sums.table, 1.0f, polarities, fusion.rows * wide);
    if (small_extra) axpy(sums.extra, 1.0f, extras, fusion.extra_rows * wide);
    if (fusion.kind == Fusion::bias) return;
    const float* rows[CHUNK];
    for (int i = 0; i < n; i++) rows[i] = s.gates + i * wide;
    const Blocks blocks{packed.gate_token_n, packed.gate_n, d, wide, true, nullptr};
    conditioned(blocks, chunk, rows, s.gate_table_n, s.halves,
                [&]<int R, int V>(Tile<R, V>& acc, const Span&, int i, int c) __attribute__((always_inline)) {
#pragma GCC unroll 6
                    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                        for (int v = 0; v < V; v++) {
                            float* at = grads[i + r] + c + v * W;
                            store(at, acc.at[r][v] + load(at));
                        }
                });
    Outer outer{s.gate_sum, &s.gate_sums, packed.gate_n, sums.gate_token, sums.gate, grad_targets};
    add_outer(outer, s.gates, wide, d, chunk, s.raw, wide, s.halves);
}

// Once per group: what the gradients of pulls and gate constants mean for the parameters and for the targets
// (padded rows [n][Dp]).
MIXPOL_INLINE void fusion_group_backward(const PolarityFusion& fusion, const PackedFusion& packed,
                                         const float* const* targets, int n, float* grad_targets,
                                         FusionScratch& s, const FusionSums& sums) {
    if (fusion.kind != Fusion::tapf) return;
    int d = fusion.width, wide = padded(d);
    add_transposed(s.grad_pulls, wide, d, targets, n, wide, sums.target, wide);
    const float* rows[GROUP];
    for (int i = 0; i < n; i++) rows[i] = s.grad_pulls + i * wide;
    multiply(rows, n, d, packed.target_n, wide, wide, grad_targets, wide, grad_targets, wide);
    if (!fusion.full_gate) return;
    add_transposed(s.grad_constants, wide, d, targets, n, wide, sums.gate_constant, wide);
    add_rows(sums.bias, s.grad_constants, wide, n, wide);
    for (int i = 0; i < n; i++) rows[i] = s.grad_constants + i * wide;
    multiply(rows, n, d, packed.gate_constant_n, wide, wide, grad_targets, wide, grad_targets, wide);
}

}  // namespace mixpol::cpu::MIXPOL_ISA
