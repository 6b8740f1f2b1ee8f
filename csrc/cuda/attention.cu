#include "cuda/attention.cuh"
#include "cuda/attention.h"

namespace mixpol::cuda {

namespace {

constexpr int64_t MOST_TARGETS = 0x7fffffff;  // blocks of a grid

// A forward whose inputs are being read; `checks` collects what the device has to check.
struct Inputs {
    Device device;
    AttentionForward args;
    Checks checks;
    Alive alive;
    std::vector<int64_t> target_shape, token_shape;

    // [B, D] or [B, M, D].
    explicit Inputs(const Tensor& target) : device(target, "target"), target_shape(sizes_of(target)) {
        if (target_shape.size() == 2) {
            alive.push_back(device.read_floats(target, "target", {-1, -1}));
        } else {
            alive.push_back(device.read_floats(target, "target", {-1, -1, -1}));
        }
        args.target = data_of(alive.back());
        args.width = static_cast<int>(target_shape.back());
        args.candidates = static_cast<int>(target_shape.size() == 2 ? 1 : target_shape[1]);
        if (target_shape[0] * args.candidates > MOST_TARGETS)
            fail("target has ", target_shape[0] * args.candidates, " rows; expected at most ", MOST_TARGETS);
    }

    void read_layout(std::vector<int64_t> shape, const OptionalTensor& offsets, const OptionalTensor& lengths,
                     const OptionalTensor& mask) {
        token_shape = std::move(shape);
        args.history = read_history(device, target_shape[0], token_shape, offsets, lengths, mask, alive);
        checks.history = args.history;
    }

    std::tuple<Tensor, Tensor, Tensor> forward(bool save_attention, bool save_bits) {
        const ActivationUnit& unit = args.unit;
        const int64_t hidden = unit.units[0];
        if (save_bits && (unit.layers > 1 || hidden > 64 || unit.activation != Activation::relu))
            fail("save_bits was true; expected false unless the unit is one ReLU layer of at most 64 units");
        const Tables tables = plan_tables(args, device.shared_limit());
        if (!tables.unit_columns)
            fail("a target of width ", args.width, " with hidden layers of ", unit.units[0], ", ",
                 unit.units[1], " and ", unit.units[2], " units (0: none) needs more than the ",
                 device.shared_limit(),
                 " bytes of shared memory that a block of this GPU can have; expected less");
        std::vector<int64_t> shape = token_shape;
        shape.push_back(args.candidates);
        Tensor pooled = device.floats(target_shape);
        Tensor attention = device.floats(save_attention ? shape : std::vector<int64_t>{0});
        shape.push_back((hidden + 7) / 8);
        Tensor bits = device.tensor(save_bits ? shape : std::vector<int64_t>{0}, ScalarType::Byte);
        args.pooled = mutable_data_of(pooled);
        args.attention = save_attention ? mutable_data_of(attention) : nullptr;
        args.bits = save_bits ? static_cast<uint8_t*>(bits.mutable_data_ptr()) : nullptr;
        launch_checks(checks, device.stream());
        pack_parameters(device, args, alive);
        launch_attention(args, tables, device.stream());
        device.check_launches();
        return {pooled, attention, bits};
    }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> target_attention_fwd(Tensor target, Tensor history, OptionalTensor offsets,
                                                        OptionalTensor lengths, OptionalTensor mask,
                                                        std::vector<Tensor> weights,
                                                        std::vector<Tensor> biases, OptionalTensors slopes,
                                                        int64_t activation, int64_t normalize, double dropout,
                                                        OptionalTensor, bool save_attention, bool save_bits) {
    Inputs in(target);
    const Tensor tokens = in.device.read_rows(history, "history", in.args.width);
    in.alive.push_back(tokens);
    std::vector<int64_t> shape = sizes_of(tokens);
    shape.pop_back();
    in.read_layout(shape, offsets, lengths, mask);
    in.args.tokens = rows_of(tokens);
    in.args.unit = read_unit(in.device, in.args.width, weights, biases, list_of(slopes), activation,
                             normalize, dropout, in.alive);
    return in.forward(save_attention, save_bits);
}

std::tuple<Tensor, Tensor, Tensor> mixed_polarity_attention_fwd(
    Tensor target, Tensor item_ids, OptionalTensor polarity, Tensor item_table, OptionalTensor polarity_table,
    Tensor sign, OptionalTensors gate, OptionalTensor extra_ids, OptionalTensor extra_table,
    OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask, std::vector<Tensor> weights,
    std::vector<Tensor> biases, OptionalTensors slopes, int64_t activation, int64_t normalize, double dropout,
    OptionalTensor, bool save_attention, bool save_bits) {
    Inputs in(target);
    in.read_layout(sizes_of(item_ids), offsets, lengths, mask);
    const Tensor table = in.device.read_rows(item_table, "item_table", in.args.width);
    if (table.dim() != 2) fail("item_table has ", table.dim(), " dimensions; expected [V, D]");
    in.alive.push_back(table);
    in.args.items =
        read_ids(in.device, item_ids, "item_ids", table.size(0), Argument::item_ids, in.checks, in.alive);
    in.args.tokens = rows_of(table);
    in.args.fusion = read_fusion(in.device, in.args.width, polarity, polarity_table, sign, list_of(gate),
                                 extra_ids, extra_table, in.checks, in.alive);
    in.args.unit = read_unit(in.device, in.args.width, weights, biases, list_of(slopes), activation,
                             normalize, dropout, in.alive);
    return in.forward(save_attention, save_bits);
}

}  // namespace mixpol::cuda
