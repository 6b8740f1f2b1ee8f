// Target attention from token vectors and from ids: the launchers.
#pragma once

#include <tuple>

#include "cpu/launch.h"

namespace mixpol::cpu {

std::tuple<Tensor, Tensor, Tensor> target_attention_fwd(
    Tensor target, Tensor history, OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask,
    std::vector<Tensor> weights, std::vector<Tensor> biases, OptionalTensors slopes, int64_t activation,
    int64_t normalize, double dropout, OptionalTensor seed, bool save_attention, bool save_bits);

std::tuple<Tensor, Tensor, std::vector<Tensor>> target_attention_bwd(
    Tensor grad_pooled, OptionalTensor grad_attention, Tensor attention, Tensor bits, Tensor target,
    Tensor history, OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask,
    std::vector<Tensor> weights, std::vector<Tensor> biases, std::vector<Tensor> slopes, int64_t activation,
    int64_t normalize, double dropout, OptionalTensor seed);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dice_attention_fwd(
    Tensor target, Tensor history, OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask,
    std::vector<Tensor> weights, std::vector<Tensor> biases, Tensor alpha, OptionalTensor norm_weight,
    OptionalTensor norm_bias, double eps, int64_t normalize, int64_t pad_to, bool save_attention);

std::tuple<Tensor, Tensor, std::vector<Tensor>> dice_attention_bwd(
    Tensor grad_pooled, OptionalTensor grad_attention, Tensor attention, Tensor mean, Tensor variance,
    Tensor slopes, Tensor target, Tensor history, OptionalTensor offsets, OptionalTensor lengths,
    OptionalTensor mask, std::vector<Tensor> weights, std::vector<Tensor> biases, double eps,
    int64_t normalize, int64_t pad_to);

std::tuple<Tensor, Tensor, Tensor> mixed_polarity_attention_fwd(
    Tensor target, Tensor item_ids, OptionalTensor polarity, Tensor item_table, OptionalTensor polarity_table,
    Tensor sign, OptionalTensors gate, OptionalTensor extra_ids, OptionalTensor extra_table,
    OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask, std::vector<Tensor> weights,
    std::vector<Tensor> biases, OptionalTensors slopes, int64_t activation, int64_t normalize, double dropout,
    OptionalTensor seed, bool save_attention, bool save_bits);

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>>
mixed_polarity_attention_bwd(Tensor grad_pooled, OptionalTensor grad_attention, Tensor attention, Tensor bits,
                             Tensor target, Tensor item_ids, OptionalTensor polarity, Tensor item_table,
                             OptionalTensor polarity_table, Tensor sign, std::vector<Tensor> gate,
                             OptionalTensor extra_ids, OptionalTensor extra_table, OptionalTensor offsets,
                             OptionalTensor lengths, OptionalTensor mask, std::vector<Tensor> weights,
                             std::vector<Tensor> biases, std::vector<Tensor> slopes, int64_t activation,
                             int64_t normalize, double dropout, OptionalTensor seed);

}  // namespace mixpol::cpu
