// Target attention from token vectors and from ids, forward: the CUDA launchers.
#pragma once

#include <tuple>

#include "cuda/launch.h"

namespace mixpol::cuda {

std::tuple<Tensor, Tensor, Tensor> target_attention_fwd(
    Tensor target, Tensor history, OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask,
    std::vector<Tensor> weights, std::vector<Tensor> biases, OptionalTensors slopes, int64_t activation,
    int64_t normalize, double dropout, OptionalTensor seed, bool save_attention, bool save_bits);

std::tuple<Tensor, Tensor, Tensor> mixed_polarity_attention_fwd(
    Tensor target, Tensor item_ids, OptionalTensor polarity, Tensor item_table, OptionalTensor polarity_table,
    Tensor sign, OptionalTensors gate, OptionalTensor extra_ids, OptionalTensor extra_table,
    OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask, std::vector<Tensor> weights,
    std::vector<Tensor> biases, OptionalTensors slopes, int64_t activation, int64_t normalize, double dropout,
    OptionalTensor seed, bool save_attention, bool save_bits);

}  // namespace mixpol::cuda
