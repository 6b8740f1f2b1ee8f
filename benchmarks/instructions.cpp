// Runs the kernels of the levels that it is linked with at small fixed shapes, for callgrind to count
// instructions: benchmarks/instructions.py builds it and reads the counts. Each kernel's are dumped under
// "level/case/kernel".
#include <valgrind/callgrind.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <initializer_list>
#include <string>
#include <vector>

#include "cpu/args.h"

namespace mixpol::cpu {

extern const Kernels kernels_base;
extern const Kernels kernels_avx2;

namespace {

constexpr int D = 64, ITEMS = 40, POLARITIES = 2, HEADS = 4;
const std::vector<int64_t> OFFSETS{0, 50, 67, 68, 128};  // as jagged histories are
constexpr int64_t USERS = 4, TOKENS = 128;

// Memory of one run, aligned as the launchers' is.
class Memory {
 public:
    ~Memory() {
        for (void* p : taken_) std::free(p);
    }
    float* zeros(int64_t floats) {
        const size_t bytes = (sizeof(float) * floats + 127) / 64 * 64;
        taken_.push_back(std::aligned_alloc(64, bytes));
        std::memset(taken_.back(), 0, bytes);
        return static_cast<float*>(taken_.back());
    }
    // Between -scale and scale, the same in every run.
    float* draws(int64_t floats, float scale = 1) {
        float* out = zeros(floats);
        for (int64_t i = 0; i < floats; i++)
            out[i] = scale * (static_cast<float>(next() >> 8) / (1 << 23) - 1);
        return out;
    }
    int64_t* ids(int64_t count, int64_t rows) {
        auto* out = reinterpret_cast<int64_t*>(zeros(2 * count));
        for (int64_t i = 0; i < count; i++) out[i] = (next() >> 8) % rows;
        return out;
    }

 private:
    uint32_t next() { return state_ = state_ * 1664525u + 1013904223u; }
    uint32_t state_ = 1;
    std::deque<void*> taken_;
};

class Counter {
 public:
    Counter(std::string prefix) : prefix_(std::move(prefix)) {}
    template <class Call>
    void operator()(const std::string& kernel, const Call& call) const {
        const std::string name = prefix_ + kernel;
        CALLGRIND_ZERO_STATS;
        CALLGRIND_TOGGLE_COLLECT;
        call();
        CALLGRIND_TOGGLE_COLLECT;
        CALLGRIND_DUMP_STATS_AT(name.c_str());
    }

 private:
    std::string prefix_;
};

ActivationUnit unit_of(Activation activation, std::initializer_list<int> hidden, Memory& memory) {
    ActivationUnit unit{};
    unit.activation = activation;
    unit.width = D;
    int inputs = 4 * D;
    for (int units : hidden) {
        const int i = unit.layers++;
        unit.units[i] = units;
        unit.weight[i] = memory.draws(int64_t{inputs} * units, 0.1f);
        unit.bias[i] = memory.draws(units, 0.1f);
        if (parameter_rows(activation)) unit.slope[i] = memory.draws(parameter_rows(activation) * units);
        inputs = units;
    }
    unit.weight[unit.layers] = memory.draws(inputs, 0.1f);
    unit.bias[unit.layers] = memory.draws(1, 0.1f);
    return unit;
}

PolarityFusion tapf(Memory& memory) {
    PolarityFusion fusion;
    fusion.kind = Fusion::tapf;
    fusion.width = D;
    fusion.rows = POLARITIES;
    fusion.polarity = memory.ids(TOKENS, POLARITIES);
    fusion.table = memory.draws(POLARITIES * D);
    fusion.sign = memory.draws(POLARITIES);
    fusion.gate_weight = memory.draws(D * D, 0.1f);
    fusion.gate_bias = memory.draws(D);
    fusion.target_weight = memory.draws(D * D, 0.1f);
    return fusion;
}

void fill(Pass& pass, Memory& memory) {
    pass.history.users = USERS;
    pass.history.tokens = TOKENS;
    pass.history.offsets = OFFSETS.data();
    pass.tokens.row_stride = D;
    pass.fusion.width = pass.width = D;
    pass.candidates = 1;
    pass.target = memory.draws(USERS * D);
}

template <class Carve>
float* carved(Memory& memory, const Carve& carve) {
    Arena counter(nullptr);
    carve(counter);
    float* base = memory.zeros(counter.used());
    Arena arena(base);
    carve(arena);
    return base;
}

void pack(const Kernels& k, Pass& pass, bool with_unit, bool backward, Memory& memory) {
    carved(memory, [&](Arena& arena) {
        if (with_unit)
            pass.packed_unit = carve_packed(pass.unit, !backward || layers_again(pass) > 0, backward, arena);
        pass.packed_fusion = carve_packed(pass.fusion, backward, arena);
    });
    if (with_unit) k.pack_unit(pass.unit, pass.keep_bits, pass.halves, pass.packed_unit);
    k.pack_fusion(pass.fusion, backward, pass.packed_fusion);
}

// Forward and backward of the activation unit; of Dice with the statistics of its batch.
void attention(const Kernels& k, const Counter& count, const ActivationUnit& unit, bool from_ids, bool bits) {
    Memory memory;
    AttentionForward forward{};
    fill(forward, memory);
    forward.unit = unit;
    forward.tokens.base = memory.draws((from_ids ? ITEMS : TOKENS) * D);
    if (from_ids) {
        forward.tokens.ids = memory.ids(TOKENS, ITEMS);
        forward.fusion = tapf(memory);
    }
    const int64_t hidden = unit.units[0];
    if (unit.activation == Activation::dice) {
        StatisticsPass statistics{};
        static_cast<Pass&>(statistics) = forward;
        statistics.unit.activation = Activation::relu;
        statistics.unit.weight[1] = statistics.unit.bias[1] = statistics.unit.slope[0] = nullptr;
        statistics.pad_to = 60;
        pack(k, statistics, true, false, memory);
        const auto row = [&] { return memory.zeros(padded_columns(hidden)); };
        Moments moments{0, row(), row(), row()};
        float* scratch = memory.zeros(k.statistics_scratch_floats(statistics));
        count("statistics", [&] { k.statistics_forward(statistics, 0, USERS, scratch, moments); });
    }
    forward.pooled = memory.zeros(USERS * D);
    forward.attention = memory.zeros(TOKENS);
    if (bits)
        forward.bits =
            reinterpret_cast<uint8_t*>(memory.zeros(TOKENS * ((unit.units[unit.layers - 1] + 7) / 8)));
    pack(k, forward, true, false, memory);
    float* scratch = memory.zeros(k.attention_scratch_floats(forward, false));
    count("forward", [&] { k.attention_forward(forward, 0, USERS, scratch); });

    AttentionBackward backward{};
    static_cast<Pass&>(backward) = forward;
    backward.keep_bits = bits;
    backward.attention = forward.attention;
    backward.bits = forward.bits;
    backward.grad_pooled = memory.draws(USERS * D);
    backward.grad_target = memory.zeros(USERS * D);
    backward.grad_tokens = memory.zeros(TOKENS * D);
    pack(k, backward, true, true, memory);
    UnitSums unit_sums{};
    FusionSums fusion_sums{};
    carved(memory, [&](Arena& arena) {
        fusion_sums = carve_sums(backward.fusion, arena);
        unit_sums = carve_sums(backward.unit, arena);
    });
    scratch = memory.zeros(k.attention_scratch_floats(backward, true));
    if (unit.activation == Activation::dice) {
        const int64_t wide = padded_columns(hidden);
        float *statistics = memory.draws(3 * wide, 0.1f), *sums = memory.zeros(NORMALISED_SUMS * wide);
        backward.pad_to = 60;
        backward.mean = statistics, backward.grad_mean = statistics + wide,
        backward.grad_square = statistics + 2 * wide;
        backward.stash = hidden <= D;
        count("statistics' sums", [&] { k.normalised_sums(backward, 0, USERS, scratch, sums); });
    }
    count("backward", [&] { k.attention_backward(backward, 0, USERS, scratch, unit_sums, fusion_sums); });
}

void fusion(const Kernels& k, const Counter& count) {
    Memory memory;
    FusionForward forward{};
    fill(forward, memory);
    forward.tokens.base = memory.draws(TOKENS * D);
    forward.fusion = tapf(memory);
    forward.fused = memory.zeros(TOKENS * D);
    pack(k, forward, false, false, memory);
    float* scratch = memory.zeros(k.fusion_scratch_floats(forward, false));
    count("forward", [&] { k.fusion_forward(forward, 0, USERS, scratch); });

    FusionBackward backward{};
    static_cast<Pass&>(backward) = forward;
    backward.grad_fused.base = memory.draws(TOKENS * D);
    backward.grad_fused.row_stride = D;
    backward.grad_target = memory.zeros(USERS * D);
    backward.grad_tokens = memory.zeros(TOKENS * D);
    pack(k, backward, false, true, memory);
    FusionSums sums{};
    carved(memory, [&](Arena& arena) { sums = carve_sums(backward.fusion, arena); });
    scratch = memory.zeros(k.fusion_scratch_floats(backward, true));
    count("backward", [&] { k.fusion_backward(backward, 0, USERS, scratch, sums); });
}

void heads(const Kernels& k, const Counter& count) {
    Memory memory;
    DotForward forward{};
    forward.history.users = USERS;
    forward.history.tokens = TOKENS;
    forward.history.offsets = OFFSETS.data();
    forward.tokens.base = memory.draws(TOKENS * D);
    forward.tokens.row_stride = D;
    forward.width = forward.query_width = D;
    forward.candidates = 1;
    forward.heads = HEADS;
    forward.queries = memory.draws(USERS * HEADS * D, 0.2f);
    forward.user_stride = forward.candidate_stride = HEADS * D;
    forward.head_stride = D;
    forward.longest = 60;
    forward.pooled = memory.zeros(USERS * HEADS * D);
    forward.stats = memory.zeros(USERS * HEADS * DOT_STATS);
    float* scratch = memory.zeros(k.dot_scratch_floats(forward, false));
    count("forward", [&] { k.dot_forward(forward, 0, USERS * user_parts(forward), scratch); });

    DotBackward backward{};
    static_cast<DotPass&>(backward) = forward;
    backward.grad_pooled = memory.draws(USERS * HEADS * D);
    backward.stats = forward.stats;
    backward.grad_queries = memory.zeros(USERS * HEADS * D);
    backward.grad_tokens = memory.zeros(TOKENS * D);
    scratch = memory.zeros(k.dot_scratch_floats(backward, true));
    count("backward", [&] { k.dot_backward(backward, 0, USERS, scratch); });
}

void projected_heads(const Kernels& k, Counter count) {
    constexpr int HEADS = 4, CANDIDATES = 30, EACH = D / HEADS;
    Memory memory;
    DotProjectedForward forward{};
    forward.history.users = USERS;
    forward.history.tokens = TOKENS;
    forward.history.offsets = OFFSETS.data();
    forward.tokens.base = memory.draws(TOKENS * D);
    forward.tokens.row_stride = D;
    forward.width = D;
    forward.key_width = forward.value_width = EACH;
    forward.candidates = CANDIDATES;
    forward.heads = HEADS;
    forward.queries = memory.draws(USERS * CANDIDATES * D, 0.2f);
    forward.user_stride = CANDIDATES * D;
    forward.candidate_stride = D;
    forward.head_stride = EACH;
    forward.keys_t = memory.draws(D * D, 0.2f);
    forward.values_t = memory.draws(D * D, 0.2f);
    forward.longest = 60;
    forward.pooled = memory.zeros(USERS * CANDIDATES * D);
    forward.stats = memory.zeros(USERS * CANDIDATES * HEADS * DOT_PROJECTED_STATS);
    float* scratch = memory.zeros(k.dot_projected_scratch_floats(forward, false));
    count("forward", [&] { k.dot_projected_forward(forward, 0, USERS * HEADS, scratch); });

    DotProjectedBackward backward{};
    static_cast<DotProjected&>(backward) = forward;
    backward.w_k = memory.draws(D * D, 0.2f);
    backward.w_v = memory.draws(D * D, 0.2f);
    backward.grad_pooled = memory.draws(USERS * CANDIDATES * D);
    backward.stats = forward.stats;
    backward.grad_queries = memory.zeros(USERS * CANDIDATES * D);
    backward.grad_tokens = memory.zeros(TOKENS * D);
    float* sums = memory.zeros(2 * D * D);
    scratch = memory.zeros(k.dot_projected_scratch_floats(backward, true));
    count("backward", [&] { k.dot_projected_backward(backward, 0, USERS, scratch, sums); });
}

void level(const Kernels& k, const std::string& name) {
    Memory memory;
    const auto named = [&](const char* what) { return Counter(name + "/" + what + "/"); };
    attention(k, named("ReLU [64]"), unit_of(Activation::relu, {64}, memory), false, true);
    attention(k, named("ReLU [80, 40]"), unit_of(Activation::relu, {80, 40}, memory), false, true);
    attention(k, named("sigmoid [80, 40]"), unit_of(Activation::sigmoid, {80, 40}, memory), false, false);
    attention(k, named("Dice [64] in training"), unit_of(Activation::dice, {64}, memory), false, false);
    attention(k, named("TAPF + ReLU [64] from ids"), unit_of(Activation::relu, {64}, memory), true, true);
    fusion(k, named("TAPF alone"));
    heads(k, named("softmax, 4 heads"));
    projected_heads(k, named("softmax, 4 heads, 30 candidates"));
}

}  // namespace
}  // namespace mixpol::cpu

int main() {
    mixpol::cpu::level(mixpol::cpu::kernels_base, "base");
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        mixpol::cpu::level(mixpol::cpu::kernels_avx2, "avx2");
}
