// Target attention and mixed-polarity attention over a range of users. Tokens come in chunks; only the pooled
// vector, one score a token and (where it pays) a bit per hidden unit leave the forward.
#include <cmath>

#include "cpu/kernels/activation_unit.h"
#include "cpu/kernels/fusion.h"
#include "cpu/kernels/level.h"

namespace mixpol::cpu::MIXPOL_ISA {

namespace {

struct Scratch {
    UnitScratch unit;
    FusionScratch fusion;
    Group group;
    float* grad_targets;  // [GROUP][Dp]
    float* pooled;        // [Dp]
    float* grad_pooled;   // [Dp]
    float* tokens;        // staged rows [CHUNK][Dp]
    float* grad_tokens;   // [CHUNK][Dp]
    float scores[CHUNK], weights[CHUNK], grad_scores[CHUNK];
    uint64_t bits[CHUNK];
    int64_t positions[CHUNK];
    const float* rows[CHUNK];
};

Scratch carve(const Pass& pass, bool backward, Arena& arena) {
    Scratch s{};
    int64_t wide = padded(pass.width);
    s.unit = carve_scratch(pass.unit, backward, pass.keep_bits, arena);
    s.fusion = carve_scratch(pass.fusion, backward, arena);
    s.group.targets = arena.take(GROUP * wide);
    s.pooled = arena.take(wide);
    s.tokens = arena.take(CHUNK * wide);
    if (backward) {
        s.grad_targets = arena.take(GROUP * wide);
        s.grad_pooled = arena.take(wide);
        s.grad_tokens = arena.take(CHUNK * wide);
    }
    return s;
}

// A chunk's scores to attention weights under a running softmax; rescales what was pooled so far.
struct Softmax {
    float highest = -INFINITY, total = 0;

    void weigh(float* weights, const float* scores, int n, float* pooled, int wide) {
        float now = highest;
        for (int i = 0; i < n; i++) now = scores[i] > now ? scores[i] : now;
        if (now > highest) {
            float factor = exponential(highest - now);
            total *= factor;
            for (int c = 0; c < wide; c += W) store(pooled + c, load(pooled + c) * broadcast(factor));
            highest = now;
        }
        for (int i = 0; i < CHUNK; i += W) store(weights + i, exp(load(scores + i) - broadcast(highest)));
        for (int i = 0; i < n; i++) total += weights[i];
    }

    static float exponential(float x) {
        vec y = exp(broadcast(x));
        return y[0];
    }
};

using ForwardUnit = decltype(&unit_forward<Activation::relu>);
using RecomputeSignal = decltype(&signal_by_recomputing<Activation::relu>);

void forward(const AttentionForward& a, ForwardUnit score, int64_t user_begin, int64_t user_end,
             float* memory) {
    Arena arena(memory);
    Scratch s = carve(a, false, arena);
    const int wide = padded(a.width), hp = padded(a.unit.units[0]), bytes = (a.unit.units[0] + 7) / 8;
    const int64_t candidates = a.candidates;
    const bool softmax = a.unit.normalize == Normalize::softmax;
    for (int i = 0; i < CHUNK; i++) s.scores[i] = 0;

    auto group = [&](int n) {
        unit_group(a.unit, a.packed_unit, s.group.rows, n, s.unit);
        fusion_group(a.fusion, a.packed_fusion, s.group.rows, n, s.fusion);
    };
    auto one = [&](int64_t user, int candidate, int in_group, const float* target) {
        if (candidate == 0 && a.scores)
            fill_pads(a.history, user, a.scores, candidates, softmax ? -INFINITY : 0.0f);
        Cursor cursor(a.history, user);
        Softmax running;
        zero(s.pooled, wide);
        bool ready = false;
        while (int n = cursor.fill(s.positions)) {
            if (!ready) {
                build_table(s.unit.table, a.packed_unit.token_t, a.packed_unit.product_t, target, a.width,
                            hp);
                fusion_target(a.fusion, a.packed_fusion, target, false, s.fusion);
                ready = true;
            }
            stage_rows(a.tokens, a.history, user, s.positions, n, a.width, s.tokens, s.rows);
            fuse(a.fusion, a.packed_fusion, s.positions, n, row_of(s.fusion.pulls, in_group, wide), s.fusion,
                 s.rows);
            score(a.unit, a.packed_unit, s.rows, n, row_of(s.unit.constants, in_group, hp), s.unit, s.scores,
                  a.bits ? s.bits : nullptr);
            const float* weights = s.scores;
            if (softmax) {
                running.weigh(s.weights, s.scores, n, s.pooled, wide);
                weights = s.weights;
            }
            add_transposed(weights, 1, 1, s.rows, n, wide, s.pooled, 0);
            if (a.scores)
                for (int i = 0; i < n; i++) a.scores[s.positions[i] * candidates + candidate] = s.scores[i];
            if (a.bits)
                for (int i = 0; i < n; i++)
                    std::memcpy(a.bits + (s.positions[i] * candidates + candidate) * bytes, &s.bits[i],
                                bytes);
        }
        int64_t row = user * candidates + candidate;
        if (softmax && ready)
            for (int c = 0; c < wide; c += W)
                store(s.pooled + c, load(s.pooled + c) / broadcast(running.total));
        std::memcpy(a.pooled + row * a.width, s.pooled, sizeof(float) * a.width);
        if (a.lse) a.lse[row] = softmax && ready ? running.highest + std::log(running.total) : 0.0f;
    };
    for_targets(a, user_begin, user_end, s.group, group, one, [](int64_t, int) {});
}

void backward(const AttentionBackward& a, RecomputeSignal recompute, int64_t user_begin, int64_t user_end,
              float* memory, const UnitSums& sums, const FusionSums& fusion_sums) {
    Arena arena(memory);
    Scratch s = carve(a, true, arena);
    const int wide = padded(a.width), hp = padded(a.unit.units[0]), bytes = (a.unit.units[0] + 7) / 8;
    const int64_t candidates = a.candidates;
    const bool softmax = a.unit.normalize == Normalize::softmax, bits = a.keep_bits;
    const float* scale = bits ? a.packed_unit.output : nullptr;
    for (int i = 0; i < CHUNK; i++) s.scores[i] = 0, s.bits[i] = 0;

    auto group = [&](int n) {
        if (!bits) unit_group(a.unit, a.packed_unit, s.group.rows, n, s.unit);
        fusion_group(a.fusion, a.packed_fusion, s.group.rows, n, s.fusion);
        zero(s.grad_targets, GROUP * wide);
        zero(s.unit.grad_constants, GROUP * hp);
        if (s.fusion.grad_pulls) zero(s.fusion.grad_pulls, GROUP * wide);
    };
    auto one = [&](int64_t user, int candidate, int in_group, const float* target) {
        if (candidate == 0) fill_pads(a.history, user, a.grad_tokens, a.width, 0.0f);
        const int64_t row = user * candidates + candidate;
        Cursor cursor(a.history, user);
        float *grad_target = s.grad_targets + in_group * wide,
              *grad_constant = s.unit.grad_constants + in_group * hp;
        const float* pull = row_of(s.fusion.pulls, in_group, wide);
        float average = 0;  // softmax: the pooled vector's gradient along itself
        bool first = true;
        while (int n = cursor.fill(s.positions)) {
            const bool last = cursor.done();
            if (first) {
                copy_padded(s.grad_pooled, a.grad_pooled + row * a.width, a.width, wide);
                if (softmax) {
                    copy_padded(s.pooled, a.pooled + row * a.width, a.width, wide);
                    average = dot(s.pooled, s.grad_pooled, wide);
                }
                if (!bits)
                    build_table(s.unit.table, a.packed_unit.token_t, a.packed_unit.product_t, target, a.width,
                                hp);
                build_table_n(s.unit.table_n, a.packed_unit.token_n, a.packed_unit.product_n, target, scale,
                              a.unit.units[0], wide);
                fusion_target(a.fusion, a.packed_fusion, target, true, s.fusion);
            }
            stage_rows(a.tokens, a.history, user, s.positions, n, a.width, s.tokens, s.rows);
            fuse(a.fusion, a.packed_fusion, s.positions, n, pull, s.fusion, s.rows);

            for (int i = 0; i < n; i++) s.weights[i] = a.scores[s.positions[i] * candidates + candidate];
            if (softmax) {
                vec lse = broadcast(a.lse[row]);
                for (int i = 0; i < CHUNK; i += W) store(s.weights + i, exp(load(s.weights + i) - lse));
            }
            for (int i = 0; i < n; i++) {
                float grad = dot(s.rows[i], s.grad_pooled, wide);
                s.grad_scores[i] = softmax ? s.weights[i] * (grad - average) : grad;
                sums.output_bias[0] += s.grad_scores[i];
            }
            if (bits) {
                for (int i = 0; i < n; i++)
                    std::memcpy(&s.bits[i], a.bits + (s.positions[i] * candidates + candidate) * bytes,
                                bytes);
                signal_from_bits(s.bits, s.grad_scores, n, hp, s.unit.signal[0]);
            } else {
                recompute(a.unit, a.packed_unit, s.rows, n, row_of(s.unit.constants, in_group, hp),
                          s.grad_scores, s.unit, sums);
            }
            for (int i = 0; i < n; i++) axpy(grad_constant, 1.0f, s.unit.signal[0] + i * hp, hp);
            Outer outer{s.unit.outer, a.packed_unit.product_n, scale, sums.token, sums.product, grad_target};
            add_outer(outer, s.unit.signal[0], hp, a.unit.units[0], s.rows, n, wide, target, first, last);

            for (int i = 0; i < n; i++)
                for (int c = 0; c < wide; c += W)
                    store(s.grad_tokens + i * wide + c, broadcast(s.weights[i]) * load(s.grad_pooled + c));
            point_rows(s.unit.rows, s.unit.signal[0], n, hp);
            multiply(s.unit.rows, n, a.unit.units[0], s.unit.table_n, wide, wide, s.grad_tokens, wide,
                     s.grad_tokens, wide);
            fuse_backward(a.fusion, a.packed_fusion, s.positions, n, target, pull, first, last, s.grad_tokens,
                          grad_target, row_of(s.fusion.grad_pulls, in_group, wide), s.fusion, fusion_sums);
            for (int i = 0; i < n; i++) {
                float* out = a.grad_tokens + s.positions[i] * a.width;
                const float* grad = s.grad_tokens + i * wide;
                if (candidate == 0) {
                    std::memcpy(out, grad, sizeof(float) * a.width);
                } else {
                    for (int c = 0; c < a.width; c++) out[c] += grad[c];
                }
            }
            first = false;
        }
    };
    auto finish = [&](int64_t row0, int n) {
        unit_group_backward(a.unit, a.packed_unit, s.group.rows, n, scale, s.grad_targets, s.unit, sums);
        fusion_group_backward(a.fusion, a.packed_fusion, s.group.rows, n, s.grad_targets, s.fusion,
                              fusion_sums);
        for (int i = 0; i < n; i++)
            std::memcpy(a.grad_target + (row0 + i) * a.width, s.grad_targets + i * wide,
                        sizeof(float) * a.width);
    };
    for_targets(a, user_begin, user_end, s.group, group, one, finish);
}

}  // namespace

int64_t attention_scratch_floats(const Pass& pass, bool backward) {
    Arena arena(nullptr);
    carve(pass, backward, arena);
    return arena.used();
}

void attention_forward(const AttentionForward& a, int64_t user_begin, int64_t user_end, float* memory) {
    static constexpr ForwardUnit score[] = {unit_forward<Activation::relu>, unit_forward<Activation::prelu>,
                                            unit_forward<Activation::sigmoid>,
                                            unit_forward<Activation::silu>};
    forward(a, score[static_cast<int>(a.unit.activation)], user_begin, user_end, memory);
}

void attention_backward(const AttentionBackward& a, int64_t user_begin, int64_t user_end, float* memory,
                        const UnitSums& sums, const FusionSums& fusion_sums) {
    static constexpr RecomputeSignal recompute[] = {
        signal_by_recomputing<Activation::relu>, signal_by_recomputing<Activation::prelu>,
        signal_by_recomputing<Activation::sigmoid>, signal_by_recomputing<Activation::silu>};
    backward(a, recompute[static_cast<int>(a.unit.activation)], user_begin, user_end, memory, sums,
             fusion_sums);
}

}  // namespace mixpol::cpu::MIXPOL_ISA
