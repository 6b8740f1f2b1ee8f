#include "cpu/unit_statistics.h"

#include <cmath>
#include <cstring>

namespace mixpol::cpu {

namespace {

// The number of blocks does not depend on threads: moments are merged in block order.
constexpr int64_t BLOCKS = 32;

struct Inputs {
    Layout layout;
    Unit unit;
    std::vector<Tensor> alive;
    std::vector<int64_t> target_shape;
    StatisticsBackward pass{};
    double count = 0;  // rows behind the statistics, pads included
};

Inputs read(const Tensor& target, const Tensor& history, const OptionalTensor& offsets,
            const OptionalTensor& lengths, const OptionalTensor& mask, const std::vector<Tensor>& weights,
            const std::vector<Tensor>& biases, const std::vector<Tensor>& slopes, int64_t activation,
            double dropout, const OptionalTensor& seed, int64_t pad_to) {
    Inputs in;
    in.target_shape = sizes_of(target);
    const bool many = in.target_shape.size() == 3;
    in.alive.push_back(many ? floats(target, "target", {-1, -1, -1}) : floats(target, "target", {-1, -1}));
    const int64_t users = in.target_shape.front(),
                  candidates = many ? checked_size(in.target_shape[1], "target", "candidates") : 1,
                  width = checked_size(in.target_shape.back(), "target", "columns");
    Tensor tokens = float_rows(history, "history", width);
    std::vector<int64_t> token_shape = sizes_of(tokens);
    token_shape.pop_back();
    in.layout = read_layout(users, token_shape, offsets, lengths, mask);
    in.unit = read_unit(width, weights, biases, slopes, activation, 0, false);
    read_dropout(in.unit.args, dropout, seed);
    if (in.unit.args.dropout.on && in.unit.args.layers > 1 && pad_to >= 0)
        fail("pad_to is ", pad_to, " with dropout ", dropout,
             "; expected -1: one row cannot stand for pads that differ");
    in.count = statistics_rows(in.layout, candidates, pad_to);
    StatisticsBackward& pass = in.pass;
    pass.history = in.layout.history;
    pass.tokens.base = static_cast<const float*>(tokens.const_data_ptr());
    pass.tokens.row_stride = tokens.stride(tokens.dim() - 2);
    pass.tokens.user_stride = tokens.dim() == 3 ? tokens.stride(0) : 0;
    in.alive.push_back(tokens);
    pass.fusion.width = pass.width = static_cast<int>(width);
    pass.unit = in.unit.args;
    pass.candidates = static_cast<int>(candidates);
    pass.target = static_cast<const float*>(in.alive[0].const_data_ptr());
    pass.pad_to = pad_to;
    return in;
}

// The statistics are taken without the last layer's bias, which may be far larger than the spread: it moves
// the mean as it is, and not the variance. Returns it; `zeros` stands in for it while the pass runs.
const float* without_bias(StatisticsPass& pass, std::vector<float>& zeros) {
    const int last = pass.unit.layers - 1;
    const float* bias = pass.unit.bias[last];
    zeros.assign(pass.unit.units[last], 0.0f);
    pass.unit.bias[last] = zeros.data();
    return bias;
}

}  // namespace

double statistics_rows(const Layout& layout, int64_t candidates, int64_t pad_to) {
    double rows = 0;
    for (size_t b = 0; b < layout.counts.size(); b++) {
        const int64_t kept = layout.counts[b];
        if (pad_to >= 0 && kept > pad_to)
            fail("pad_to is ", pad_to, " and user ", b, " has ", kept,
                 " tokens; expected at least the longest history");
        rows += static_cast<double>(pad_to < 0 ? kept : pad_to) * static_cast<double>(candidates);
    }
    return rows;
}

void batch_statistics(StatisticsPass& pass, const Layout& layout, float* to_mean, float* to_rest,
                      float* to_variance) {
    const int64_t units = pass.unit.units[pass.unit.layers - 1], wide = padded_columns(units);
    std::vector<float> zeros;
    const float* const bias = without_bias(pass, zeros);
    Packed packed = pack(pass, true, false);
    const std::vector<int64_t> bounds = cut_blocks(layout, pass.candidates, BLOCKS);
    const int64_t blocks = static_cast<int64_t>(bounds.size()) - 1;
    Buffer memory = allocate(3 * wide * std::max<int64_t>(blocks, 1));
    clear(memory.get(), sizeof(float) * 3 * wide * blocks);
    std::vector<Moments> moments;
    for (int64_t b = 0; b < blocks; b++) {
        float* const at = memory.get() + 3 * wide * b;
        moments.push_back({0, at, at + wide, at + 2 * wide});
    }
    const Kernels& k = kernels();
    run_blocks(blocks, k.statistics_scratch_floats(pass), [&](int64_t block, float* scratch) {
        k.statistics_forward(pass, bounds[block], bounds[block + 1], scratch, moments[block]);
    });
    pass.unit.bias[pass.unit.layers - 1] = bias;
    for (int64_t h = 0; h < units; h++) {
        double count = 0, center = 0, squares = 0;
        for (const Moments& m : moments) {
            if (m.count == 0) continue;
            const double rest = std::isfinite(m.rest[h]) ? m.rest[h] : 0.0;  // of an infinite mean NaN
            const double delta = m.mean[h] + rest - center, total = count + m.count;
            center += delta * (m.count / total);
            squares += m.squares[h] + delta * delta * (count / total) * m.count;
            count = total;
        }
        if (count > 0) center += bias[h], squares += bias[h] - bias[h];  // NaN where the bias is not finite
        to_mean[h] = static_cast<float>(center);
        to_rest[h] = static_cast<float>(center - to_mean[h]);
        to_variance[h] = count > 0 ? static_cast<float>(squares / count) : 0.0f;
    }
}

std::tuple<Tensor, Tensor, Tensor> unit_statistics_fwd(Tensor target, Tensor history, OptionalTensor offsets,
                                                       OptionalTensor lengths, OptionalTensor mask,
                                                       std::vector<Tensor> weights,
                                                       std::vector<Tensor> biases, std::vector<Tensor> slopes,
                                                       int64_t activation, double dropout,
                                                       OptionalTensor seed, int64_t pad_to) {
    Inputs in = read(target, history, offsets, lengths, mask, weights, biases, slopes, activation, dropout,
                     seed, pad_to);
    const int64_t units = in.unit.args.units[in.unit.args.layers - 1];
    Tensor mean = new_floats({units}), rest = new_floats({units}), variance = new_floats({units});
    const auto data = [](Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); };
    batch_statistics(in.pass, in.layout, data(mean), data(rest), data(variance));
    return {mean, variance, rest};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> unit_statistics_bwd(
    Tensor grad_mean, Tensor grad_variance, Tensor mean, Tensor mean_rest, Tensor target, Tensor history,
    OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask, std::vector<Tensor> weights,
    std::vector<Tensor> biases, std::vector<Tensor> slopes, int64_t activation, double dropout,
    OptionalTensor seed, int64_t pad_to) {
    Inputs in = read(target, history, offsets, lengths, mask, weights, biases, slopes, activation, dropout,
                     seed, pad_to);
    StatisticsBackward& pass = in.pass;
    const int64_t units = in.unit.args.units[in.unit.args.layers - 1], wide = padded_columns(units);
    Tensor by_mean = floats(grad_mean, "grad_mean", {units}),
           by_variance = floats(grad_variance, "grad_variance", {units}),
           center = floats(mean, "mean", {units}), rest = floats(mean_rest, "mean_rest", {units});
    Buffer memory = allocate(3 * wide);
    clear(memory.get(), sizeof(float) * 3 * wide);
    const auto at = [](const Tensor& tensor, int64_t h) {
        return double{static_cast<const float*>(tensor.const_data_ptr())[h]};
    };
    std::vector<float> zeros;
    const float* const bias = without_bias(pass, zeros);
    for (int64_t h = 0; h < units && in.count > 0; h++) {
        const double square = 2 * at(by_variance, h) / in.count, from = at(center, h) + at(rest, h) - bias[h];
        const float high = static_cast<float>(from);
        memory.get()[h] = high;
        memory.get()[wide + h] = static_cast<float>(at(by_mean, h) / in.count - square * (from - high));
        memory.get()[2 * wide + h] = static_cast<float>(square);
    }
    pass.mean = memory.get(), pass.grad_mean = memory.get() + wide,
    pass.grad_square = memory.get() + 2 * wide;
    const bool some_empty = pad_to < 0 && in.layout.any_empty();  // pads meet the target
    const int64_t row = pass.candidates * int64_t{pass.width};
    std::optional<Tensor> clean;
    if (some_empty) {
        clean = without_empty(in.alive.front(), in.layout, row);
        pass.target = static_cast<const float*>(clean->const_data_ptr());
    }
    Packed packed = pack(pass, true, true);
    Tensor grad_target = new_floats(in.target_shape), grad_history = new_floats(sizes_of(history));
    pass.grad_target = static_cast<float*>(grad_target.mutable_data_ptr());
    pass.grad_tokens = static_cast<float*>(grad_history.mutable_data_ptr());
    UnitGradients gradients;
    std::vector<Tensor> parameters = in.unit.new_gradients(gradients);
    if (pass.candidates == 0 || (pad_to < 0 && in.layout.all_empty())) {  // nothing for a kernel to visit
        for (Tensor* grad : {&grad_target, &grad_history})
            clear(grad->mutable_data_ptr(), sizeof(float) * grad->numel());
        for (Tensor& grad : parameters) clear(grad.mutable_data_ptr(), sizeof(float) * grad.numel());
        return {grad_target, grad_history, parameters};
    }
    const std::vector<int64_t> bounds = cut_blocks(in.layout, pass.candidates, BLOCKS);
    const int64_t blocks = static_cast<int64_t>(bounds.size()) - 1;
    const BlockSums sums = new_sums(pass, true, std::max<int64_t>(blocks, 1));
    if (blocks < 1) sums.clear(0);
    const Kernels& k = kernels();
    run_blocks(blocks, k.statistics_scratch_floats(pass), [&](int64_t block, float* scratch) {
        sums.clear(block);
        k.statistics_backward(pass, bounds[block], bounds[block + 1], scratch, sums.unit(pass, block));
    });
    add_blocks(sums.memory.get(), sums.blocks, sums.floats);
    k.unfold_unit(pass.unit, sums.unit(pass, 0), false, gradients);
    if (some_empty) clear_empty(pass.grad_target, in.layout, sizeof(float) * row);
    // What the bias gets through the variance is 0: the sum has only its rounding left, and NaN and inf.
    float* const grad_bias = gradients.bias[pass.unit.layers - 1];
    for (int64_t h = 0; h < units && in.count > 0; h++)
        if (std::isfinite(grad_bias[h])) grad_bias[h] = static_cast<float>(at(by_mean, h));
    return {grad_target, grad_history, parameters};
}

}  // namespace mixpol::cpu
