// Mean and variance of the activation unit's last given pre-activation over all tokens of a range of users,
// and their backward. Padded positions count as zero tokens: those of one target all have the same value, so
// that one row with a weight stands in for them.
#include "cpu/kernels/activation_unit_backward.h"
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
    float* compensation;  // forward: what the sum of squares lost [H_last p]
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
    s.compensation = arena.take(padded(pass.unit.units[pass.unit.layers - 1]));
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

// Calls body(begin, end) for short runs of n rows, whose sums then add up: one chain would round more.
template <class Body>
MIXPOL_INLINE void for_runs(int n, Body&& body) {
    constexpr int RUN = 8;
    for (int r = 0; r < n; r += RUN) body(r, r + RUN < n ? r + RUN : n);
}

// Adds n rows of weight `each` to running moments (Chan, Golub and LeVeque 1979): no difference of large
// sums. The rows count from the mean so far, so that theirs is rounded at the scale of the spread.
// `compensation`: what the squares lack.
void add_moments(Moments& moments, float* compensation, const float* rows, int n, int hp, double each) {
    const double before = moments.count, added = n * each;
    moments.count += added;
    const vec rows_there = broadcast(static_cast<float>(n)), weight = broadcast(static_cast<float>(each));
    const vec share = broadcast(static_cast<float>(added / moments.count)),
              between = broadcast(static_cast<float>(before * (added / moments.count)));
    for_sums(hp, [&]<int V>(int c) __attribute__((always_inline)) {
        vec from[V], delta[V]{}, spread[V]{};
        for (int v = 0; v < V; v++) from[v] = load((before > 0 ? moments.mean : rows) + c + v * W);
        for_runs(n, [&](int begin, int end) __attribute__((always_inline)) {
            vec run[V]{};
            for (int r = begin; r < end; r++)
#pragma GCC unroll 8
                for (int v = 0; v < V; v++) run[v] += load(rows + r * int64_t{hp} + c + v * W) - from[v];
            for (int v = 0; v < V; v++) delta[v] += run[v];
        });
        for (int v = 0; v < V; v++) delta[v] = delta[v] / rows_there;
        for_runs(n, [&](int begin, int end) __attribute__((always_inline)) {
            vec run[V]{};
            for (int r = begin; r < end; r++)
#pragma GCC unroll 8
                for (int v = 0; v < V; v++) {
                    const vec off = (load(rows + r * int64_t{hp} + c + v * W) - from[v]) - delta[v];
                    run[v] = fma(off, off, run[v]);
                }
            for (int v = 0; v < V; v++) spread[v] += run[v];
        });
        for (int v = 0; v < V; v++) {
            const int at = c + v * W;
            float *const mean = moments.mean + at, *const rest = moments.rest + at;
            if (before == 0) store(mean, from[v]);
            const vec off = delta[v] - load(rest), moved = fma(off, share, load(rest));
            store(rest, vec{});
            add_compensated(mean, rest, moved);
            add_compensated(moments.squares + at, compensation + at,
                            fma(off * off, between, spread[v] * weight));
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
    zero(s.compensation, out);
    auto group = [&](int64_t, int n) { unit_group(a.unit, a.packed_unit, s.group.rows, n, s.unit); };
    auto work = [&](const Chunk& chunk) {
        stage_rows(a.tokens, a.history, chunk, a.width, s.tokens, s.rows);
        drop_keys(a.unit, a.candidates, chunk, s.unit);
        layers(a.unit, a.packed_unit, chunk, s.rows, s.unit);
        for (int k = 0; k < chunk.count; k++) {
            const Span& span = chunk.spans[k];
            if (span.n > 0)  // one target at a time: short chains of sums
                add_moments(moments, s.compensation, s.unit.before[last] + span.begin * int64_t{out}, span.n,
                            out, 1);
        }
        for (int k = 0; k < chunk.count; k++) {
            const Span& span = chunk.spans[k];
            const int64_t pads = span.last ? pads_of(a.history, span.user, a.pad_to) : 0;
            if (pads == 0) continue;
            const float* row = s.pad;
            layers(a.unit, a.packed_unit, pad_of(span), &row, s.unit);
            add_moments(moments, s.compensation, s.unit.before[last], 1, out, static_cast<double>(pads));
        }
    };
    for_user_chunks(a, user_begin, user_end, s.group, group, work, [](int64_t, int) {});
    compensate_sums(moments.squares, s.compensation, out);
}

void backward(const StatisticsBackward& a, PreActivations layers, SignalToFirst down, int64_t user_begin,
              int64_t user_end, float* memory, const UnitSums& sums) {
    Arena arena(memory);
    Scratch s = carve(a, arena);
    const int wide = padded(a.width), hp = padded(a.unit.units[0]), last = a.unit.layers - 1;
    const int out = padded(a.unit.units[last]), hidden = a.unit.units[0];
    const int ld = signal_width(a.unit, 0), ld_last = signal_width(a.unit, last);
    const Blocks blocks{a.packed_unit.token_n, a.packed_unit.product_n, hidden, wide, true, nullptr};
    LongSums outer_sums = s.unit.outer_sums(a.unit), unit_sums = s.unit.long_sums(a.unit, sums);
    const Outer outer{s.unit.outer, &outer_sums,  a.packed_unit.product_n,
                      sums.token,   sums.product, s.grad_targets};
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
            float* const out = s.unit.grad_constants + span.in_group * hp;
            const float* const rows = s.unit.signal[0] + span.begin * ld;
            if (span.whole()) {
                add_rows(out, rows, ld, span.n, hp);
                continue;
            }
            if (span.first()) zero(s.unit.compensation, hp);
            add_rows(out, s.unit.compensation, rows, ld, span.n, hp);
            if (span.last) compensate_sums(out, s.unit.compensation, hp);
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
            add_rows(s.unit.grad_constants + span.in_group * hp, s.unit.signal[0], ld, 1, hp);
        }
        unit_sums.step();
    };
    auto finish = [&](int64_t row0, int n) {
        unit_group_backward(a.unit, a.packed_unit, s.group.rows, n, s.grad_targets, s.unit, sums);
        for (int i = 0; i < n; i++)
            std::memcpy(a.grad_target + (row0 + i) * a.width, s.grad_targets + i * wide,
                        sizeof(float) * a.width);
    };
    for_user_chunks(a, user_begin, user_end, s.group, group, work, finish);
    unit_sums.finish();
}

#define MIXPOL_LAYERS(name) pre_activations<Activation::name>,
#define MIXPOL_DOWN(name) signal_to_first<Activation::name>,
constexpr PreActivations LAYERS[] = {MIXPOL_ACTIVATIONS(MIXPOL_LAYERS)};
constexpr SignalToFirst DOWN[] = {MIXPOL_ACTIVATIONS(MIXPOL_DOWN)};

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
