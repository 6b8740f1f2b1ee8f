// Mean and variance of the activation unit's last given pre-activation over all tokens of a range of users,
// and their backward. Padded positions count as zero tokens: those of one target all have the same value, so
// that one row with a weight stands in for them.
#include "cpu/kernels/activation_unit.h"
#include "cpu/kernels/level.h"

namespace mixpol::cpu::MIXPOL_ISA {

namespace {

struct Scratch {
    UnitScratch unit;
    Group group;
    float* grad_targets;  // [GROUP][Dp]
    float* tokens;        // staged rows [CHUNK][Dp]
    float* grad_tokens;   // [CHUNK][Dp]
    float* pad;           // a zero token [Dp]
    const float* rows[CHUNK];
    float* grads[CHUNK];
};

Scratch carve(const Pass& pass, Arena& arena) {
    Scratch s{};
    const int64_t wide = padded(pass.width);
    s.unit = carve_scratch(pass.unit, true, layers_again(pass), pass.halves, arena);
    s.group.targets = arena.take(GROUP * wide);
    s.grad_targets = arena.take(GROUP * wide);
    s.tokens = arena.take(CHUNK * wide);
    s.grad_tokens = arena.take(CHUNK * wide);
    s.pad = arena.take(wide);
    return s;
}

// The last layer's pre-activations of a chunk, into s.before[last]; those of the layers below as in
// hidden_layers.
template <Activation A>
[[maybe_unused]] static __attribute__((noinline)) void pre_activations(const ActivationUnit& unit,
                                                                       const PackedUnit& packed,
                                                                       const Chunk& chunk,
                                                                       const float* const* tokens,
                                                                       UnitScratch& s) {
    hidden_layers<A>(unit, packed, chunk, tokens, unit.layers, false, s);
}

// Gradients of the last layer's pre-activations, in s.signal[last], down to the first layer's.
template <Activation A>
[[maybe_unused]] static __attribute__((noinline)) void signal_to_first(const ActivationUnit& unit,
                                                                       const PackedUnit& packed, int n,
                                                                       UnitScratch& s, const UnitSums& sums) {
    signal_below<A>(unit, packed, unit.layers - 1, n, s, sums);
}

using PreActivations = decltype(&pre_activations<Activation::relu>);
using SignalToFirst = decltype(&signal_to_first<Activation::relu>);

// Adds n rows of weight `each` to running moments (Chan, Golub and LeVeque 1979): no difference of large
// sums. The rows count from the mean so far, so that theirs is rounded at the scale of the spread.
void add_moments(Moments& moments, const float* rows, int n, int hp, double each) {
    const double before = moments.count, added = n * each;
    moments.count += added;
    const vec rows_there = broadcast(static_cast<float>(n)), weight = broadcast(static_cast<float>(each));
    const float share = static_cast<float>(added / moments.count);
    for_sums(hp, [&]<int V>(int c) __attribute__((always_inline)) {
        vec from[V], delta[V]{}, spread[V]{};
        for (int v = 0; v < V; v++) from[v] = load((before > 0 ? moments.mean : rows) + c + v * W);
        for (int r = 0; r < n; r++)
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) delta[v] += load(rows + r * int64_t{hp} + c + v * W) - from[v];
        for (int v = 0; v < V; v++) delta[v] = delta[v] / rows_there;
        for (int r = 0; r < n; r++)
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) {
                const vec off = (load(rows + r * int64_t{hp} + c + v * W) - from[v]) - delta[v];
                spread[v] = fma(off, off, spread[v]);
            }
        for (int v = 0; v < V; v++) {
            float *const mean = moments.mean + c + v * W, *const squares = moments.squares + c + v * W;
            store(mean, fma(delta[v], broadcast(share), from[v]));
            const vec between =
                fma(delta[v] * delta[v], broadcast(static_cast<float>(before) * share), spread[v] * weight);
            store(squares, load(squares) + between);
        }
    });
}

// The pads of a target's history: one zero token stands in for them.
Chunk pad_of(const Span& span) {
    Chunk chunk;
    chunk.n = chunk.count = 1;
    chunk.spans[0] = span;
    chunk.spans[0].seen = chunk.spans[0].begin = 0;
    chunk.spans[0].n = 1;
    return chunk;
}

void forward(const StatisticsPass& a, PreActivations layers, int64_t user_begin, int64_t user_end,
             float* memory, Moments& moments) {
    Arena arena(memory);
    Scratch s = carve(a, arena);
    const int last = a.unit.layers - 1, out = padded(a.unit.units[last]);
    zero(s.pad, padded(a.width));
    auto group = [&](int64_t, int n) { unit_group(a.unit, a.packed_unit, s.group.rows, n, s.unit); };
    auto work = [&](const Chunk& chunk) {
        stage_rows(a.tokens, a.history, chunk, a.width, s.tokens, s.rows);
        drop_keys(a.unit, a.candidates, chunk, s.unit);
        layers(a.unit, a.packed_unit, chunk, s.rows, s.unit);
        for (int k = 0; k < chunk.count; k++) {
            const Span& span = chunk.spans[k];
            if (span.n > 0)  // one target at a time: short chains of sums
                add_moments(moments, s.unit.before[last] + span.begin * int64_t{out}, span.n, out, 1);
        }
        for (int k = 0; k < chunk.count; k++) {
            const Span& span = chunk.spans[k];
            const int64_t pads = span.last ? pads_of(a.history, span.user, a.pad_to) : 0;
            if (pads == 0) continue;
            const float* row = s.pad;
            layers(a.unit, a.packed_unit, pad_of(span), &row, s.unit);
            add_moments(moments, s.unit.before[last], 1, out, static_cast<double>(pads));
        }
    };
    for_user_chunks(a, user_begin, user_end, s.group, group, work, [](int64_t, int) {});
}

void backward(const StatisticsBackward& a, PreActivations layers, SignalToFirst down, int64_t user_begin,
              int64_t user_end, float* memory, const UnitSums& sums) {
    Arena arena(memory);
    Scratch s = carve(a, arena);
    const int wide = padded(a.width), hp = padded(a.unit.units[0]), last = a.unit.layers - 1;
    const int out = padded(a.unit.units[last]), hidden = a.unit.units[0];
    const int ld = signal_width(a.unit, 0), ld_last = signal_width(a.unit, last);
    const Blocks blocks{a.packed_unit.token_n, a.packed_unit.product_n, hidden, wide, true, nullptr};
    const Outer outer{s.unit.outer, a.packed_unit.product_n, sums.token, sums.product, s.grad_targets};
    zero(s.pad, wide);
    for (int i = 0; i < CHUNK; i++) s.grads[i] = s.grad_tokens + i * wide;
    // d mean and d variance of one row: (dmean + 2 (x - mean) dvar) / count, times the row's weight.
    auto signal = [&](int n, float each) {
        for (int r = 0; r < n; r++)
            for (int c = 0; c < out; c += W) {
                vec off = load(s.unit.before[last] + r * int64_t{out} + c) - load(a.mean + c);
                store(s.unit.signal[last] + r * int64_t{ld_last} + c,
                      broadcast(each) * fma(off, load(a.grad_square + c), load(a.grad_mean + c)));
            }
        down(a.unit, a.packed_unit, n, s.unit, sums);
    };
    auto add_constants = [&](const Span& span, int row, int n) {
        add_rows(s.unit.grad_constants + span.in_group * hp, s.unit.lost, s.unit.signal[0] + row * ld, ld, n,
                 hp);
    };
    auto group = [&](int64_t, int n) {
        unit_group(a.unit, a.packed_unit, s.group.rows, n, s.unit);
        zero(s.grad_targets, GROUP * wide);
        zero(s.unit.grad_constants, GROUP * hp);
    };
    auto work = [&](const Chunk& chunk) {
        zero_pads(a.history, chunk, a.grad_tokens, a.width);
        stage_rows(a.tokens, a.history, chunk, a.width, s.tokens, s.rows);
        drop_keys(a.unit, a.candidates, chunk, s.unit);
        layers(a.unit, a.packed_unit, chunk, s.rows, s.unit);
        signal(chunk.n, 1.0f);
        for (int k = 0; k < chunk.count; k++) {
            const Span& span = chunk.spans[k];
            if (span.first()) zero(s.unit.lost, hp);
            add_constants(span, span.begin, span.n);
        }
        add_outer(outer, s.unit.signal[0], ld, hidden, chunk, s.rows, wide, s.unit.halves);
        point_rows(s.unit.rows, s.unit.signal[0], chunk.n, ld);
        grad_rows(blocks, chunk, s.unit.rows, s.unit.table_n, s.unit.halves, s.grads);
        for (int k = 0; k < chunk.count; k++) {
            const Span& span = chunk.spans[k];
            for (int i = span.begin; i < span.begin + span.n; i++) {
                float* to = a.grad_tokens + chunk.positions[i] * a.width;
                if (span.candidate == 0) {
                    std::memcpy(to, s.grads[i], sizeof(float) * a.width);
                } else {
                    for (int c = 0; c < a.width; c++) to[c] += s.grads[i][c];
                }
            }
        }
        for (int k = 0; k < chunk.count; k++) {  // pads reach the parameters and the target through c(t) only
            const Span& span = chunk.spans[k];
            const int64_t pads = span.last ? pads_of(a.history, span.user, a.pad_to) : 0;
            if (pads == 0) continue;
            const float* row = s.pad;
            layers(a.unit, a.packed_unit, pad_of(span), &row, s.unit);
            signal(1, static_cast<float>(pads));
            zero(s.unit.lost, hp);
            add_constants(span, 0, 1);
        }
    };
    auto finish = [&](int64_t row0, int n) {
        unit_group_backward(a.unit, a.packed_unit, s.group.rows, n, s.grad_targets, s.unit, sums);
        for (int i = 0; i < n; i++)
            std::memcpy(a.grad_target + (row0 + i) * a.width, s.grad_targets + i * wide,
                        sizeof(float) * a.width);
    };
    for_user_chunks(a, user_begin, user_end, s.group, group, work, finish);
}

constexpr PreActivations LAYERS[ACTIVATION_COUNT] = {
    pre_activations<Activation::relu>,    pre_activations<Activation::prelu>,
    pre_activations<Activation::sigmoid>, pre_activations<Activation::silu>,
    pre_activations<Activation::tanh>,    pre_activations<Activation::gelu>,
    pre_activations<Activation::dice>,    pre_activations<Activation::dice_row>};
constexpr SignalToFirst DOWN[ACTIVATION_COUNT] = {
    signal_to_first<Activation::relu>,    signal_to_first<Activation::prelu>,
    signal_to_first<Activation::sigmoid>, signal_to_first<Activation::silu>,
    signal_to_first<Activation::tanh>,    signal_to_first<Activation::gelu>,
    signal_to_first<Activation::dice>,    signal_to_first<Activation::dice_row>};

}  // namespace

int64_t statistics_scratch_floats(const Pass& pass) {
    Arena arena(nullptr);
    carve(pass, arena);
    return arena.used();
}

void statistics_forward(const StatisticsPass& a, int64_t user_begin, int64_t user_end, float* memory,
                        Moments& moments) {
    forward(a, LAYERS[static_cast<int>(a.unit.activation)], user_begin, user_end, memory, moments);
}

void statistics_backward(const StatisticsBackward& a, int64_t user_begin, int64_t user_end, float* memory,
                         const UnitSums& sums) {
    const int activation = static_cast<int>(a.unit.activation);
    backward(a, LAYERS[activation], DOWN[activation], user_begin, user_end, memory, sums);
}

}  // namespace mixpol::cpu::MIXPOL_ISA
