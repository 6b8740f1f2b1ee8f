// Backward of the activation unit: signals of the layers and sums of the parameters' gradients.
#pragma once

#include "cpu/kernels/activation_unit.h"

namespace mixpol::cpu::MIXPOL_ISA {

// From the signal of layer `last` to that of the first layer; adds to the sums of everything between.
template <Activation A>
MIXPOL_INLINE void signal_below(const ActivationUnit& unit, const PackedUnit& packed, int last, int n,
                                UnitScratch& s, const UnitSums& sums) {
    for (int i = last; i > 0; i--) {
        const int h = unit.units[i], below = padded(unit.units[i - 1]);
        const int ld = signal_width(unit, i);
        add_rows(sums.bias[i], s.signal[i], ld, n, padded(h));
        const float* after[CHUNK];
        point_rows(after, s.after[i - 1], n, below);
        point_rows(s.rows, s.signal[i], n, ld);
        float* signal = s.signal[i - 1];
        const int64_t out = signal_width(unit, i - 1);
        if (s.halves.on()) {
            add_transposed(s.rows, h, after, n, below, sums.weight[i], s.halves);
            multiply(s.rows, n, h, reinterpret_cast<const uint32_t*>(packed.weight_n[i]), below, nullptr,
                     signal, out, s.halves);
        } else {
            add_transposed_panels(s.signal[i], ld, h, after, n, below, sums.weight[i]);
            multiply_panels(s.rows, n, h, packed.weight_n[i], below, nullptr, signal, out);
        }
        if (unit.dropout.on) drop(unit.dropout, s.keys, i - 1, n, below, signal, out);
        if constexpr (row_wise(A)) {
            dice_rows_backward(s.before[i - 1], n, packed.slope[i - 1], unit.units[i - 1], signal, out,
                               sums.slope[i - 1], s.row);
        } else {
            for (int c = 0; c < below; c += W)
                activation_backward<A>(s.before[i - 1] + c, below, n, packed.slope[i - 1], below, c,
                                       signal + c, out, sums.slope[i - 1]);
        }
    }
}

// The signal z of the last layer, [n][H p], from the gradient of the scores and the saved bits.
MIXPOL_INLINE void signal_from_bits(const uint64_t* bits, const float* grad_scores, int n, int hp, int ld,
                                    float* signal) {
    for (int r = 0; r < n; r++)
        for (int c = 0; c < hp; c += W)
            store(signal + r * ld + c,
                  spread(static_cast<uint32_t>(bits[r] >> c) & ((1ull << W) - 1), grad_scores[r]));
}

// The signal z of the first layer, [n][H1p], from the gradient of the scores: from bits and what is computed
// again of the layers below; adds to the sums of everything behind the first layer's weight ...
[[maybe_unused]] static __attribute__((noinline)) void signal_by_bits(
    const ActivationUnit& unit, const PackedUnit& packed, const Chunk& chunk, const float* const* tokens,
    const uint64_t* bits, const float* grad_scores, UnitScratch& s, const UnitSums& sums) {
    constexpr Activation A = Activation::relu;
    const int last = unit.layers - 1;
    signal_from_bits(bits, grad_scores, chunk.n, padded(unit.units[last]), signal_width(unit, last),
                     s.signal[last]);
    if (last == 0) return;
    hidden_layers<A>(unit, packed, chunk, tokens, last, true, s);
    signal_below<A>(unit, packed, last, chunk.n, s, sums);
}

// The last layer's signal from its pre-activations, value and derivative at once; adds to the sums of the
// output layer and of the units' parameters.
template <Activation A>
MIXPOL_INLINE void last_signal_at_once(const ActivationUnit& unit, const PackedUnit& packed, int n,
                                       const float* grad_scores, UnitScratch& s, const UnitSums& sums) {
    const int last = unit.layers - 1;
    const int64_t hp = padded(unit.units[last]), ld = signal_width(unit, last);
    const float *const mean = s.mean, *const grad_mean = s.grad_mean, *const grad_square = s.grad_square;
    for (int c = 0; c < hp; c += W) {
        const vec weight = load(packed.output + c);
        const math::UnitParameters<vec> parameters = unit_parameters<A>(packed.slope[last], hp, c);
        const float* const before = s.before[last] + c;
        float* const signal = s.signal[last] + c;
        math::Derivatives<vec> total{};
        vec output{};
        for (int r = 0; r < n; r++) {
            const vec ds = broadcast(grad_scores[r]), x = load(before + r * hp);
            const math::Derivatives<vec> d = math::derivatives<A, Simd>(x, parameters);
            const vec grad = ds * weight;
            output = fma(ds, math::activate<A, Simd>(x, parameters), output);
            if constexpr (parameter_rows(A) > 0) total.slope = fma(grad, d.slope, total.slope);
            if constexpr (parameter_rows(A) > 1) {
                total.scale = fma(grad, d.scale, total.scale);
                total.shift = fma(grad, d.shift, total.shift);
            }
            vec z = grad * d.x;
            if (mean) z += fma(x - load(mean + c), load(grad_square + c), load(grad_mean + c));
            store(signal + r * ld, z);
        }
        add_parameters<A>(total, hp, c, sums.slope[last]);
        store(sums.output + c, load(sums.output + c) + output);
    }
}

// The same from the layer's output, where a whole row has to be known or units are dropped.
template <Activation A>
MIXPOL_INLINE void last_signal(const ActivationUnit& unit, const PackedUnit& packed, int n,
                               const float* grad_scores, UnitScratch& s, const UnitSums& sums) {
    const int last = unit.layers - 1, hp = padded(unit.units[last]), ld = signal_width(unit, last);
    float* const signal = s.signal[last];
    for (int c = 0; c < hp; c += W) {
        const vec weight = load(packed.output + c);
        vec output{};
        for (int r = 0; r < n; r++) {
            const vec ds = broadcast(grad_scores[r]);
            output = fma(ds, load(s.after[last] + r * int64_t{hp} + c), output);
            store(signal + r * int64_t{ld} + c, ds * weight);
        }
        store(sums.output + c, load(sums.output + c) + output);
    }
    if (unit.dropout.on) drop(unit.dropout, s.keys, last, n, hp, signal, ld);
    if constexpr (row_wise(A)) {
        dice_rows_backward(s.before[last], n, packed.slope[last], unit.units[last], signal, ld,
                           sums.slope[last], s.row);
    } else {
        for (int c = 0; c < hp; c += W)
            activation_backward<A>(s.before[last] + c, hp, n, packed.slope[last], hp, c, signal + c, ld,
                                   sums.slope[last]);
    }
}

// ... or by recomputing all layers.
template <Activation A>
[[maybe_unused]] static __attribute__((noinline)) void signal_by_recomputing(
    const ActivationUnit& unit, const PackedUnit& packed, const Chunk& chunk, const float* const* tokens,
    const float* grad_scores, UnitScratch& s, const UnitSums& sums) {
    const bool at_once = !row_wise(A) && !unit.dropout.on;
    hidden_layers<A>(unit, packed, chunk, tokens, unit.layers, !at_once, s);
    if constexpr (!row_wise(A))
        if (at_once) last_signal_at_once<A>(unit, packed, chunk.n, grad_scores, s, sums);
    if (!at_once) last_signal<A>(unit, packed, chunk.n, grad_scores, s, sums);
    signal_below<A>(unit, packed, unit.layers - 1, chunk.n, s, sums);
}

// Of Dice in one layer that is normalised by its own batch: what a chunk adds to Σ dn (x - mean), Σ dn and
// Σ (x - mean), [3][H p]; what they lost to s.compensation.
[[maybe_unused]] static __attribute__((noinline)) void add_normalised(
    const ActivationUnit& unit, const PackedUnit& packed, const Chunk& chunk, const float* const* tokens,
    const float* grad_scores, const float* mean, UnitScratch& s, float* sums) {
    constexpr Activation A = Activation::dice;
    hidden_layers<A>(unit, packed, chunk, tokens, 1, false, s);
    const int hp = padded(unit.units[0]), n = chunk.n;
    for (int c = 0; c < hp; c += W) {
        const math::UnitParameters<vec> parameters = unit_parameters<A>(packed.slope[0], hp, c);
        const vec weight = load(packed.output + c), center = load(mean + c);
        vec total[NORMALISED_SUMS]{};
        for (int r = 0; r < n; r++) {
            const vec x = load(s.before[0] + r * int64_t{hp} + c);
            const vec grad =
                broadcast(grad_scores[r]) * weight * math::derivatives<A, Simd>(x, parameters).shift;
            const vec off = x - center;
            total[0] = fma(grad, off, total[0]);
            total[1] += grad;
            total[2] += off;
        }
        for (int i = 0; i < NORMALISED_SUMS; i++)
            add_compensated(sums + i * hp + c, s.compensation + i * hp + c, total[i]);
    }
}

// Pre-activations of a chunk's tokens, [n][H p], to and from rows as wide as the tokens.
MIXPOL_INLINE void put_away(const float* before, int units, const int64_t* positions, int n, float* rows,
                            int width) {
    for (int i = 0; i < n; i++)
        std::memcpy(rows + positions[i] * width, before + i * int64_t{padded(units)}, sizeof(float) * units);
}

MIXPOL_INLINE void take_back(const float* rows, int width, const int64_t* positions, int n, int units,
                             float* before) {
    for (int i = 0; i < n; i++)
        copy_padded(before + i * int64_t{padded(units)}, rows + positions[i] * width, units, padded(units));
}

// The signal of one Dice layer whose pre-activations are in s.before.
[[maybe_unused]] static __attribute__((noinline)) void dice_signal(const ActivationUnit& unit,
                                                                   const PackedUnit& packed, int n,
                                                                   const float* grad_scores, UnitScratch& s,
                                                                   const UnitSums& sums) {
    last_signal_at_once<Activation::dice>(unit, packed, n, grad_scores, s, sums);
}

// Σ_h z_h G(t)_h of each token, and where `blocks` has an extra row, that times the signal's last column.
[[maybe_unused]] static __attribute__((noinline)) void grad_rows(const Blocks& blocks, const Chunk& chunk,
                                                                 const float* const* signal, float* table,
                                                                 const Halves& halves, float* const* out) {
    conditioned(blocks, chunk, signal, table, halves,
                [&]<int R, int V>(Tile<R, V>& acc, const Span&, int i, int c) __attribute__((always_inline)) {
#pragma GCC unroll 6
                    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                        for (int v = 0; v < V; v++) store(out[i + r] + c + v * W, acc.at[r][v]);
                });
}

// Once per group: what the gradients of c(t) mean for the target block, the bias and the targets.
MIXPOL_INLINE void unit_group_backward(const ActivationUnit& unit, const PackedUnit& packed,
                                       const float* const* targets, int n, float* grad_targets,
                                       UnitScratch& s, const UnitSums& sums) {
    int h = unit.units[0], hp = padded(h), wide = padded(unit.width);
    add_transposed(s.grad_constants, hp, h, targets, n, wide, sums.target, wide);
    add_rows(sums.bias[0], s.grad_constants, hp, n, hp);
    const float* rows[GROUP];
    point_rows(rows, s.grad_constants, n, hp);
    multiply(rows, n, h, packed.target_n, wide, wide, grad_targets, wide, grad_targets, wide);
}

}  // namespace mixpol::cpu::MIXPOL_ISA
