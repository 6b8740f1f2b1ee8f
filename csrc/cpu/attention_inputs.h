// The inputs of target attention, read and checked.
#pragma once

#include "cpu/launch.h"

namespace mixpol::cpu {

// The inputs of either op, read and checked; `pass` points into it.
struct Inputs {
    Layout layout;
    Unit unit;
    FusionInputs fusion;
    Ids items;
    std::vector<Tensor> alive;
    std::vector<int64_t> token_shape, target_shape;
    int64_t users, candidates, width;
    Element element;         // of every floating-point input, pooled, and the gradients
    bool looked_up = false;  // tokens are rows of a table

    void fill(Pass& pass) const {
        pass.history = layout.history;
        pass.tokens = rows;
        pass.fusion = fusion.args;
        pass.unit = unit.args;
        pass.width = static_cast<int>(width);
        pass.candidates = static_cast<int>(candidates);
        pass.target = target;
        pass.halves = element == Element::bf16 && multiplies_halves();
    }

    // [B, D] or [B, M, D]: taken as it is, since a view made in Python costs microseconds.
    void read_target(const Tensor& tensor) {
        target_shape = sizes_of(tensor);
        element = element_of(tensor);
        if (target_shape.size() == 2) {
            alive.push_back(floats(tensor, "target", {-1, -1}, element));
        } else {
            alive.push_back(floats(tensor, "target", {-1, -1, -1}, element));
        }
        users = target_shape.front(), width = target_shape.back();
        checked_size(width, "target", "columns");
        candidates = target_shape.size() == 2 ? 1 : checked_size(target_shape[1], "target", "candidates");
        target = static_cast<const float*>(alive.back().const_data_ptr());
    }

    TokenRows rows;
    const float* target;
};

inline Inputs read_tokens(const Tensor& target, const Tensor& history, const OptionalTensor& offsets,
                          const OptionalTensor& lengths, const OptionalTensor& mask,
                          const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                          const std::vector<Tensor>& slopes, int64_t activation, int64_t normalize) {
    Inputs in;
    in.read_target(target);
    Tensor tokens = float_rows(history, "history", in.width, in.element);
    in.token_shape = sizes_of(tokens);
    in.token_shape.pop_back();
    in.layout = read_layout(in.users, in.token_shape, offsets, lengths, mask);
    in.rows.base = tokens.const_data_ptr();
    in.rows.element = in.element;
    in.rows.row_stride = tokens.stride(tokens.dim() - 2);
    in.rows.user_stride = tokens.dim() == 3 ? tokens.stride(0) : 0;
    in.alive.push_back(tokens);
    in.unit = read_unit(in.width, weights, biases, slopes, activation, normalize, true, in.element);
    in.fusion.args.width = static_cast<int>(in.width);
    return in;
}

inline Inputs read_ids(const Tensor& target, const Tensor& item_ids, const OptionalTensor& polarity,
                       const Tensor& item_table, const OptionalTensor& polarity_table, const Tensor& sign,
                       const std::vector<Tensor>& gate, const OptionalTensor& extra_ids,
                       const OptionalTensor& extra_table, const OptionalTensor& offsets,
                       const OptionalTensor& lengths, const OptionalTensor& mask,
                       const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                       const std::vector<Tensor>& slopes, int64_t activation, int64_t normalize) {
    Inputs in;
    in.read_target(target);
    in.token_shape = sizes_of(item_ids);
    in.layout = read_layout(in.users, in.token_shape, offsets, lengths, mask);
    Tensor table = float_rows(item_table, "item_table", in.width, in.element);
    if (table.dim() != 2) fail("item_table has ", table.dim(), " dimensions; expected [V, D]");
    in.items = Ids(item_ids, "item_ids", table.size(0), in.layout);
    in.rows.base = table.const_data_ptr();
    in.rows.element = in.element;
    in.rows.row_stride = table.stride(0);
    in.rows.ids = in.items.data();
    in.looked_up = true;
    in.alive.push_back(table);
    in.fusion = read_fusion(in.width, polarity, polarity_table, sign, gate, extra_ids, extra_table, in.layout,
                            in.element);
    in.unit = read_unit(in.width, weights, biases, slopes, activation, normalize, true, in.element);
    return in;
}

}  // namespace mixpol::cpu
