#include "cpu/attention.h"

#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <cstring>

#include "cpu/attention_inputs.h"
#include "cpu/unit_statistics.h"

namespace mixpol::cpu {

using torch::headeronly::ScalarType;

namespace {

constexpr int64_t FORWARD_BLOCKS =
    128;  // for load balance only: a user's result does not depend on its block

// Whether a bit per unit of the last hidden layer can stand in for it.
bool has_bits(const ActivationUnit& unit) {
    return unit.units[unit.layers - 1] <= 64 && unit.activation == Activation::relu && !unit.dropout.on;
}

std::tuple<Tensor, Tensor, Tensor> forward(const Inputs& in, bool save_attention, bool save_bits) {
    AttentionForward args{};
    in.fill(args);
    const int64_t hidden = in.unit.args.units[in.unit.args.layers - 1];
    if (save_bits && !has_bits(in.unit.args))
        fail(
            "save_bits was true; expected false unless the unit's layers are of ReLU without dropout, the "
            "last of at most 64 units");
    Packed packed = pack(args, true, false);
    Tensor pooled = new_floats(in.target_shape);
    std::vector<int64_t> shape = in.token_shape;
    shape.push_back(in.candidates);
    Tensor attention = save_attention ? new_floats(shape) : new_floats({0});
    shape.push_back((hidden + 7) / 8);
    std::vector<int64_t> none{0};
    Tensor bits = new_tensor(save_bits ? shape : none, ScalarType::Byte);
    args.pooled = static_cast<float*>(pooled.mutable_data_ptr());
    args.attention = save_attention ? static_cast<float*>(attention.mutable_data_ptr()) : nullptr;
    args.bits = save_bits ? static_cast<uint8_t*>(bits.mutable_data_ptr()) : nullptr;
    const std::vector<int64_t> bounds = cut_targets(in.layout, in.candidates, FORWARD_BLOCKS);
    const Kernels& k = kernels();
    run_blocks(static_cast<int64_t>(bounds.size()) - 1, k.attention_scratch_floats(args, false),
               [&](int64_t block, float* scratch) {
                   k.attention_forward(args, bounds[block], bounds[block + 1], scratch);
               });
    return {narrowed(pooled, in.element), attention, bits};
}

struct Gradients {
    Tensor target, tokens, table, extra;
    std::vector<Tensor> gate, parameters;
};

// A unit of one layer, normalised by the statistics of its own batch.
struct Normalised {
    const float *mean, *variance;  // [H]
    double eps, rows;
    int64_t pad_to;
};

// From the gradients of n(x) = scale x + shift to those of what they were made of: writes the affine
// parameters' into rows 1 and 2 of `grad_slope` [3, H], and has the statistics' read by the pass. `memory`
// [3][H p].
void normalised_gradients(AttentionBackward& args, const Normalised& norm, const std::vector<int64_t>& bounds,
                          float* memory, float* grad_slope) {
    const int64_t blocks = static_cast<int64_t>(bounds.size()) - 1, units = args.unit.units[0],
                  wide = padded_columns(units);
    const float* scale = args.unit.slope[0] + units;
    args.stash = args.candidates == 1 && units <= args.width && args.grad_element == Element::f32;
    const int64_t each = NORMALISED_SUMS * wide;
    Buffer sums = allocate(each * std::max<int64_t>(blocks, 1));
    clear(sums.get(), sizeof(float) * each * blocks);
    clear(memory, sizeof(float) * 3 * wide);
    copy(memory, norm.mean, sizeof(float) * units);
    args.mean = memory, args.grad_mean = memory + wide, args.grad_square = memory + 2 * wide;
    const Kernels& k = kernels();
    run_blocks(blocks, k.attention_scratch_floats(args, true), [&](int64_t block, float* scratch) {
        k.normalised_sums(args, bounds[block], bounds[block + 1], scratch, sums.get() + each * block);
    });
    for (int64_t h = 0; h < units; h++) {
        double by_scale = 0, by_shift = 0, off = 0;
        for (int64_t b = 0; b < blocks; b++) {
            const float* const at = sums.get() + each * b + h;
            by_scale += at[0], by_shift += at[wide], off += at[2 * wide];
        }
        const double inverse = 1 / std::sqrt(norm.variance[h] + norm.eps),
                     share = norm.rows > 0 ? 1 / norm.rows : 0,
                     rest = off * share;  // what the float32 mean lacks: rows count from the exact one
        by_scale -= rest * by_shift;
        const double square = -by_scale * scale[h] * inverse * inverse * share;
        grad_slope[units + h] = static_cast<float>(by_scale * inverse);
        grad_slope[2 * units + h] = static_cast<float>(by_shift);
        memory[wide + h] = static_cast<float>(-scale[h] * by_shift * share - rest * square);
        memory[2 * wide + h] = static_cast<float>(square);
    }
}

// What the kernels make of inputs with tokens and candidates: all gradients of the call, in float32.
void run_backward(const Inputs& in, AttentionBackward& args, const Normalised* norm,
                  UnitGradients& unit_gradients, FusionGradients& fusion_gradients) {
    Packed packed = pack(args, true, true);
    const std::vector<int64_t> bounds = cut_blocks(in.layout, in.candidates, backward_blocks(args, true));
    const int64_t blocks = static_cast<int64_t>(bounds.size()) - 1;
    const BlockSums sums = new_sums(args, true, std::max<int64_t>(blocks, 1));
    Buffer statistics;
    std::vector<float> grad_affine;
    if (norm) {
        const int64_t units = args.unit.units[0];
        args.pad_to = norm->pad_to;
        statistics = allocate(3 * padded_columns(units));
        grad_affine.resize(3 * units);
        normalised_gradients(args, *norm, bounds, statistics.get(), grad_affine.data());
    }
    const Kernels& k = kernels();
    run_blocks(blocks, k.attention_scratch_floats(args, true), [&](int64_t block, float* scratch) {
        sums.clear(block);
        k.attention_backward(args, bounds[block], bounds[block + 1], scratch, sums.unit(args, block),
                             sums.fusion(args, block));
    });
    add_blocks(sums.memory.get(), sums.blocks, sums.floats);
    k.unfold_unit(args.unit, sums.unit(args, 0), args.keep_bits, unit_gradients);
    k.unfold_fusion(args.fusion, sums.fusion(args, 0), fusion_gradients);
    if (norm) {
        const int64_t units = args.unit.units[0];
        copy(unit_gradients.slope[0] + units, grad_affine.data() + units, sizeof(float) * 2 * units);
    }
}

void clear_floats(Tensor& tensor) { clear(tensor.mutable_data_ptr(), sizeof(float) * tensor.numel()); }

Gradients backward(const Inputs& in, const Tensor& grad_pooled, const OptionalTensor& grad_attention,
                   const Tensor& attention, const Tensor& bits, const Normalised* norm = nullptr) {
    AttentionBackward args{};
    in.fill(args);
    args.keep_bits = bits.numel() > 0 || bits.dim() > 1;
    if (sizes_of(grad_pooled) != in.target_shape)
        fail("grad_pooled has ", grad_pooled.numel(),
             " values in another shape than target; expected the same");
    Tensor grad =
        widened(as_contiguous(float_rows(grad_pooled, "grad_pooled", in.width, in.element)), in.element);
    const int64_t expected = in.layout.history.tokens * in.candidates;
    if (attention.numel() != expected)
        fail("attention has ", attention.numel(), " values; expected ", expected,
             ", those that the forward saved");
    if (attention.scalar_type() != ScalarType::Float)
        fail("attention is not float32; expected what the forward saved");
    Tensor saved = as_contiguous(attention);
    std::optional<Tensor> weight_grad;
    if (grad_attention) {
        std::vector<int64_t> shape = in.token_shape;
        shape.push_back(in.candidates);
        if (sizes_of(*grad_attention) != shape)
            fail("grad_attention has ", grad_attention->numel(),
                 " values; expected one per token and candidate");
        weight_grad = as_contiguous(float_rows(*grad_attention, "grad_attention", in.candidates));
        args.grad_attention = static_cast<const float*>(weight_grad->const_data_ptr());
    }
    const int64_t bytes = (in.unit.args.units[args.unit.layers - 1] + 7) / 8;
    if (args.keep_bits && (!has_bits(in.unit.args) || bits.scalar_type() != ScalarType::Byte ||
                           bits.numel() != expected * bytes))
        fail("bits has ", bits.numel(), " values; expected the bytes that the forward saved");
    Tensor saved_bits = as_contiguous(bits);
    args.grad_pooled = static_cast<const float*>(grad.const_data_ptr());
    args.attention = static_cast<const float*>(saved.const_data_ptr());
    args.bits = static_cast<const uint8_t*>(saved_bits.const_data_ptr());
    // The zero tokens of the statistics meet an empty history's target too.
    const bool pads = norm && norm->pad_to >= 0, some_empty = !pads && in.layout.any_empty();
    const int64_t row = in.candidates * in.width;
    std::optional<Tensor> clean;
    if (some_empty) {
        clean = without_empty(in.alive.front(), in.layout, row);
        args.target = static_cast<const float*>(clean->const_data_ptr());
    }

    Gradients result;
    result.target = new_floats(in.target_shape);
    std::vector<int64_t> shape = in.token_shape;
    shape.push_back(in.width);
    // Looked-up rows stay float32: what is rounded is their sum for each row of the table. So do those of
    // several candidates, which add up here.
    const bool direct = !in.looked_up && in.candidates == 1;
    args.grad_element = direct ? in.element : Element::f32;
    result.tokens = new_elements(shape, args.grad_element);
    UnitGradients unit_gradients;
    FusionGradients fusion_gradients;
    result.parameters = in.unit.new_gradients(unit_gradients);
    result.table = in.fusion.new_gradients(fusion_gradients, result.gate, result.extra);
    args.grad_target = static_cast<float*>(result.target.mutable_data_ptr());
    args.grad_tokens = result.tokens.mutable_data_ptr();

    // Without a token or a candidate no kernel has anything to visit, and no parameter has a gradient, NaN or
    // not.
    if (in.candidates == 0 || in.layout.all_empty()) {
        clear(args.grad_tokens, element_bytes(args.grad_element) * result.tokens.numel());
        for (Tensor* grad : {&result.target, &result.table, &result.extra}) clear_floats(*grad);
        for (auto* grads : {&result.parameters, &result.gate})
            for (Tensor& grad : *grads) clear_floats(grad);
    } else {
        run_backward(in, args, norm, unit_gradients, fusion_gradients);
        if (some_empty) clear_empty(args.grad_target, in.layout, sizeof(float) * row);
    }
    if (in.element == Element::f32) return result;
    for (Tensor* grad : {&result.target, &result.table, &result.extra}) *grad = narrowed(*grad, in.element);
    for (auto* grads : {&result.parameters, &result.gate})
        for (Tensor& grad : *grads) grad = narrowed(grad, in.element);
    if (!direct && !in.looked_up) result.tokens = narrowed(result.tokens, in.element);
    return result;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> target_attention_fwd(
    Tensor target, Tensor history, OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask,
    std::vector<Tensor> weights, std::vector<Tensor> biases, OptionalTensors slopes, int64_t activation,
    int64_t normalize, double dropout, OptionalTensor seed, bool save_attention, bool save_bits) {
    Inputs in = read_tokens(target, history, offsets, lengths, mask, weights, biases, list_of(slopes),
                            activation, normalize);
    read_dropout(in.unit.args, dropout, seed);
    return forward(in, save_attention, save_bits);
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> target_attention_bwd(
    Tensor grad_pooled, OptionalTensor grad_attention, Tensor attention, Tensor bits, Tensor target,
    Tensor history, OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask,
    std::vector<Tensor> weights, std::vector<Tensor> biases, std::vector<Tensor> slopes, int64_t activation,
    int64_t normalize, double dropout, OptionalTensor seed) {
    Inputs in =
        read_tokens(target, history, offsets, lengths, mask, weights, biases, slopes, activation, normalize);
    read_dropout(in.unit.args, dropout, seed);
    Gradients g = backward(in, grad_pooled, grad_attention, attention, bits);
    return {g.target, g.tokens, g.parameters};
}

static void check_dice(const std::vector<Tensor>& weights) {
    if (weights.size() != 2)
        fail("weights has ", weights.size(), " entries; expected a hidden and the output layer");
    if (weights[0].dim() != 2 || weights[0].size(0) == 0)
        fail("weights[0] has ", weights[0].dim(), " dimensions and ", weights[0].numel(),
             " values; expected [H, 4 D] with at least one hidden unit");
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dice_attention_fwd(
    Tensor target, Tensor history, OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask,
    std::vector<Tensor> weights, std::vector<Tensor> biases, Tensor alpha, OptionalTensor norm_weight,
    OptionalTensor norm_bias, double eps, int64_t normalize, int64_t pad_to, bool save_attention) {
    check_dice(weights);
    const int64_t units = weights[0].size(0);
    Tensor given = floats(alpha, "alpha", {units}), slopes = new_floats({3, units});
    float *slope = static_cast<float*>(slopes.mutable_data_ptr()), *scale = slope + units,
          *shift = scale + units;
    clear(slope, sizeof(float) * 3 * units);
    copy(slope, given.const_data_ptr(), sizeof(float) * units);
    Inputs in = read_tokens(target, history, offsets, lengths, mask, weights, biases, {slopes},
                            static_cast<int64_t>(Activation::dice), normalize);
    if (in.element != Element::f32) fail("target is not float32; convert it with .float()");
    statistics_rows(in.layout, in.candidates, pad_to);

    StatisticsPass pass{};
    in.fill(pass);
    pass.unit.activation = Activation::relu;  // not reached: the statistics are of what comes before it
    pass.unit.weight[1] = pass.unit.bias[1] = pass.unit.slope[0] = nullptr;
    pass.pad_to = pad_to;
    Tensor mean = new_floats({units}), variance = new_floats({units});
    float *center = static_cast<float*>(mean.mutable_data_ptr()),
          *spread = static_cast<float*>(variance.mutable_data_ptr());
    std::vector<float> rest(units);
    batch_statistics(pass, in.layout, center, rest.data(), spread);

    OptionalTensor gain, bias;
    if (norm_weight) gain = floats(*norm_weight, "norm_weight", {units});
    if (norm_bias) bias = floats(*norm_bias, "norm_bias", {units});
    for (int64_t h = 0; h < units; h++) {
        const double inverse = 1 / std::sqrt(spread[h] + eps);
        scale[h] = static_cast<float>(inverse *
                                      (gain ? static_cast<const float*>(gain->const_data_ptr())[h] : 1.0f));
        shift[h] = static_cast<float>((bias ? static_cast<const float*>(bias->const_data_ptr())[h] : 0.0) -
                                      (double{center[h]} + rest[h]) * scale[h]);
    }
    auto [pooled, attention, bits] = forward(in, save_attention, false);
    return {pooled, attention, mean, variance, slopes};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> dice_attention_bwd(
    Tensor grad_pooled, OptionalTensor grad_attention, Tensor attention, Tensor mean, Tensor variance,
    Tensor slopes, Tensor target, Tensor history, OptionalTensor offsets, OptionalTensor lengths,
    OptionalTensor mask, std::vector<Tensor> weights, std::vector<Tensor> biases, double eps,
    int64_t normalize, int64_t pad_to) {
    check_dice(weights);
    Inputs in = read_tokens(target, history, offsets, lengths, mask, weights, biases, {slopes},
                            static_cast<int64_t>(Activation::dice), normalize);
    if (in.element != Element::f32) fail("target is not float32; convert it with .float()");
    const int64_t hidden = in.unit.args.units[0];
    Tensor center = floats(mean, "mean", {hidden}), spread = floats(variance, "variance", {hidden});
    Normalised norm{static_cast<const float*>(center.const_data_ptr()),
                    static_cast<const float*>(spread.const_data_ptr()), eps,
                    statistics_rows(in.layout, in.candidates, pad_to), pad_to};
    Gradients g = backward(in, grad_pooled, grad_attention, attention, new_floats({0}), &norm);
    return {g.target, g.tokens, g.parameters};
}

std::tuple<Tensor, Tensor, Tensor> mixed_polarity_attention_fwd(
    Tensor target, Tensor item_ids, OptionalTensor polarity, Tensor item_table, OptionalTensor polarity_table,
    Tensor sign, OptionalTensors gate, OptionalTensor extra_ids, OptionalTensor extra_table,
    OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask, std::vector<Tensor> weights,
    std::vector<Tensor> biases, OptionalTensors slopes, int64_t activation, int64_t normalize, double dropout,
    OptionalTensor seed, bool save_attention, bool save_bits) {
    Inputs in = read_ids(target, item_ids, polarity, item_table, polarity_table, sign, list_of(gate),
                         extra_ids, extra_table, offsets, lengths, mask, weights, biases, list_of(slopes),
                         activation, normalize);
    read_dropout(in.unit.args, dropout, seed);
    return forward(in, save_attention, save_bits);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>>
mixed_polarity_attention_bwd(Tensor grad_pooled, OptionalTensor grad_attention, Tensor attention, Tensor bits,
                             Tensor target, Tensor item_ids, OptionalTensor polarity, Tensor item_table,
                             OptionalTensor polarity_table, Tensor sign, std::vector<Tensor> gate,
                             OptionalTensor extra_ids, OptionalTensor extra_table, OptionalTensor offsets,
                             OptionalTensor lengths, OptionalTensor mask, std::vector<Tensor> weights,
                             std::vector<Tensor> biases, std::vector<Tensor> slopes, int64_t activation,
                             int64_t normalize, double dropout, OptionalTensor seed) {
    Inputs in = read_ids(target, item_ids, polarity, item_table, polarity_table, sign, gate, extra_ids,
                         extra_table, offsets, lengths, mask, weights, biases, slopes, activation, normalize);
    read_dropout(in.unit.args, dropout, seed);
    Gradients g = backward(in, grad_pooled, grad_attention, attention, bits);
    return {g.target, g.tokens, g.table, g.extra, g.gate, g.parameters};
}

}  // namespace mixpol::cpu
