// Polarity fusion of tokens over a range of users, for backbones that need the tokens themselves.
#include "cpu/kernels/fusion.h"
#include "cpu/kernels/level.h"

namespace mixpol::cpu::MIXPOL_ISA {

namespace {

struct Scratch {
    FusionScratch fusion;
    Group group;
    float* grad_targets;  // [GROUP][Dp]
    float* tokens;        // [CHUNK][Dp]
    float* grad_tokens;   // [CHUNK][Dp]
    int64_t positions[CHUNK];
    const float* rows[CHUNK];
};

Scratch carve(const Pass& pass, bool backward, Arena& arena) {
    Scratch s{};
    int64_t wide = padded(pass.width);
    s.fusion = carve_scratch(pass.fusion, backward, arena);
    s.group.targets = arena.take(GROUP * wide);
    s.tokens = arena.take(CHUNK * wide);
    if (backward) {
        s.grad_targets = arena.take(GROUP * wide);
        s.grad_tokens = arena.take(CHUNK * wide);
    }
    return s;
}

}  // namespace

int64_t fusion_scratch_floats(const Pass& pass, bool backward) {
    Arena arena(nullptr);
    carve(pass, backward, arena);
    return arena.used();
}

void fusion_forward(const FusionForward& a, int64_t user_begin, int64_t user_end, float* memory) {
    Arena arena(memory);
    Scratch s = carve(a, false, arena);
    auto group = [&](int n) { fusion_group(a.fusion, a.packed_fusion, s.group.rows, n, s.fusion); };
    auto one = [&](int64_t user, int, int in_group, const float* target) {
        fill_pads(a.history, user, a.fused, a.width, 0.0f);
        Cursor cursor(a.history, user);
        bool ready = false;
        while (int n = cursor.fill(s.positions)) {
            if (!ready) fusion_target(a.fusion, a.packed_fusion, target, in_group, false, s.fusion);
            ready = true;
            stage_rows(a.tokens, a.history, user, s.positions, n, a.width, s.tokens, s.rows);
            fuse(a.fusion, a.packed_fusion, s.positions, n, s.fusion, s.rows);
            for (int i = 0; i < n; i++)
                std::memcpy(a.fused + s.positions[i] * a.width, s.rows[i], sizeof(float) * a.width);
        }
    };
    for_targets(a, user_begin, user_end, s.group, group, one, [](int64_t, int) {});
}

void fusion_backward(const FusionBackward& a, int64_t user_begin, int64_t user_end, float* memory,
                     const FusionSums& sums) {
    Arena arena(memory);
    Scratch s = carve(a, true, arena);
    const int wide = padded(a.width);
    auto group = [&](int n) {
        fusion_group(a.fusion, a.packed_fusion, s.group.rows, n, s.fusion);
        zero(s.grad_targets, GROUP * wide);
    };
    auto one = [&](int64_t user, int, int in_group, const float* target) {
        fill_pads(a.history, user, a.grad_tokens, a.width, 0.0f);
        Cursor cursor(a.history, user);
        bool first = true;
        while (int n = cursor.fill(s.positions)) {
            if (first) fusion_target(a.fusion, a.packed_fusion, target, in_group, true, s.fusion);
            stage_rows(a.tokens, a.history, user, s.positions, n, a.width, s.tokens, s.rows);
            fuse(a.fusion, a.packed_fusion, s.positions, n, s.fusion, s.rows);
            for (int i = 0; i < n; i++)
                copy_padded(s.grad_tokens + i * wide,
                            token_row(a.grad_fused, a.history, user, s.positions[i]), a.width, wide);
            fuse_backward(a.fusion, a.packed_fusion, s.positions, n, target, first, cursor.done(),
                          s.grad_tokens, s.grad_targets + in_group * wide, s.fusion, sums);
            for (int i = 0; i < n; i++)
                std::memcpy(a.grad_tokens + s.positions[i] * a.width, s.grad_tokens + i * wide,
                            sizeof(float) * a.width);
            first = false;
        }
    };
    auto finish = [&](int64_t row0, int n) {
        fusion_group_backward(a.fusion, a.packed_fusion, s.group.rows, n, s.grad_targets, s.fusion, sums);
        for (int i = 0; i < n; i++)
            std::memcpy(a.grad_target + (row0 + i) * a.width, s.grad_targets + i * wide,
                        sizeof(float) * a.width);
    };
    for_targets(a, user_begin, user_end, s.group, group, one, finish);
}

}  // namespace mixpol::cpu::MIXPOL_ISA
