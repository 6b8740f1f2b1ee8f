// Polarity fusion of a chunk of tokens (DESIGN: x' = x + P[s] + sign_s * g * (Wt t), g = σ(Wg (x * t) + bg)),
// and its backward. The gate is the target-conditioned linear with only the product block: x · diag(t) Wgᵀ.
#pragma once

#include "cpu/kernels/conditioned_linear.h"

namespace mixpol::cpu::MIXPOL_ISA {

struct FusionScratch {
    float* gate_table;    // diag(t) Wgᵀ [D][Dp]
    float* gate_table_n;  // its transpose [D][Dp]
    float* pulls;         // Wt t for a group of targets, [GROUP][Dp]
    float* fused;         // x' [CHUNK][Dp]
    float* gates;         // g, then dz [CHUNK][Dp]
    float* gate_sum;      // Σ dz xᵀ [D][Dp]
    float* grad_pulls;    // [GROUP][Dp]
    const float* raw[CHUNK];
};

static inline FusionScratch carve_scratch(const PolarityFusion& fusion, bool backward, Arena& arena) {
    FusionScratch s{};
    int64_t d = fusion.width, dp = padded(fusion.width);
    if (fusion.kind == Fusion::none) return s;
    s.fused = arena.take(CHUNK * dp);
    if (fusion.kind != Fusion::tapf) return s;
    s.gate_table = arena.take(d * dp);
    s.pulls = arena.take(GROUP * dp);
    s.gates = arena.take(CHUNK * dp);
    if (backward) {
        s.gate_table_n = arena.take(d * dp);
        s.gate_sum = arena.take(d * dp);
        s.grad_pulls = arena.take(GROUP * dp);
    }
    return s;
}

// Once per group of targets (padded rows [n][Dp]): their pulls Wt t.
MIXPOL_INLINE void fusion_group(const PolarityFusion& fusion, const PackedFusion& packed,
                                const float* const* targets, int n, FusionScratch& s) {
    if (fusion.kind != Fusion::tapf) return;
    int wide = padded(fusion.width);
    multiply(targets, n, fusion.width, packed.target_t, wide, wide, nullptr, 0, s.pulls, wide);
}

// Once per target: its gate tables.
MIXPOL_INLINE void fusion_target(const PolarityFusion& fusion, const PackedFusion& packed,
                                 const float* target, bool backward, FusionScratch& s) {
    if (fusion.kind != Fusion::tapf) return;
    int d = fusion.width, wide = padded(d);
    build_table(s.gate_table, nullptr, packed.gate_t, target, d, wide);
    if (backward) build_table_n(s.gate_table_n, nullptr, packed.gate_n, target, d, wide);
}

// Replaces rows by the fused tokens; keeps the raw rows and the gate values for the backward.
MIXPOL_INLINE void fuse(const PolarityFusion& fusion, const PackedFusion& packed, const int64_t* positions,
                        int n, const float* pull, FusionScratch& s, const float** rows) {
    if (fusion.kind == Fusion::none) return;
    int wide = padded(fusion.width);
    for (int i = 0; i < n; i++) s.raw[i] = rows[i];
    if (fusion.kind == Fusion::bias) {
        for (int i = 0; i < n; i++) {
            const float* polarity = packed.table + fusion.polarity[positions[i]] * wide;
            for (int c = 0; c < wide; c += W)
                store(s.fused + i * wide + c, load(rows[i] + c) + load(polarity + c));
        }
    } else {
        multiply(s.raw, n, fusion.width, s.gate_table, wide, wide, packed.bias, 0, s.gates, wide);
        for (int i = 0; i < n; i++) {
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
    for (int i = 0; i < n; i++) rows[i] = s.fused + i * wide;
}

// Turns the gradient of the fused tokens [n][Dp], in place, into that of the raw tokens; adds to the block's
// sums and, with TAPF, to the gradients of the target and of its pull. Call with `last` on a target's last
// chunk.
MIXPOL_INLINE void fuse_backward(const PolarityFusion& fusion, const PackedFusion& packed,
                                 const int64_t* positions, int n, const float* target, const float* pull,
                                 bool first, bool last, float* grad, float* grad_target, float* grad_pull,
                                 FusionScratch& s, const FusionSums& sums) {
    if (fusion.kind == Fusion::none) return;
    int d = fusion.width, wide = padded(d);
    if (fusion.kind == Fusion::bias) {
        for (int i = 0; i < n; i++)
            axpy(sums.table + fusion.polarity[positions[i]] * wide, 1.0f, grad + i * wide, wide);
        return;
    }
    for (int c = 0; c < wide; c += W) {
        vec pulled{}, biased{};
        for (int i = 0; i < n; i++) {
            int64_t row = fusion.polarity[positions[i]];
            float *dz = s.gates + i * wide + c, *table = sums.table + row * wide + c;
            vec g = load(grad + i * wide + c), gate = load(dz), moved = broadcast(fusion.sign[row]) * g;
            store(table, load(table) + g);
            pulled = fma(moved, gate, pulled);
            vec z = moved * load(pull + c) * gate * (1.0f - gate);
            store(dz, z);
            biased += z;
        }
        store(grad_pull + c, load(grad_pull + c) + pulled);
        store(sums.bias + c, load(sums.bias + c) + biased);
    }
    const float* rows[CHUNK];
    for (int i = 0; i < n; i++) rows[i] = s.gates + i * wide;
    multiply(rows, n, d, s.gate_table_n, wide, wide, grad, wide, grad, wide);
    Outer outer{s.gate_sum, packed.gate_n, nullptr, sums.gate, grad_target};
    add_outer(outer, s.gates, wide, d, s.raw, n, wide, target, first, last);
}

// Once per group: what the pulls' gradients mean for Wt and for the targets (padded rows [n][Dp]).
MIXPOL_INLINE void fusion_group_backward(const PolarityFusion& fusion, const PackedFusion& packed,
                                         const float* const* targets, int n, float* grad_targets,
                                         FusionScratch& s, const FusionSums& sums) {
    if (fusion.kind != Fusion::tapf) return;
    int d = fusion.width, wide = padded(d);
    add_transposed(s.grad_pulls, wide, d, targets, n, wide, sums.target, wide);
    const float* rows[GROUP];
    for (int i = 0; i < n; i++) rows[i] = s.grad_pulls + i * wide;
    multiply(rows, n, d, packed.target_n, wide, wide, grad_targets, wide, grad_targets, wide);
}

}  // namespace mixpol::cpu::MIXPOL_ISA
