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
    const float* rows[CHUNK];
};

Scratch carve(const Pass& pass, bool backward, Arena& arena) {
    Scratch s{};
    int64_t wide = padded(pass.width);
    s.fusion = carve_scratch(pass.fusion, backward, {}, arena);
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
    auto group = [&](int64_t, int n) { fusion_group(a.fusion, a.packed_fusion, s.group.rows, n, s.fusion); };
    auto work = [&](const Chunk& chunk) {
        zero_pads(a.history, chunk, a.fused, a.width);
        stage_rows(a.tokens, a.history, chunk, a.width, s.tokens, s.rows);
        if (a.fusion.kind != Fusion::tapf) chunk.next.ask(0, CHUNK, 0);  // no tiles to ask among
        fuse(a.fusion, a.packed_fusion, chunk, s.fusion, s.rows);
        for (int i = 0; i < chunk.n; i++)
            std::memcpy(a.fused + chunk.positions[i] * a.width, s.rows[i], sizeof(float) * a.width);
    };
    for_user_chunks(a, user_begin, user_end, s.group, group, work, [](int64_t, int) {});
}

void fusion_backward(const FusionBackward& a, int64_t user_begin, int64_t user_end, float* memory,
                     const FusionSums& sums) {
    Arena arena(memory);
    Scratch s = carve(a, true, arena);
    const int wide = padded(a.width);
    float* grads[CHUNK];
    for (int i = 0; i < CHUNK; i++) grads[i] = s.grad_tokens + i * wide;
    LongSums long_sums = s.fusion.long_sums(a.fusion, sums);
    auto group = [&](int64_t, int n) {
        fusion_group(a.fusion, a.packed_fusion, s.group.rows, n, s.fusion);
        zero(s.grad_targets, GROUP * wide);
    };
    auto work = [&](const Chunk& chunk) {
        zero_pads(a.history, chunk, a.grad_tokens, a.width);
        stage_rows(a.tokens, a.history, chunk, a.width, s.tokens, s.rows);
        if (a.fusion.kind != Fusion::tapf) chunk.next.ask(0, CHUNK, 0);  // no tiles to ask among
        fuse(a.fusion, a.packed_fusion, chunk, s.fusion, s.rows);
        for (int k = 0; k < chunk.count; k++) {
            const Span& span = chunk.spans[k];
            const UserRows rows(a.grad_fused, a.history, span.user);
            for (int i = span.begin; i < span.begin + span.n; i++)
                copy_padded(grads[i], rows.floats(chunk.positions[i]), a.width, wide);
        }
        fuse_backward(a.fusion, a.packed_fusion, chunk, grads, s.grad_targets, s.fusion, sums);
        for (int i = 0; i < chunk.n; i++)
            std::memcpy(a.grad_tokens + chunk.positions[i] * a.width, grads[i], sizeof(float) * a.width);
        long_sums.step();
    };
    auto finish = [&](int64_t row0, int n) {
        fusion_group_backward(a.fusion, a.packed_fusion, s.group.rows, n, s.grad_targets, s.fusion, sums);
        for (int i = 0; i < n; i++)
            std::memcpy(a.grad_target + (row0 + i) * a.width, s.grad_targets + i * wide,
                        sizeof(float) * a.width);
    };
    for_user_chunks(a, user_begin, user_end, s.group, group, work, finish);
    long_sums.finish();
}

}  // namespace mixpol::cpu::MIXPOL_ISA
