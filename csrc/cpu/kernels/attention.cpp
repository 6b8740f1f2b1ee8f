// Target attention and mixed-polarity attention over a range of users. Tokens come in chunks; only the pooled
// vector, one score a token and (where it pays) a bit per hidden unit leave the forward.
#include <cmath>

#include "cpu/kernels/activation_unit_backward.h"
#include "cpu/kernels/fusion.h"
#include "cpu/kernels/level.h"
#include "cpu/kernels/softmax.h"

namespace mixpol::cpu::MIXPOL_ISA {

namespace {

struct Scratch {
    UnitScratch unit;
    FusionScratch fusion;
    Group group;
    float* grad_targets;  // [GROUP][Dp]
    float* pooled;        // [2][Dp], then what that sum lost
    float* grad_pooled;   // [GROUP][Dp]
    float* tokens;        // staged rows [CHUNK][Dp]
    float* grad_tokens;   // [CHUNK][Dp]
    float scores[CHUNK + W], weights[CHUNK + W], grad_scores[CHUNK];
    uint64_t bits[CHUNK];
    const float* rows[CHUNK];
    float* grads[CHUNK];  // where the gradients of the chunk's tokens are worked on
};

Scratch carve(const Pass& pass, bool backward, Arena& arena) {
    Scratch s{};
    int64_t wide = padded(pass.width);
    s.unit = carve_scratch(pass.unit, backward, layers_again(pass), pass.halves, arena);
    s.fusion = carve_scratch(pass.fusion, backward, s.unit.halves, arena);
    s.group.targets = arena.take(GROUP * wide);
    if (!backward) s.pooled = arena.take(2 * wide);
    s.tokens = arena.take(CHUNK * wide);
    if (backward) {
        s.grad_targets = arena.take(GROUP * wide);
        s.grad_pooled = arena.take(GROUP * wide);
        s.grad_tokens = arena.take(CHUNK * wide);
    }
    return s;
}

// Which units of n tokens are on, to and from rows of `bytes`, `stride` apart.
MIXPOL_INLINE void put_bits(uint8_t* to, int64_t stride, int bytes, const int64_t* positions, int n,
                            const uint64_t* bits) {
    if (bytes == 8) {  // the usual 64 units: one move instead of a call
        for (int i = 0; i < n; i++) std::memcpy(to + positions[i] * stride, bits + i, 8);
    } else {
        for (int i = 0; i < n; i++) std::memcpy(to + positions[i] * stride, bits + i, bytes);
    }
}

MIXPOL_INLINE void take_bits(const uint8_t* from, int64_t stride, int bytes, const int64_t* positions, int n,
                             uint64_t* bits) {
    if (bytes == 8) {
        for (int i = 0; i < n; i++) std::memcpy(bits + i, from + positions[i] * stride, 8);
    } else {
        for (int i = 0; i < n; i++) std::memcpy(bits + i, from + positions[i] * stride, bytes);
    }
}

using ForwardUnit = decltype(&unit_forward<Activation::relu>);
using RecomputeSignal = decltype(&signal_by_recomputing<Activation::relu>);

void forward(const AttentionForward& a, ForwardUnit score, int64_t begin, int64_t end, float* memory) {
    Arena arena(memory);
    Scratch s = carve(a, false, arena);
    const int wide = padded(a.width), bytes = (a.unit.units[a.unit.layers - 1] + 7) / 8;
    const int64_t candidates = a.candidates;
    const bool softmax = a.unit.normalize == Normalize::softmax;
    for (float& value : s.scores) value = 0;
    Softmax running;

    auto group = [&](int64_t, int n) {
        unit_group(a.unit, a.packed_unit, s.group.rows, n, s.unit);
        fusion_group(a.fusion, a.packed_fusion, s.group.rows, n, s.fusion);
    };
    auto pool = [&](const Chunk& chunk, const Span& span) {
        const int64_t row = span.user * candidates + span.candidate;
        const float* weights = s.scores + span.begin;
        const int sums = span.whole() ? wide : 2 * wide;
        if (span.first()) {
            running = {};
            zero(s.pooled, sums);
        }
        if (softmax && span.n > 0) {
            running.weigh(s.weights, weights, span.n, s.pooled, sums);
            weights = s.weights;
        }
        float* const compensation = span.whole() ? nullptr : s.pooled + wide;
        add_weighted(s.pooled, compensation, weights, s.rows + span.begin, span.n, wide);
        const int64_t* const positions = chunk.positions + span.begin;
        if (float* const attention = a.attention ? a.attention + span.candidate : nullptr)
            for (int i = 0; i < span.n; i++) attention[positions[i] * candidates] = s.scores[span.begin + i];
        if (a.bits)
            put_bits(a.bits + span.candidate * bytes, candidates * bytes, bytes, positions, span.n,
                     s.bits + span.begin);
        if (!span.last) return;
        if (compensation) compensate_sums(s.pooled, compensation, wide);
        if (softmax && span.seen + span.n > 0) {
            const vec total = broadcast(static_cast<float>(running.total));
            for (int c = 0; c < wide; c += W) store(s.pooled + c, load(s.pooled + c) / total);
            if (a.attention)
                running.finish(a.attention + span.candidate, Cursor(a.history, span.user), candidates);
        }
        std::memcpy(a.pooled + row * a.width, s.pooled, sizeof(float) * a.width);
    };
    auto work = [&](const Chunk& chunk) {
        if (a.attention) zero_pads(a.history, chunk, a.attention, candidates);
        if (a.bits) zero_pads(a.history, chunk, a.bits, candidates * bytes);
        stage_rows(a.tokens, a.history, chunk, a.width, s.tokens, s.rows);
        fuse(a.fusion, a.packed_fusion, chunk, s.fusion, s.rows);
        drop_keys(a.unit, a.candidates, chunk, s.unit);
        score(a.unit, a.packed_unit, chunk, s.rows, s.unit, s.scores, a.bits ? s.bits : nullptr);
        if (a.unit.normalize == Normalize::sigmoid)
            for (int i = 0; i < chunk.n; i += W) store(s.scores + i, math::sigmoid<Simd>(load(s.scores + i)));
        for (int i = 0; i < chunk.count; i++) pool(chunk, chunk.spans[i]);
    };
    for_chunks(a, begin, end, s.group, group, work, [](int64_t, int) {});
}

// w and dw of a target's tokens in a chunk, dw through the pooled vector and through the weights if they were
// returned.
MIXPOL_INLINE void weight_gradients(const AttentionBackward& a, const Chunk& chunk, const Span& span,
                                    const float* const* rows, const float* grad_pooled, float* weights,
                                    float* grads) {
    const int n = span.n;
    const int64_t candidates = a.candidates;
    const int64_t* const positions = chunk.positions + span.begin;
    const float* const attention = a.attention + span.candidate;
    weights += span.begin, grads += span.begin;
    rows_dot(rows + span.begin, n, grad_pooled, padded(a.width), grads);
    for (int i = 0; i < n; i++) weights[i] = attention[positions[i] * candidates];
    if (!a.grad_attention) return;
    const float* const grad_attention = a.grad_attention + span.candidate;
    for (int i = 0; i < n; i++) grads[i] += grad_attention[positions[i] * candidates];
}

// Σ w · dw / Σ w over some tokens. Not the pooled vector times its gradient, which is the same but for
// rounding: where one weight is nearly 1, dw minus this must cancel to the last bit. Rounding keeps Σ w
// from 1.
struct MeanGradient {
    double weights = 0, gradients = 0;

    void add(const float* w, const float* dw, int n) {
        for (int i = 0; i < n; i++) weights += w[i], gradients += double{w[i]} * dw[i];
    }
    double mean() const { return weights > 0 ? gradients / weights : gradients; }
};

// That of a history of several chunks.
double mean_gradient(const AttentionBackward& a, const Span& of, Scratch& s) {
    const int wide = padded(a.width);
    MeanGradient total;
    Chunk chunk;
    chunk.count = 1;
    Span& span = chunk.spans[0];
    span = of;
    Cursor cursor(a.history, span.user);
    for (span.n = 0; (chunk.n = cursor.fill(chunk.positions)); span.seen += span.n) {
        span.n = chunk.n;
        stage_rows(a.tokens, a.history, chunk, a.width, s.tokens, s.rows);
        fuse(a.fusion, a.packed_fusion, chunk, s.fusion, s.rows);
        weight_gradients(a, chunk, span, s.rows, s.grad_pooled + span.in_group * wide, s.weights,
                         s.grad_scores);
        total.add(s.weights, s.grad_scores, chunk.n);
    }
    return total.mean();
}

// Reads a chunk's tokens, and from the attention weights and the pooled vectors' gradients makes those of the
// scores. `average`: under a softmax, that of the weights' gradients, kept for a history of several chunks.
MIXPOL_INLINE void score_gradients(const AttentionBackward& a, const Chunk& chunk, double& average,
                                   Scratch& s) {
    const int wide = padded(a.width);
    const bool softmax = a.unit.normalize == Normalize::softmax;
    const Span& head = chunk.spans[0];
    if (softmax && head.first() && !head.last) average = mean_gradient(a, head, s);
    stage_rows(a.tokens, a.history, chunk, a.width, s.tokens, s.rows);
    fuse(a.fusion, a.packed_fusion, chunk, s.fusion, s.rows);
    for (int k = 0; k < chunk.count; k++) {
        const Span& span = chunk.spans[k];
        const int end = span.begin + span.n;
        weight_gradients(a, chunk, span, s.rows, s.grad_pooled + span.in_group * wide, s.weights,
                         s.grad_scores);
        if (a.unit.normalize == Normalize::sigmoid)
            for (int i = span.begin; i < end; i++) s.grad_scores[i] *= s.weights[i] * (1.0f - s.weights[i]);
        if (!softmax) continue;
        double mean = average;
        if (span.whole()) {
            MeanGradient own;
            own.add(s.weights + span.begin, s.grad_scores + span.begin, span.n);
            mean = own.mean();
        }
        for (int i = span.begin; i < end; i++)
            s.grad_scores[i] = s.weights[i] * static_cast<float>(s.grad_scores[i] - mean);
    }
}

// Padded copies of the pooled vectors' gradients of a group of targets.
MIXPOL_INLINE void group_gradients(const AttentionBackward& a, int64_t row0, int n, Scratch& s) {
    const int wide = padded(a.width);
    for (int i = 0; i < n; i++)
        copy_padded(s.grad_pooled + i * wide, a.grad_pooled + (row0 + i) * a.width, a.width, wide);
}

void backward(const AttentionBackward& a, RecomputeSignal recompute, int64_t user_begin, int64_t user_end,
              float* memory, const UnitSums& sums, const FusionSums& fusion_sums) {
    Arena arena(memory);
    Scratch s = carve(a, true, arena);
    const int wide = padded(a.width), hidden = a.unit.units[0], hp = padded(hidden);
    const int bytes = (a.unit.units[a.unit.layers - 1] + 7) / 8, ld = signal_width(a.unit, 0);
    const bool low = a.grad_element != Element::f32;
    const bool direct = wide == a.width && !low;  // a chunk's gradient can be written where it belongs
    float* const grad_floats = static_cast<float*>(a.grad_tokens);
    uint16_t* const grad_halves = static_cast<uint16_t*>(a.grad_tokens);
    const int64_t candidates = a.candidates;
    const bool bits = a.keep_bits;
    float* const signal = s.unit.signal[0];
    for (int i = 0; i < CHUNK; i++) s.bits[i] = 0;
    s.unit.mean = a.mean, s.unit.grad_mean = a.grad_mean, s.unit.grad_square = a.grad_square;
    const Blocks blocks{a.packed_unit.token_n, a.packed_unit.product_n, hidden, wide, true, s.grad_pooled};
    LongSums outer_sums = s.unit.outer_sums(a.unit), unit_sums = s.unit.long_sums(a.unit, sums),
             table_sums = s.fusion.long_sums(a.fusion, fusion_sums);
    const Outer outer{s.unit.outer, &outer_sums,  a.packed_unit.product_n,
                      sums.token,   sums.product, s.grad_targets};
    double output_bias = 0;  // one number for all tokens of the block
    double average = 0;

    auto group = [&](int64_t row0, int n) {
        if (layers_again(a) > 0) unit_group(a.unit, a.packed_unit, s.group.rows, n, s.unit);
        fusion_group(a.fusion, a.packed_fusion, s.group.rows, n, s.fusion);
        group_gradients(a, row0, n, s);
        zero(s.grad_targets, GROUP * wide);
        zero(s.unit.grad_constants, GROUP * hp);
    };
    // Zero tokens of the statistics: x is c(t), and they reach the parameters and the target through it only.
    auto add_pads = [&](const Span& span, float* out) {
        const float* x = s.unit.constants + span.in_group * hp;
        const vec pads = broadcast(static_cast<float>(pads_of(a.history, span.user, a.pad_to)));
        for (int c = 0; c < hp; c += W)
            add_compensated(
                out + c, s.unit.compensation + c,
                pads * fma(load(x + c) - load(a.mean + c), load(a.grad_square + c), load(a.grad_mean + c)));
    };
    auto write = [&](const Chunk& chunk, const Span& span) {
        for (int i = span.begin; i < span.begin + span.n; i++) {
            const float* grad = s.grads[i];
            if (low) {
                narrow_half(grad_halves + chunk.positions[i] * a.width, grad, a.width, a.grad_element);
                continue;
            }
            float* out = grad_floats + chunk.positions[i] * a.width;
            if (span.candidate > 0) {
                for (int c = 0; c < a.width; c++) out[c] += grad[c];
            } else if (out != grad) {
                std::memcpy(out, grad, sizeof(float) * a.width);
            }
        }
    };
    auto work = [&](const Chunk& chunk) {
        if (low) {
            zero_pads(a.history, chunk, grad_halves, a.width);
        } else {
            zero_pads(a.history, chunk, grad_floats, a.width);
        }
        score_gradients(a, chunk, average, s);
        for (int i = 0; i < chunk.n; i++) output_bias += s.grad_scores[i];
        if (bits) {
            for (int k = 0; k < chunk.count; k++) {
                const Span& span = chunk.spans[k];
                take_bits(a.bits + span.candidate * bytes, candidates * bytes, bytes,
                          chunk.positions + span.begin, span.n, s.bits + span.begin);
            }
            signal_by_bits(a.unit, a.packed_unit, chunk, s.rows, s.bits, s.grad_scores, s.unit, sums);
        } else if (a.stash) {
            take_back(grad_floats, a.width, chunk.positions, chunk.n, hidden, s.unit.before[0]);
            dice_signal(a.unit, a.packed_unit, chunk.n, s.grad_scores, s.unit, sums);
        } else {
            drop_keys(a.unit, a.candidates, chunk, s.unit);
            recompute(a.unit, a.packed_unit, chunk, s.rows, s.grad_scores, s.unit, sums);
        }
        for (int k = 0; k < chunk.count; k++) {
            const Span& span = chunk.spans[k];
            float* grad_constant = s.unit.grad_constants + span.in_group * hp;
            if (span.whole() && !a.mean) {
                add_rows(grad_constant, signal + span.begin * ld, ld, span.n, hp);
                continue;
            }
            if (span.first()) zero(s.unit.compensation, hp);
            add_rows(grad_constant, s.unit.compensation, signal + span.begin * ld, ld, span.n, hp);
            if (!span.last) continue;
            if (a.mean) add_pads(span, grad_constant);
            compensate_sums(grad_constant, s.unit.compensation, hp);
        }
        add_outer(outer, signal, ld, hidden, chunk, s.rows, wide, s.unit.halves);

        for (int i = 0; i < chunk.n; i++) {
            signal[i * ld + hidden] = s.weights[i];
            s.grads[i] = direct ? grad_floats + chunk.positions[i] * wide : s.grad_tokens + i * wide;
        }
        for (int k = 0; k < chunk.count && candidates > 1; k++) {
            const Span& span = chunk.spans[k];
            for (int i = span.begin; i < span.begin + span.n && span.candidate > 0; i++)
                s.grads[i] = s.grad_tokens + i * wide;
        }
        point_rows(s.unit.rows, signal, chunk.n, ld);
        grad_rows(blocks, chunk, s.unit.rows, s.unit.table_n, s.unit.halves, s.grads);
        fuse_backward(a.fusion, a.packed_fusion, chunk, s.grads, s.grad_targets, s.fusion, fusion_sums);
        if (!direct || candidates > 1)
            for (int k = 0; k < chunk.count; k++) write(chunk, chunk.spans[k]);
        unit_sums.step(), table_sums.step();
    };
    auto finish = [&](int64_t row0, int n) {
        unit_group_backward(a.unit, a.packed_unit, s.group.rows, n, s.grad_targets, s.unit, sums);
        fusion_group_backward(a.fusion, a.packed_fusion, s.group.rows, n, s.grad_targets, s.fusion,
                              fusion_sums);
        for (int i = 0; i < n; i++)
            std::memcpy(a.grad_target + (row0 + i) * a.width, s.grad_targets + i * wide,
                        sizeof(float) * a.width);
    };
    for_user_chunks(a, user_begin, user_end, s.group, group, work, finish);
    unit_sums.finish(), table_sums.finish();
    sums.output_bias[0] = static_cast<float>(output_bias);
}

}  // namespace

int64_t attention_scratch_floats(const Pass& pass, bool backward) {
    Arena arena(nullptr);
    carve(pass, backward, arena);
    return arena.used();
}

void attention_forward(const AttentionForward& a, int64_t begin, int64_t end, float* memory) {
#define MIXPOL_SCORE(name) unit_forward<Activation::name>,
    static constexpr ForwardUnit score[] = {MIXPOL_ACTIVATIONS(MIXPOL_SCORE)};
    forward(a, score[static_cast<int>(a.unit.activation)], begin, end, memory);
}

void attention_backward(const AttentionBackward& a, int64_t user_begin, int64_t user_end, float* memory,
                        const UnitSums& sums, const FusionSums& fusion_sums) {
#define MIXPOL_RECOMPUTE(name) signal_by_recomputing<Activation::name>,
    static constexpr RecomputeSignal recompute[] = {MIXPOL_ACTIVATIONS(MIXPOL_RECOMPUTE)};
    backward(a, recompute[static_cast<int>(a.unit.activation)], user_begin, user_end, memory, sums,
             fusion_sums);
}

void normalised_sums(const AttentionBackward& a, int64_t user_begin, int64_t user_end, float* memory,
                     float* sums) {
    Arena arena(memory);
    Scratch s = carve(a, true, arena);
    auto group = [&](int64_t row0, int n) {
        group_gradients(a, row0, n, s);
        unit_group(a.unit, a.packed_unit, s.group.rows, n, s.unit);
        fusion_group(a.fusion, a.packed_fusion, s.group.rows, n, s.fusion);
    };
    const int hp = padded(a.unit.units[0]);
    zero(s.unit.compensation, NORMALISED_SUMS * hp);
    auto add_pads = [&](const Span& span) {
        const float* x = s.unit.constants + span.in_group * hp;
        const vec pads = broadcast(static_cast<float>(pads_of(a.history, span.user, a.pad_to)));
        for (int c = 0; c < hp; c += W)
            add_compensated(sums + 2 * hp + c, s.unit.compensation + 2 * hp + c,
                            pads * (load(x + c) - load(a.mean + c)));
    };
    double average = 0;
    auto work = [&](const Chunk& chunk) {
        score_gradients(a, chunk, average, s);
        add_normalised(a.unit, a.packed_unit, chunk, s.rows, s.grad_scores, a.mean, s.unit, sums);
        for (int k = 0; k < chunk.count; k++)
            if (const Span& span = chunk.spans[k]; span.last && pads_of(a.history, span.user, a.pad_to))
                add_pads(span);
        if (a.stash)
            put_away(s.unit.before[0], a.unit.units[0], chunk.positions, chunk.n,
                     static_cast<float*>(a.grad_tokens), a.width);
    };
    for_user_chunks(a, user_begin, user_end, s.group, group, work, [](int64_t, int) {});
    compensate_sums(sums, s.unit.compensation, NORMALISED_SUMS * hp);
}

}  // namespace mixpol::cpu::MIXPOL_ISA
