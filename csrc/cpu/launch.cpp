#include "cpu/launch.h"

#include <torch/headeronly/core/ScalarType.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace mixpol::cpu {

using torch::headeronly::ScalarType;

namespace {

constexpr int64_t MIN_BLOCK_COST = 1024;  // tokens; below, a block's own sums would cost as much as its work
constexpr int64_t TARGET_COST = 6;        // a target's tables and sums, in tokens
constexpr int64_t BACKWARD_BLOCKS = 32;
constexpr int64_t MAX_SUMS = 1 << 25;  // floats that the sums of several blocks may take

template <class T>
void widen(const Tensor& from, int64_t* to, int64_t n) {
    const T* p = static_cast<const T*>(from.const_data_ptr());
    for (int64_t i = 0; i < n; i++) to[i] = p[i];
}

}  // namespace

Layout read_layout(int64_t users, const std::vector<int64_t>& token_shape, const OptionalTensor& offsets,
                   const OptionalTensor& lengths, const OptionalTensor& mask) {
    Layout layout;
    History& history = layout.history;
    history.users = users;
    layout.shape = token_shape;
    if (users < 0 || users > MAX_USERS)
        fail("the batch has ", users, " users; expected 0 ... ", MAX_USERS,
             ", and offsets with one entry more");
    auto index = [&](const Tensor& tensor, const char* name, int64_t size) {
        if (tensor.scalar_type() != ScalarType::Long)
            fail(name, " is not an int64 tensor on the CPU; convert it with .cpu().long()");
        if (tensor.dim() != 1 || tensor.size(0) != size)
            fail(name, " has shape ", shape_text(tensor), "; expected [", size, "]");
        layout.alive.push_back(as_contiguous(tensor));
        return static_cast<const int64_t*>(layout.alive.back().const_data_ptr());
    };
    layout.counts.resize(users);
    if (offsets) {
        if (token_shape.size() != 1)
            fail("offsets were given for a padded history; expected lengths or mask");
        history.tokens = token_shape[0];
        const int64_t* at = history.offsets = index(*offsets, "offsets", users + 1);
        if (at[0] != 0 || at[users] != history.tokens)
            fail("offsets run from ", at[0], " to ", at[users], "; expected 0 to ", history.tokens,
                 ", the number of history tokens");
        for (int64_t b = 0; b < users; b++) {
            if (at[b + 1] < at[b])
                fail("offsets[", b + 1, "] is ", at[b + 1], ", below offsets[", b, "] = ", at[b],
                     "; expected offsets that never fall");
            layout.counts[b] = at[b + 1] - at[b];
        }
        return layout;
    }
    if (token_shape.size() != 2 || token_shape[0] != users)
        fail("the history's leading dimensions do not match ", users, " users; expected [users, length]");
    history.length = token_shape[1];
    history.tokens = users * history.length;
    if (lengths) {
        history.lengths = index(*lengths, "lengths", users);
        for (int64_t b = 0; b < users; b++) {
            int64_t n = history.lengths[b];
            if (n < 0 || n > history.length)
                fail("lengths[", b, "] is ", n, "; expected 0 ... ", history.length,
                     ", the padded length of the history");
            layout.counts[b] = n;
        }
    } else if (mask) {
        if (mask->scalar_type() != ScalarType::Bool)
            fail("mask is not a bool tensor on the CPU; convert it with .cpu().bool()");
        if (mask->dim() != 2 || mask->size(0) != users || mask->size(1) != history.length)
            fail("mask has shape ", shape_text(*mask), "; expected [", users, ", ", history.length, "]");
        layout.alive.push_back(as_contiguous(*mask));
        history.mask = static_cast<const uint8_t*>(layout.alive.back().const_data_ptr());
        for (int64_t b = 0; b < users; b++) {
            int64_t n = 0;
            for (int64_t l = 0; l < history.length; l++) n += history.mask[b * history.length + l] != 0;
            layout.counts[b] = n;
        }
    } else {
        std::fill(layout.counts.begin(), layout.counts.end(), history.length);
    }
    return layout;
}

bool Layout::any_empty() const { return std::find(counts.begin(), counts.end(), 0) != counts.end(); }

bool Layout::all_empty() const {
    return std::all_of(counts.begin(), counts.end(), [](int64_t n) { return n == 0; });
}

Tensor without_empty(const Tensor& target, const Layout& layout, int64_t row_floats) {
    const float* from = static_cast<const float*>(target.const_data_ptr());
    auto finite = [&](size_t user) {
        const float *row = from + user * row_floats, *end = row + row_floats;
        return std::all_of(row, end, [](float x) { return std::isfinite(x); });
    };
    bool all = true;
    for (size_t b = 0; all && b < layout.counts.size(); b++) all = layout.counts[b] > 0 || finite(b);
    if (all) return target;
    Tensor clean = new_floats(sizes_of(target));
    copy(clean.mutable_data_ptr(), from, sizeof(float) * target.numel());
    clear_empty(clean.mutable_data_ptr(), layout, sizeof(float) * row_floats);
    return clean;
}

void clear_empty(void* rows, const Layout& layout, int64_t row_bytes) {
    for (size_t b = 0; b < layout.counts.size(); b++)
        if (layout.counts[b] == 0) clear(static_cast<char*>(rows) + b * row_bytes, row_bytes);
}

Ids::Ids(const Tensor& ids, const Name& name, int64_t rows, const Layout& layout) {
    if (rows < 0) fail("the table of ", name, " has ", rows, " rows; expected 0 or more");
    const History& history = layout.history;
    if (sizes_of(ids) != layout.shape)
        fail(name, " has shape ", shape_text(ids), "; expected one id for each of ", history.tokens,
             " tokens, in the history's shape");
    alive_.push_back(as_contiguous(ids));
    const Tensor& flat = alive_[0];
    const int64_t n = history.tokens;
    if (ids.scalar_type() == ScalarType::Long) {
        data_ = static_cast<const int64_t*>(flat.const_data_ptr());
    } else {
        Tensor wide = new_tensor({n}, ScalarType::Long);
        int64_t* to = static_cast<int64_t*>(wide.mutable_data_ptr());
        switch (ids.scalar_type()) {
            case ScalarType::Byte:
                widen<uint8_t>(flat, to, n);
                break;
            case ScalarType::Char:
                widen<int8_t>(flat, to, n);
                break;
            case ScalarType::Short:
                widen<int16_t>(flat, to, n);
                break;
            case ScalarType::Int:
                widen<int32_t>(flat, to, n);
                break;
            default:
                fail(name, " is no integer tensor; expected uint8, int8, int16, int32 or int64");
        }
        data_ = to;
        alive_.push_back(wide);
    }
    auto check = [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
            if (static_cast<uint64_t>(data_[i]) >= static_cast<uint64_t>(rows) &&
                !(history.mask && !history.mask[i]))
                fail(name, " has ", data_[i], " at position ", i, "; expected 0 ... ", rows - 1,
                     ", a row of the table");
    };
    if (!history.lengths) check(0, n);
    for (int64_t b = 0; history.lengths && b < history.users; b++)
        check(b * history.length, b * history.length + history.lengths[b]);
}

// Contiguous ranges of items, of which each user has `items` with `each` targets.
static std::vector<int64_t> cut(const Layout& layout, int64_t items, int64_t each, int64_t max_blocks) {
    int64_t total = 0;
    for (int64_t n : layout.counts) total += (n + TARGET_COST) * items * each;
    const int64_t blocks = std::clamp<int64_t>(total / MIN_BLOCK_COST, 1, max_blocks);
    int64_t cost = 0, item = 0;
    std::vector<int64_t> bounds{0};
    for (int64_t n : layout.counts)
        for (int64_t i = 0; i < items; i++) {
            cost += (n + TARGET_COST) * each, item++;
            if (cost * blocks >= total * static_cast<int64_t>(bounds.size())) bounds.push_back(item);
        }
    return bounds;
}

std::vector<int64_t> cut_blocks(const Layout& layout, int64_t candidates, int64_t max_blocks) {
    return cut(layout, 1, candidates, max_blocks);
}

std::vector<int64_t> cut_targets(const Layout& layout, int64_t candidates, int64_t max_blocks) {
    return cut(layout, candidates, 1, max_blocks);
}

void add_blocks(float* sums, int64_t blocks, int64_t floats) {
    const Kernels& k = kernels();
    torch::stable::parallel_for(0, floats, 32768, [&](int64_t begin, int64_t end) {
        // In pairs, pairs of pairs, ...: of the blocks none is rounded more often than log2(blocks) times.
        for (int64_t step = 1; step < blocks; step *= 2)
            for (int64_t block = 0; block + step < blocks; block += 2 * step)
                k.add(sums + block * floats + begin, sums + (block + step) * floats + begin, end - begin);
    });
}

Unit read_unit(int64_t width, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
               const std::vector<Tensor>& slopes, int64_t activation, int64_t normalize, bool output,
               Element element) {
    Unit unit;
    ActivationUnit& args = unit.args;
    args = {};
    const int64_t given = unit.given = static_cast<int64_t>(weights.size()), layers = given - output;
    if (layers < 1 || layers > MAX_HIDDEN || static_cast<int64_t>(biases.size()) != given)
        fail("the activation unit has ", weights.size(), " weights and ", biases.size(),
             " biases; expected one to ", MAX_HIDDEN, " hidden layers",
             output ? " and the output layer, each with both" : ", each with both");
    if (activation < 0 || activation >= ACTIVATION_COUNT || normalize < 0 || normalize >= NORMALIZE_COUNT)
        fail("activation ", activation, " or normalize ", normalize, " is unknown");
    args.activation = static_cast<Activation>(activation);
    args.normalize = static_cast<Normalize>(normalize);
    const int64_t rows = parameter_rows(args.activation), activated = output ? layers : layers - 1;
    if (static_cast<int64_t>(slopes.size()) != (rows ? activated : 0))
        fail("slopes has ", slopes.size(), " entries; expected ", rows ? activated : 0,
             ": one per activated layer for prelu and both dices, else none");
    args.width = checked_size(width, "target", "columns");
    args.layers = static_cast<int>(layers);
    auto keep = [&](const Tensor& tensor, const Name& name, std::initializer_list<int64_t> sizes) {
        unit.alive.push_back(floats(tensor, name, sizes, element));
        return static_cast<const float*>(unit.alive.back().const_data_ptr());
    };
    int64_t inputs = 4 * width;
    for (int64_t i = 0; i < given; i++) {
        int64_t units = i == layers ? 1 : weights[i].dim() == 2 ? weights[i].size(0) : -1;
        args.weight[i] = keep(weights[i], {"weights", i}, {units, inputs});
        if (units == 0)
            fail("weights[", i, "] has shape ", shape_text(weights[i]),
                 "; expected at least one hidden unit");
        args.bias[i] = keep(biases[i], {"biases", i}, {units});
        if (i < layers) args.units[i] = checked_size(units, {"weights", i}, "rows");
        if (i < static_cast<int64_t>(slopes.size()))
            args.slope[i] = rows == 1 ? keep(slopes[i], {"slopes", i}, {units})
                                      : keep(slopes[i], {"slopes", i}, {rows, units});
        inputs = units;
    }
    for (const auto* list : {&weights, &biases, &slopes})
        unit.parameters.insert(unit.parameters.end(), list->begin(), list->end());
    return unit;
}

void read_dropout(ActivationUnit& unit, double p, const OptionalTensor& seed) {
    if (p == 0) return;
    if (!(p > 0 && p < 1)) fail("dropout is ", p, "; expected 0 <= dropout < 1");
    if (!seed) fail("seed is missing; dropout ", p, " needs one");
    if (seed->numel() != 1 || seed->scalar_type() != ScalarType::Long)
        fail("seed has ", seed->numel(), " values; expected one int64");
    const auto value = static_cast<uint64_t>(*static_cast<const int64_t*>(seed->const_data_ptr()));
    unit.dropout = {true, math::dropout_call(value), static_cast<int>(p * (1 << math::DROPOUT_BITS)),
                    static_cast<float>(1 / (1 - p))};
}

std::vector<Tensor> Unit::new_gradients(UnitGradients& out) const {
    std::vector<Tensor> grads;
    out = {};
    for (const Tensor& p : parameters) grads.push_back(new_floats(sizes_of(p)));
    const int layers = args.layers;
    for (int64_t i = 0; i < given; i++) {
        out.weight[i] = static_cast<float*>(grads[i].mutable_data_ptr());
        out.bias[i] = static_cast<float*>(grads[given + i].mutable_data_ptr());
        if (i < layers && args.slope[i])
            out.slope[i] = static_cast<float*>(grads[2 * given + i].mutable_data_ptr());
    }
    return grads;
}

FusionInputs read_fusion(int64_t width, const OptionalTensor& polarity, const OptionalTensor& table,
                         const Tensor& sign, const std::vector<Tensor>& gate, const OptionalTensor& extra_ids,
                         const OptionalTensor& extra_table, const Layout& layout, Element element) {
    FusionInputs inputs;
    PolarityFusion& args = inputs.args;
    args.width = checked_size(width, "target", "columns");
    if (extra_ids.has_value() != extra_table.has_value() || (extra_table && !table))
        fail("extra_ids and extra_table come together, and need a polarity table");
    if (!table) return inputs;
    if (!polarity) fail("polarity is missing; a polarity table needs it");
    if (!gate.empty() && gate.size() != 3)
        fail("gate has ", gate.size(), " tensors; expected W_g, b_g and W_t");
    args.kind = gate.empty() ? Fusion::bias : Fusion::tapf;
    auto keep = [&](const Tensor& tensor, const Name& name, std::initializer_list<int64_t> sizes) {
        inputs.alive.push_back(floats(tensor, name, sizes, element));
        return static_cast<const float*>(inputs.alive.back().const_data_ptr());
    };
    args.table = keep(*table, "polarity_table", {-1, width});
    args.rows = checked_size(table->size(0), "polarity_table", "rows");
    inputs.polarity = Ids(*polarity, "polarity", args.rows, layout);
    args.polarity = inputs.polarity.data();
    args.sign = keep(sign, "sign", {args.rows});
    if (extra_table) {
        inputs.has_extra = true;
        args.extra_table = keep(*extra_table, "extra_table", {-1, width});
        args.extra_rows = checked_size(extra_table->size(0), "extra_table", "rows");
        inputs.extra = Ids(*extra_ids, "extra_ids", args.extra_rows, layout);
        args.extra = inputs.extra.data();
    }
    if (args.kind == Fusion::tapf) {
        args.full_gate = gate[0].dim() == 2 && gate[0].size(1) == 3 * width;
        args.gate_weight = keep(gate[0], "gate[0] (W_g)", {width, args.full_gate ? 3 * width : width});
        args.gate_bias = keep(gate[1], "gate[1] (b_g)", {width});
        args.target_weight = keep(gate[2], "gate[2] (W_t)", {width, width});
    }
    return inputs;
}

Tensor FusionInputs::new_gradients(FusionGradients& out, std::vector<Tensor>& gate,
                                   Tensor& extra_table) const {
    out = {};
    const int64_t width = args.width;
    extra_table = has_extra ? new_floats({args.extra_rows, width}) : new_floats({0});
    out.extra = static_cast<float*>(extra_table.mutable_data_ptr());
    Tensor table = args.kind == Fusion::none ? new_floats({0}) : new_floats({args.rows, width});
    out.table = static_cast<float*>(table.mutable_data_ptr());
    if (args.kind == Fusion::tapf) {
        gate = {new_floats({width, args.full_gate ? 3 * width : width}), new_floats({width}),
                new_floats({width, width})};
        out.gate_weight = static_cast<float*>(gate[0].mutable_data_ptr());
        out.gate_bias = static_cast<float*>(gate[1].mutable_data_ptr());
        out.target_weight = static_cast<float*>(gate[2].mutable_data_ptr());
    }
    return table;
}

Packed pack(Pass& pass, bool with_unit, bool backward) {
    auto carve = [&](float* base) {
        Arena arena(base);
        if (with_unit)
            pass.packed_unit = carve_packed(pass.unit, !backward || layers_again(pass) > 0, backward, arena);
        pass.packed_fusion = carve_packed(pass.fusion, backward, arena);
        return arena.used();
    };
    Packed packed{allocate(carve(nullptr))};
    carve(packed.memory.get());
    if (with_unit) kernels().pack_unit(pass.unit, pass.keep_bits, pass.halves, pass.packed_unit);
    kernels().pack_fusion(pass.fusion, backward, pass.packed_fusion);
    return packed;
}

static int64_t sum_floats(const Pass& pass, bool with_unit) {
    Arena arena(nullptr);
    carve_sums(pass.fusion, arena);
    if (with_unit) carve_sums(pass.unit, arena);
    return arena.used();
}

int64_t backward_blocks(int64_t floats) {
    return std::clamp<int64_t>(MAX_SUMS / std::max<int64_t>(floats, 1), 1, BACKWARD_BLOCKS);
}

int64_t backward_blocks(const Pass& pass, bool with_unit) {
    return backward_blocks(sum_floats(pass, with_unit));
}

BlockSums new_sums(const Pass& pass, bool with_unit, int64_t blocks) {
    const int64_t floats = sum_floats(pass, with_unit);
    return {blocks, floats, allocate(floats * blocks)};
}

UnitSums BlockSums::unit(const Pass& pass, int64_t block) const {
    Arena arena(memory.get() + block * floats);
    carve_sums(pass.fusion, arena);
    return carve_sums(pass.unit, arena);
}

FusionSums BlockSums::fusion(const Pass& pass, int64_t block) const {
    Arena arena(memory.get() + block * floats);
    return carve_sums(pass.fusion, arena);
}

void BlockSums::clear(int64_t block) const {
    mixpol::cpu::clear(memory.get() + block * floats, sizeof(float) * floats);
}

}  // namespace mixpol::cpu
