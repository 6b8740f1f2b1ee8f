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
    if (!backward) s.pooled = arena.take(wide);
    s.tokens = arena.take(CHUNK * wide);
    if (backward) {
        s.grad_targets = arena.take(GROUP * wide);
        s.grad_pooled = arena.take(wide);
        s.grad_tokens = arena.take(CHUNK * wide);
    }
    return s;
}

MIXPOL_INLINE void copy_bits(void* to, const void* from, int bytes) {
    if (bytes == 8) {  // the usual 64 units: one move instead of a call
        std::memcpy(to, from, 8);
    } else {
        std::memcpy(to, from, bytes);
    }
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

    // The scores that were written on the way, to weights.
    void finish(float* attention, Cursor cursor, int64_t stride, int64_t* positions) const {
        float weights[CHUNK] = {};
        while (int n = cursor.fill(positions)) {
            for (int i = 0; i < n; i++) weights[i] = attention[positions[i] * stride];
            for (int i = 0; i < CHUNK; i += W)
                store(weights + i, exp(load(weights + i) - broadcast(highest)) / broadcast(total));
            for (int i = 0; i < n; i++) attention[positions[i] * stride] = weights[i];
        }
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
        if (candidate == 0 && a.attention) fill_pads(a.history, user, a.attention, candidates, 0.0f);
        if (candidate == 0 && a.bits) fill_pads(a.history, user, a.bits, candidates * bytes, uint8_t{0});
        Cursor cursor(a.history, user);
        Softmax running;
        zero(s.pooled, wide);
        bool ready = false;
        int64_t seen = 0;
        while (int n = cursor.fill(s.positions)) {
            if (!ready) {
                build_table(s.unit.table, a.packed_unit.token_t, a.packed_unit.product_t, target, a.width,
                            hp);
                fusion_target(a.fusion, a.packed_fusion, target, in_group, false, s.fusion);
                ready = true;
            }
            if (candidate + 1 == candidates)
                prefetch_next(a.tokens, a.history, cursor, user, user_end, a.width);
            stage_rows(a.tokens, a.history, user, s.positions, n, a.width, s.tokens, s.rows);
            fuse(a.fusion, a.packed_fusion, s.positions, n, s.fusion, s.rows);
            drop_keys(a.unit, user * candidates + candidate, seen, n, s.unit);
            seen += n;
            score(a.unit, a.packed_unit, s.rows, n, row_of(s.unit.constants, in_group, hp), s.unit, s.scores,
                  a.bits ? s.bits : nullptr);
            const float* weights = s.scores;
            if (softmax) {
                running.weigh(s.weights, s.scores, n, s.pooled, wide);
                weights = s.weights;
            } else if (a.unit.normalize == Normalize::sigmoid) {
                for (int i = 0; i < CHUNK; i += W)
                    store(s.scores + i, math::sigmoid<Simd>(load(s.scores + i)));
            }
            add_transposed(weights, 1, 1, s.rows, n, wide, s.pooled, 0);
            if (a.attention)
                for (int i = 0; i < n; i++)
                    a.attention[s.positions[i] * candidates + candidate] = s.scores[i];
            if (a.bits)
                for (int i = 0; i < n; i++)
                    std::memcpy(a.bits + (s.positions[i] * candidates + candidate) * bytes, &s.bits[i],
                                bytes);
        }
        if (softmax && ready) {
            for (int c = 0; c < wide; c += W)
                store(s.pooled + c, load(s.pooled + c) / broadcast(running.total));
            if (a.attention)
                running.finish(a.attention + candidate, Cursor(a.history, user), candidates, s.positions);
        }
        std::memcpy(a.pooled + (user * candidates + candidate) * a.width, s.pooled, sizeof(float) * a.width);
    };
    for_targets(a, user_begin, user_end, s.group, group, one, [](int64_t, int) {});
}

// dw of one token: through the pooled vector, and through the weights if they were returned.
MIXPOL_INLINE float weight_gradient(const AttentionBackward& a, int64_t at, const float* token,
                                    const float* grad_pooled, int wide) {
    float through_pooled = dot(token, grad_pooled, wide);
    return a.grad_attention ? through_pooled + a.grad_attention[at] : through_pooled;
}

// Σ w · dw over a history of several chunks. Not the pooled vector times its gradient, which is the same but
// for rounding: where one weight is nearly 1, dw minus this must cancel to the last bit.
double mean_gradient(const AttentionBackward& a, int64_t user, int candidate, Scratch& s) {
    const int wide = padded(a.width);
    double total = 0;
    int64_t positions[CHUNK];
    Cursor cursor(a.history, user);
    while (int n = cursor.fill(positions)) {
        stage_rows(a.tokens, a.history, user, positions, n, a.width, s.tokens, s.rows);
        fuse(a.fusion, a.packed_fusion, positions, n, s.fusion, s.rows);
        for (int i = 0; i < n; i++) {
            const int64_t at = positions[i] * a.candidates + candidate;
            total += double{a.attention[at]} * weight_gradient(a, at, s.rows[i], s.grad_pooled, wide);
        }
    }
    return total;
}

// A chunk's gradients of the scores, from the attention weights (which it reads) and the pooled vector's
// gradient. Under a softmax `average` is that of the weights; where the history is this one chunk it is found
// here.
MIXPOL_INLINE void score_gradients(const AttentionBackward& a, int candidate, int n, bool only,
                                   double average, Scratch& s) {
    const int wide = padded(a.width);
    for (int i = 0; i < n; i++) s.weights[i] = a.attention[s.positions[i] * a.candidates + candidate];
    for (int i = 0; i < n; i++)
        s.grad_scores[i] =
            weight_gradient(a, s.positions[i] * a.candidates + candidate, s.rows[i], s.grad_pooled, wide);
    if (a.unit.normalize == Normalize::sigmoid)
        for (int i = 0; i < n; i++) s.grad_scores[i] *= s.weights[i] * (1.0f - s.weights[i]);
    if (a.unit.normalize == Normalize::softmax) {
        for (int i = 0; i < n && only; i++) average += double{s.weights[i]} * s.grad_scores[i];
        for (int i = 0; i < n; i++)
            s.grad_scores[i] = s.weights[i] * static_cast<float>(s.grad_scores[i] - average);
    }
}

void backward(const AttentionBackward& a, RecomputeSignal recompute, int64_t user_begin, int64_t user_end,
              float* memory, const UnitSums& sums, const FusionSums& fusion_sums) {
    Arena arena(memory);
    Scratch s = carve(a, true, arena);
    const int wide = padded(a.width), hp = padded(a.unit.units[0]), bytes = (a.unit.units[0] + 7) / 8;
    const int hidden = a.unit.units[0], ld = signal_width(a.unit, 0);
    const bool low = a.grad_element != Element::f32;
    const bool direct = wide == a.width && !low;  // a chunk's gradient can be written where it belongs
    float* const grad_floats = static_cast<float*>(a.grad_tokens);
    uint16_t* const grad_halves = static_cast<uint16_t*>(a.grad_tokens);
    const int64_t candidates = a.candidates;
    const bool softmax = a.unit.normalize == Normalize::softmax, bits = a.keep_bits;
    for (int i = 0; i < CHUNK; i++) s.bits[i] = 0;
    s.unit.mean = a.mean, s.unit.grad_mean = a.grad_mean, s.unit.grad_square = a.grad_square;
    double output_bias = 0;  // one number for all tokens of the block

    auto group = [&](int n) {
        if (!bits) unit_group(a.unit, a.packed_unit, s.group.rows, n, s.unit);
        fusion_group(a.fusion, a.packed_fusion, s.group.rows, n, s.fusion);
        zero(s.grad_targets, GROUP * wide);
        zero(s.unit.grad_constants, GROUP * hp);
    };
    auto one = [&](int64_t user, int candidate, int in_group, const float* target) {
        if (candidate == 0 && low) fill_pads(a.history, user, grad_halves, a.width, uint16_t{0});
        if (candidate == 0 && !low) fill_pads(a.history, user, grad_floats, a.width, 0.0f);
        const int64_t row = user * candidates + candidate;
        Cursor cursor(a.history, user);
        float *grad_target = s.grad_targets + in_group * wide,
              *grad_constant = s.unit.grad_constants + in_group * hp;
        double average = 0;  // softmax: Σ w · dw
        bool first = true;
        int64_t seen = 0;
        while (int n = cursor.fill(s.positions)) {
            const bool last = cursor.done();
            if (first) {
                zero(s.unit.lost, hp);
                copy_padded(s.grad_pooled, a.grad_pooled + row * a.width, a.width, wide);
                if (!bits)
                    build_table(s.unit.table, a.packed_unit.token_t, a.packed_unit.product_t, target, a.width,
                                hp);
                build_table_n(s.unit.table_n, a.packed_unit.token_n, a.packed_unit.product_n, target, hidden,
                              wide);
                copy_padded(s.unit.table_n + hidden * wide, s.grad_pooled, wide, wide);
                fusion_target(a.fusion, a.packed_fusion, target, in_group, true, s.fusion);
                if (softmax && !last) average = mean_gradient(a, user, candidate, s);
            }
            if (candidate + 1 == candidates)
                prefetch_next(a.tokens, a.history, cursor, user, user_end, a.width);
            stage_rows(a.tokens, a.history, user, s.positions, n, a.width, s.tokens, s.rows);
            fuse(a.fusion, a.packed_fusion, s.positions, n, s.fusion, s.rows);

            score_gradients(a, candidate, n, first && last, average, s);
            for (int i = 0; i < n; i++) output_bias += s.grad_scores[i];
            if (bits) {
                for (int i = 0; i < n; i++)
                    copy_bits(&s.bits[i], a.bits + (s.positions[i] * candidates + candidate) * bytes, bytes);
                signal_from_bits(s.bits, s.grad_scores, n, hp, ld, s.unit.signal[0]);
            } else {
                drop_keys(a.unit, row, seen, n, s.unit);
                seen += n;
                recompute(a.unit, a.packed_unit, s.rows, n, row_of(s.unit.constants, in_group, hp),
                          s.grad_scores, s.unit, sums);
            }
            add_rows(grad_constant, s.unit.lost, s.unit.signal[0], ld, n, hp);
            Outer outer{s.unit.outer, a.packed_unit.product_n, sums.token, sums.product, grad_target};
            add_outer(outer, s.unit.signal[0], ld, hidden, s.rows, n, wide, target, first, last);

            for (int i = 0; i < n; i++) s.unit.signal[0][i * ld + hidden] = s.weights[i];
            point_rows(s.unit.rows, s.unit.signal[0], n, ld);
            const bool in_place = direct && candidate == 0 && s.positions[n - 1] - s.positions[0] == n - 1;
            float* grad_tokens = in_place ? grad_floats + s.positions[0] * wide : s.grad_tokens;
            multiply(s.unit.rows, n, hidden + 1, s.unit.table_n, wide, wide, nullptr, 0, grad_tokens, wide);
            fuse_backward(a.fusion, a.packed_fusion, s.positions, n, target, first, last, grad_tokens,
                          grad_target, s.fusion, fusion_sums);
            for (int i = 0; i < n && !in_place; i++) {
                const float* grad = s.grad_tokens + i * wide;
                if (low) {
                    narrow_half(grad_halves + s.positions[i] * a.width, grad, a.width, a.grad_element);
                    continue;
                }
                float* out = grad_floats + s.positions[i] * a.width;
                if (candidate == 0) {
                    std::memcpy(out, grad, sizeof(float) * a.width);
                } else {
                    for (int c = 0; c < a.width; c++) out[c] += grad[c];
                }
            }
            first = false;
        }
        if (const int64_t pads = a.mean ? pads_of(a.history, user, a.pad_to) : 0) {
            // Zero tokens of the statistics: x is c(t), and they reach the parameters and the target through
            // it only.
            if (first) zero(s.unit.lost, hp);
            const float* x = s.unit.constants + in_group * hp;
            for (int c = 0; c < hp; c += W)
                store(s.unit.signal[0] + c, broadcast(static_cast<float>(pads)) *
                                                fma(load(x + c) - load(a.mean + c), load(a.grad_square + c),
                                                    load(a.grad_mean + c)));
            add_rows(grad_constant, s.unit.lost, s.unit.signal[0], ld, 1, hp);
        }
    };
    auto finish = [&](int64_t row0, int n) {
        unit_group_backward(a.unit, a.packed_unit, s.group.rows, n, s.grad_targets, s.unit, sums);
        fusion_group_backward(a.fusion, a.packed_fusion, s.group.rows, n, s.grad_targets, s.fusion,
                              fusion_sums);
        for (int i = 0; i < n; i++)
            std::memcpy(a.grad_target + (row0 + i) * a.width, s.grad_targets + i * wide,
                        sizeof(float) * a.width);
    };
    for_targets(a, user_begin, user_end, s.group, group, one, finish);
    sums.output_bias[0] = static_cast<float>(output_bias);
}

}  // namespace

int64_t attention_scratch_floats(const Pass& pass, bool backward) {
    Arena arena(nullptr);
    carve(pass, backward, arena);
    return arena.used();
}

void attention_forward(const AttentionForward& a, int64_t user_begin, int64_t user_end, float* memory) {
    static constexpr ForwardUnit score[ACTIVATION_COUNT] = {
        unit_forward<Activation::relu>, unit_forward<Activation::prelu>,   unit_forward<Activation::sigmoid>,
        unit_forward<Activation::silu>, unit_forward<Activation::tanh>,    unit_forward<Activation::gelu>,
        unit_forward<Activation::dice>, unit_forward<Activation::dice_row>};
    forward(a, score[static_cast<int>(a.unit.activation)], user_begin, user_end, memory);
}

void attention_backward(const AttentionBackward& a, int64_t user_begin, int64_t user_end, float* memory,
                        const UnitSums& sums, const FusionSums& fusion_sums) {
    static constexpr RecomputeSignal recompute[ACTIVATION_COUNT] = {
        signal_by_recomputing<Activation::relu>,    signal_by_recomputing<Activation::prelu>,
        signal_by_recomputing<Activation::sigmoid>, signal_by_recomputing<Activation::silu>,
        signal_by_recomputing<Activation::tanh>,    signal_by_recomputing<Activation::gelu>,
        signal_by_recomputing<Activation::dice>,    signal_by_recomputing<Activation::dice_row>};
    backward(a, recompute[static_cast<int>(a.unit.activation)], user_begin, user_end, memory, sums,
             fusion_sums);
}

void normalised_sums(const AttentionBackward& a, int64_t user_begin, int64_t user_end, float* memory,
                     float* sums) {
    Arena arena(memory);
    Scratch s = carve(a, true, arena);
    const int wide = padded(a.width), hp = padded(a.unit.units[0]);
    auto group = [&](int n) {
        unit_group(a.unit, a.packed_unit, s.group.rows, n, s.unit);
        fusion_group(a.fusion, a.packed_fusion, s.group.rows, n, s.fusion);
    };
    auto one = [&](int64_t user, int candidate, int in_group, const float* target) {
        Cursor cursor(a.history, user);
        double average = 0;
        bool first = true;
        while (int n = cursor.fill(s.positions)) {
            const bool last = cursor.done();
            if (first) {
                copy_padded(s.grad_pooled, a.grad_pooled + (user * a.candidates + candidate) * a.width,
                            a.width, wide);
                build_table(s.unit.table, a.packed_unit.token_t, a.packed_unit.product_t, target, a.width,
                            hp);
                fusion_target(a.fusion, a.packed_fusion, target, in_group, true, s.fusion);
                if (a.unit.normalize == Normalize::softmax && !last)
                    average = mean_gradient(a, user, candidate, s);
            }
            stage_rows(a.tokens, a.history, user, s.positions, n, a.width, s.tokens, s.rows);
            fuse(a.fusion, a.packed_fusion, s.positions, n, s.fusion, s.rows);
            score_gradients(a, candidate, n, first && last, average, s);
            add_normalised(a.unit, a.packed_unit, s.rows, n, row_of(s.unit.constants, in_group, hp),
                           s.grad_scores, a.mean, s.unit, sums);
            first = false;
        }
    };
    for_targets(a, user_begin, user_end, s.group, group, one, [](int64_t, int) {});
}

}  // namespace mixpol::cpu::MIXPOL_ISA
