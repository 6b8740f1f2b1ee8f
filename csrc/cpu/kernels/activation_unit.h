// The DIN activation unit on a chunk of tokens. Its first layer is the target-conditioned linear x · G(t) +
// c(t) with G(t) = (Wk - Wd)ᵀ + diag(t) Wpᵀ, once per target, and c(t) = (Wq + Wd) t + b, in groups of
// targets.
#pragma once

#include "cpu/kernels/conditioned_linear.h"
#include "cpu/kernels/dice_rows.h"

namespace mixpol::cpu::MIXPOL_ISA {

// The first layer's signal has one more column: the token's attention weight. With the pooled vector's
// gradient as one more row of Gᵀ, one product gives the token's whole gradient.
MIXPOL_INLINE int signal_width(const ActivationUnit& unit, int layer) {
    return padded(unit.units[layer] + (layer == 0));
}

struct UnitScratch {
    float* table;               // G(t) [D][H1p] in panels, of histories of several chunks
    float* table_n;             // Gᵀ [H1 + 1][Dp] in panels
    float* constants;           // c(t) for a group of targets [GROUP][H1p]
    float* before[MAX_HIDDEN];  // a layer's input to the activation [CHUNK][H_i p]; below the last layer, of
                                // activations without parameters, their derivative there
    float* after[MAX_HIDDEN];   // its output [CHUNK][H_i p]
    float* signal[MAX_HIDDEN];  // gradient of `before`, [CHUNK][signal_width]
    float* outer;               // Σ z xᵀ of one target [H1][Dp] in panels
    float* outer_spare;         // [2][H1][Dp]; of LongSums, as `spare`
    float* spare;               // [2][floats of UnitSums]
    float* grad_constants;      // [GROUP][H1p]
    float* compensation;        // what one of their sums lost, or those of add_normalised [3][H1p]
    float* row;                 // row-wise activations: gradients of one row, sums over rows [2][max H_i p]
    const float* rows[CHUNK];
    uint32_t keys[CHUNK];  // of the chunk's tokens, where units are dropped
    Halves halves;
    // Batch statistics of the last layer, and what their gradients give to each pre-activation; null without.
    const float *mean, *grad_mean, *grad_square;

    inline __attribute__((always_inline)) LongSums outer_sums(const ActivationUnit& unit) const {
        return {outer, unit.units[0] * int64_t{padded(unit.width)}, outer_spare};
    }
    // Of a block's sums, which lie as carve_sums has them.
    inline __attribute__((always_inline)) LongSums long_sums(const ActivationUnit& unit,
                                                             const UnitSums& sums) const {
        return {sums.token, sum_floats(unit), spare};
    }
    static inline __attribute__((always_inline)) int64_t sum_floats(const ActivationUnit& unit) {
        Arena arena(nullptr);
        carve_sums(unit, arena);
        return arena.used();
    }
};

// Whether the last hidden layer and the output layer are one product.
MIXPOL_INLINE bool fuses_score(const ActivationUnit& unit) {
    return unit.activation == Activation::relu && !unit.dropout.on;
}

// `again`: layers that a backward computes again.
static inline UnitScratch carve_scratch(const ActivationUnit& unit, bool backward, int again, bool halves,
                                        Arena& arena) {
    UnitScratch s{};
    int64_t d = unit.width, dp = padded(unit.width), h = unit.units[0], hp = padded(unit.units[0]);
    if (!backward || again > 0) {
        s.table = arena.take(d * hp);
        s.constants = arena.take(GROUP * hp);
    }
    for (int i = 0; i < unit.layers; i++) {
        int64_t size = int64_t{CHUNK} * padded(unit.units[i]);
        if (backward && i < again) s.before[i] = arena.take(size);
        bool fused = fuses_score(unit) && i + 1 == unit.layers;
        if (backward ? i < again : !fused) s.after[i] = arena.take(size);
        if (backward) s.signal[i] = arena.take(int64_t{CHUNK} * signal_width(unit, i));
    }
    if (backward) {
        s.table_n = arena.take((h + 1) * dp);
        s.outer = arena.take(h * dp);
        s.outer_spare = arena.take(2 * h * dp);
        s.spare = arena.take(2 * UnitScratch::sum_floats(unit));
        s.grad_constants = arena.take(GROUP * hp);
        s.compensation = arena.take(NORMALISED_SUMS * hp);
    }
    if (halves) {
        int64_t widest = dp;
        for (int i = 0; i < unit.layers; i++)
            if (signal_width(unit, i) > widest) widest = signal_width(unit, i);
        s.halves = carve_halves(widest, backward, arena);
    }
    if (backward && row_wise(unit.activation)) {
        int64_t widest = hp;
        for (int i = 1; i < unit.layers; i++)
            if (padded(unit.units[i]) > widest) widest = padded(unit.units[i]);
        s.row = arena.take(2 * widest);
    }
    return s;
}

// c(t) for a group of targets (padded rows).
MIXPOL_INLINE void unit_group(const ActivationUnit& unit, const PackedUnit& packed,
                              const float* const* targets, int n, UnitScratch& s) {
    int hp = padded(unit.units[0]);
    multiply(targets, n, unit.width, packed.target_t, hp, hp, packed.bias[0], 0, s.constants, hp);
}

// What a tile of the last hidden ReLU layer adds to its tokens' scores, lane by lane, and which units are on.
template <int R, int V>
MIXPOL_INLINE void score_tile(Tile<R, V>& acc, const float* constant, const float* output, int c,
                              vec* partial, uint64_t* bits) {
    add_tile(acc, constant + c, 0);
    if (bits) {
#pragma GCC unroll 6
        for (int i = 0; i < R; i++) {
            uint64_t on = 0;
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) on |= static_cast<uint64_t>(positive_bits(acc.at[i][v])) << v * W;
            std::memcpy(reinterpret_cast<char*>(bits + i) + c / 8, &on, V * W / 8);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
        const vec weight = load(output + c + v * W);
#pragma GCC unroll 6
        for (int i = 0; i < R; i++) partial[i] = fma(relu(acc.at[i][v]), weight, partial[i]);
    }
}

// The tokens' lanes added up.
MIXPOL_INLINE void finish_scores(const vec* partial, int n, float bias, float* scores) {
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        const quad four = sums(partial[i], partial[i + 1], partial[i + 2], partial[i + 3]) + bias;
        std::memcpy(scores + i, &four, sizeof four);
    }
    for (; i < n; i++) scores[i] = sum(partial[i]) + bias;
}

// One hidden ReLU layer and the output layer, fused in registers: scores[n], and where `bits` is set, up to
// 64 bits a token that say which units are on.
[[maybe_unused]] static __attribute__((noinline)) void score_relu(const Blocks& blocks, const Chunk& chunk,
                                                                  const float* const* rows, float* table,
                                                                  const float* constants, const float* output,
                                                                  float output_bias, const Halves& halves,
                                                                  float* scores, uint64_t* bits) {
    vec partial[CHUNK];
    for (int i = 0; i < chunk.n; i++) partial[i] = vec{};
    conditioned(blocks, chunk, rows, table, halves,
                [&]<int R, int V>(Tile<R, V>& acc, const Span& span, int i, int c)
                    __attribute__((always_inline)) {
                        score_tile(acc, constants + span.in_group * int64_t{blocks.columns}, output, c,
                                   partial + i, bits ? bits + i : nullptr);
                    });
    finish_scores(partial, chunk.n, output_bias, scores);
}

// The same behind other layers: one table [depth][hp] in panels for all tokens.
[[maybe_unused]] static __attribute__((noinline)) void score_relu(const float* const* rows, int n, int depth,
                                                                  const float* table, const float* bias,
                                                                  const float* output, float output_bias,
                                                                  int hp, const Halves& halves, float* scores,
                                                                  uint64_t* bits) {
    const bool low = halves.on();
    const uint32_t* narrow[CHUNK];
    if (low) narrow_rows(rows, n, depth, narrow, halves.rows, halves.widest / 2);
    vec partial[CHUNK];
    for (int i = 0; i < n; i++) partial[i] = vec{};
    for_tiles(n, hp, int64_t{depth} * hp, [&]<int R, int V>(int r, int c) __attribute__((always_inline)) {
        Tile<R, V> acc;
        clear(acc);
        const float* panel = table + panel_at(depth, c);
        if (low) {
            accumulate_pairs(acc, narrow + r, (depth + 1) / 2, reinterpret_cast<const uint32_t*>(panel),
                             V * W);
        } else {
            accumulate_nn(acc, rows + r, depth, panel, V * W);
        }
        score_tile(acc, bias, output, c, partial + r, bits ? bits + r : nullptr);
    });
    finish_scores(partial, n, output_bias, scores);
}

// The parameters of units c ... c + W - 1, from [parameter_rows][hp].
template <Activation A>
MIXPOL_INLINE math::UnitParameters<vec> unit_parameters(const float* slope, int hp, int c) {
    math::UnitParameters<vec> unit{};
    if constexpr (parameter_rows(A) > 0) unit.slope = load(slope + c);
    if constexpr (parameter_rows(A) > 1) {
        unit.scale = load(slope + hp + c);
        unit.shift = load(slope + 2 * hp + c);
    }
    return unit;
}

template <Activation A>
MIXPOL_INLINE void add_parameters(const math::Derivatives<vec>& total, int hp, int c, float* sums) {
    if constexpr (parameter_rows(A) > 0) store(sums + c, load(sums + c) + total.slope);
    if constexpr (parameter_rows(A) > 1) {
        store(sums + hp + c, load(sums + hp + c) + total.scale);
        store(sums + 2 * hp + c, load(sums + 2 * hp + c) + total.shift);
    }
}

// Turns n gradients of a(x), W units wide, in place into those of x; adds those of the units' parameters to
// `sums`. `before` as activate_rows left it.
template <Activation A>
MIXPOL_INLINE void activation_backward(const float* before, int64_t ldb, int n, const float* slope, int hp,
                                       int c, float* grads, int64_t ldg, float* sums) {
    const math::UnitParameters<vec> unit = unit_parameters<A>(slope, hp, c);
    math::Derivatives<vec> total{};
    if constexpr (parameter_rows(A) == 0) {  // `before` is the derivative already
        for (int r = 0; r < n; r++) store(grads + r * ldg, load(grads + r * ldg) * load(before + r * ldb));
        return;
    }
    for (int r = 0; r < n; r++) {
        vec grad = load(grads + r * ldg);
        const math::Derivatives<vec> d = math::derivatives<A, Simd>(load(before + r * ldb), unit);
        if constexpr (parameter_rows(A) > 0) total.slope = fma(grad, d.slope, total.slope);
        if constexpr (parameter_rows(A) > 1) {
            total.scale = fma(grad, d.scale, total.scale);
            total.shift = fma(grad, d.shift, total.shift);
        }
        store(grads + r * ldg, grad * d.x);
    }
    add_parameters<A>(total, hp, c, sums);
}

// A layer's output from its n inputs to the activation, h units wide. Where a backward comes (the two are not
// the same memory), `before` of activations without parameters turns into their derivative, which shares its
// exponential.
template <Activation A>
MIXPOL_INLINE void activate_rows(float* before, const float* slope, int n, int h, float* after) {
    if constexpr (row_wise(A)) {
        dice_rows(before, slope, n, h, after);
    } else {
        const int hp = padded(h);
        const bool derive = parameter_rows(A) == 0 && before != after;
        for (int c = 0; c < hp; c += W) {
            const math::UnitParameters<vec> unit = unit_parameters<A>(slope, hp, c);
            for (int r = 0; r < n; r++) {
                const int64_t at = r * int64_t{hp} + c;
                const vec x = load(before + at);
                store(after + at, math::activate<A, Simd>(x, unit));
                if (derive) store(before + at, math::derivatives<A, Simd>(x, unit).x);
            }
        }
    }
}

MIXPOL_INLINE void drop_keys(const ActivationUnit& unit, int candidates, const Chunk& chunk, UnitScratch& s) {
    for (int i = 0; unit.dropout.on && i < chunk.count; i++) {
        const Span& span = chunk.spans[i];
        for (int r = 0; r < span.n; r++)
            s.keys[span.begin + r] = math::dropout_token(
                unit.dropout.call, span.user * candidates + span.candidate, span.seen + r);
    }
}

// Drops units of a layer's output, or of its gradient.
[[maybe_unused]] static __attribute__((noinline)) void drop(const Dropout& dropout, const uint32_t* keys,
                                                            int layer, int n, int hp, float* rows,
                                                            int64_t ld) {
    uvec unit;
    for (int i = 0; i < W; i++) unit[i] = static_cast<uint32_t>(i) * math::UNIT_STEP;
    const ivec threshold = dropout.threshold - ivec{};
    const vec scale = broadcast(dropout.scale);
    for (int r = 0; r < n; r++) {
        uvec at = unit + math::dropout_layer(keys[r], layer);
        for (int c = 0; c < hp; c += W, at += static_cast<uint32_t>(W) * math::UNIT_STEP) {
            const ivec bits = __builtin_convertvector(math::dropout_bits(at), ivec);
            float* to = rows + r * ld + c;
            store(to, load(to) * (bits < threshold ? vec{} : scale));
        }
    }
}

MIXPOL_INLINE void point_rows(const float** rows, const float* base, int n, int64_t width) {
    for (int r = 0; r < n; r++) rows[r] = base + r * width;
}

MIXPOL_INLINE Blocks first_blocks(const ActivationUnit& unit, const PackedUnit& packed) {
    return {packed.token_t, packed.product_t, unit.width, padded(unit.units[0]), false, nullptr};
}

// Pre-activations of the first layer, [n][H1p].
[[maybe_unused]] static __attribute__((noinline)) void first_layer(const ActivationUnit& unit,
                                                                   const PackedUnit& packed,
                                                                   const Chunk& chunk,
                                                                   const float* const* tokens, UnitScratch& s,
                                                                   float* before) {
    const int64_t hp = padded(unit.units[0]);
    conditioned(first_blocks(unit, packed), chunk, tokens, s.table, s.halves,
                [&]<int R, int V>(Tile<R, V>& acc, const Span& span, int i, int c)
                    __attribute__((always_inline)) {
                        add_tile(acc, s.constants + span.in_group * hp + c, 0);
                        store_tile(acc, before + i * hp + c, hp);
                    });
}

// The layers up to `layers`, into s.after (and s.before where it is there); `activated`: with the activation
// of the last of them. Its pre-activations are in s.before, or s.after without a backward.
template <Activation A>
MIXPOL_INLINE void hidden_layers(const ActivationUnit& unit, const PackedUnit& packed, const Chunk& chunk,
                                 const float* const* tokens, int layers, bool activated, UnitScratch& s) {
    const int n = chunk.n;
    for (int i = 0; i < layers; i++) {
        int hp = padded(unit.units[i]);
        float* before = s.before[i] ? s.before[i] : s.after[i];
        if (i == 0) {
            first_layer(unit, packed, chunk, tokens, s, before);
        } else if (s.halves.on()) {
            multiply(s.rows, n, unit.units[i - 1], reinterpret_cast<const uint32_t*>(packed.weight_t[i]), hp,
                     packed.bias[i], before, hp, s.halves);
        } else {
            multiply_panels(s.rows, n, unit.units[i - 1], packed.weight_t[i], hp, packed.bias[i], before, hp);
        }
        if (i + 1 == layers && !activated) break;
        activate_rows<A>(before, packed.slope[i], n, unit.units[i], s.after[i]);
        if (unit.dropout.on) drop(unit.dropout, s.keys, i, n, hp, s.after[i], hp);
        if (i + 1 < unit.layers) point_rows(s.rows, s.after[i], n, hp);
    }
}

// Raw scores of a chunk.
template <Activation A>
[[maybe_unused]] static __attribute__((noinline)) void unit_forward(
    const ActivationUnit& unit, const PackedUnit& packed, const Chunk& chunk, const float* const* tokens,
    UnitScratch& s, float* scores, uint64_t* bits) {
    const int last = unit.layers - 1, hp = padded(unit.units[last]);
    if (A == Activation::relu && fuses_score(unit)) {
        if (last == 0)
            return score_relu(first_blocks(unit, packed), chunk, tokens, s.table, s.constants, packed.output,
                              packed.output_bias, s.halves, scores, bits);
        hidden_layers<A>(unit, packed, chunk, tokens, last, true, s);
        return score_relu(s.rows, chunk.n, unit.units[last - 1], packed.weight_t[last], packed.bias[last],
                          packed.output, packed.output_bias, hp, s.halves, scores, bits);
    }
    hidden_layers<A>(unit, packed, chunk, tokens, last + 1, true, s);
    for (int r = 0; r < chunk.n; r++)
        scores[r] = dot(s.after[last] + r * hp, packed.output, hp) + packed.output_bias;
}

}  // namespace mixpol::cpu::MIXPOL_ISA
