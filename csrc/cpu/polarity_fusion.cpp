#include "cpu/polarity_fusion.h"

namespace mixpol::cpu {

namespace {

constexpr int64_t FORWARD_BLOCKS = 128;

struct Inputs {
    Layout layout;
    FusionInputs fusion;
    std::vector<Tensor> alive;
    int64_t users, width;
    const float* target;
    TokenRows rows;

    TokenRows rows_of(const Tensor& tensor, const char* name) {
        Tensor tokens = float_rows(tensor, name, width);
        TokenRows out;
        out.base = static_cast<const float*>(tokens.const_data_ptr());
        out.row_stride = tokens.stride(tokens.dim() - 2);
        out.user_stride = tokens.dim() == 3 ? tokens.stride(0) : 0;
        alive.push_back(tokens);
        return out;
    }

    void fill(Pass& pass) const {
        pass.history = layout.history;
        pass.tokens = rows;
        pass.fusion = fusion.args;
        pass.width = static_cast<int>(width);
        pass.candidates = 1;
        pass.target = target;
    }
};

Inputs read(const Tensor& target, const Tensor& tokens, const Tensor& polarity, const Tensor& table,
            const Tensor& sign, const std::vector<Tensor>& gate, const OptionalTensor& extra_ids,
            const OptionalTensor& extra_table, const OptionalTensor& offsets, const OptionalTensor& lengths,
            const OptionalTensor& mask) {
    Inputs in;
    in.alive.push_back(floats(target, "target", {-1, -1}));
    in.users = target.size(0), in.width = target.size(1);
    checked_size(in.width, "target", "columns");
    in.target = static_cast<const float*>(in.alive.back().const_data_ptr());
    in.rows = in.rows_of(tokens, "tokens");
    std::vector<int64_t> shape = sizes_of(tokens);
    shape.pop_back();
    in.layout = read_layout(in.users, shape, offsets, lengths, mask);
    in.fusion = read_fusion(in.width, polarity, table, sign, gate, extra_ids, extra_table, in.layout);
    return in;
}

}  // namespace

Tensor polarity_fusion_fwd(Tensor target, Tensor tokens, Tensor polarity, Tensor polarity_table, Tensor sign,
                           OptionalTensors gate, OptionalTensor extra_ids, OptionalTensor extra_table,
                           OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask) {
    Inputs in = read(target, tokens, polarity, polarity_table, sign, list_of(gate), extra_ids, extra_table,
                     offsets, lengths, mask);
    FusionForward args{};
    in.fill(args);
    Packed packed = pack(args, false, false);
    Tensor fused = new_floats(sizes_of(tokens));
    args.fused = static_cast<float*>(fused.mutable_data_ptr());
    const std::vector<int64_t> bounds = cut_blocks(in.layout, 1, FORWARD_BLOCKS);
    const Kernels& k = kernels();
    run_blocks(static_cast<int64_t>(bounds.size()) - 1, k.fusion_scratch_floats(args, false),
               [&](int64_t block, float* scratch) {
                   k.fusion_forward(args, bounds[block], bounds[block + 1], scratch);
               });
    return fused;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> polarity_fusion_bwd(
    Tensor grad_fused, Tensor target, Tensor tokens, Tensor polarity, Tensor polarity_table, Tensor sign,
    std::vector<Tensor> gate, OptionalTensor extra_ids, OptionalTensor extra_table, OptionalTensor offsets,
    OptionalTensor lengths, OptionalTensor mask) {
    Inputs in = read(target, tokens, polarity, polarity_table, sign, gate, extra_ids, extra_table, offsets,
                     lengths, mask);
    FusionBackward args{};
    in.fill(args);
    if (sizes_of(grad_fused) != sizes_of(tokens)) fail("grad_fused does not have the shape of tokens");
    args.grad_fused = in.rows_of(grad_fused, "grad_fused");
    const bool some_empty = in.layout.any_empty();
    std::optional<Tensor> clean;
    if (some_empty) {
        clean = without_empty(in.alive.front(), in.layout, in.width);
        args.target = static_cast<const float*>(clean->const_data_ptr());
    }
    Packed packed = pack(args, false, true);
    Tensor grad_target = new_floats({in.users, in.width}), grad_tokens = new_floats(sizes_of(tokens));
    FusionGradients gradients;
    std::vector<Tensor> grad_gate;
    Tensor grad_extra, grad_table = in.fusion.new_gradients(gradients, grad_gate, grad_extra);
    args.grad_target = static_cast<float*>(grad_target.mutable_data_ptr());
    args.grad_tokens = static_cast<float*>(grad_tokens.mutable_data_ptr());
    const std::vector<int64_t> bounds = cut_blocks(in.layout, 1, backward_blocks(args, false));
    const int64_t blocks = static_cast<int64_t>(bounds.size()) - 1;
    const BlockSums sums = new_sums(args, false, std::max<int64_t>(blocks, 1));
    if (blocks < 1) sums.clear(0);
    const Kernels& k = kernels();
    run_blocks(blocks, k.fusion_scratch_floats(args, true), [&](int64_t block, float* scratch) {
        sums.clear(block);
        k.fusion_backward(args, bounds[block], bounds[block + 1], scratch, sums.fusion(args, block));
    });
    add_blocks(sums.memory.get(), sums.blocks, sums.floats);
    k.unfold_fusion(args.fusion, sums.fusion(args, 0), gradients);
    if (some_empty) clear_empty(args.grad_target, in.layout, sizeof(float) * in.width);
    return {grad_target, grad_tokens, grad_table, grad_extra, grad_gate};
}

}  // namespace mixpol::cpu
