// Polarity fusion of tokens: the launchers.
#pragma once

#include <tuple>

#include "cpu/launch.h"

namespace mixpol::cpu {

Tensor polarity_fusion_fwd(Tensor target, Tensor tokens, Tensor polarity, Tensor polarity_table, Tensor sign,
                           OptionalTensors gate, OptionalTensor extra_ids, OptionalTensor extra_table,
                           OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask);

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> polarity_fusion_bwd(
    Tensor grad_fused, Tensor target, Tensor tokens, Tensor polarity, Tensor polarity_table, Tensor sign,
    std::vector<Tensor> gate, OptionalTensor extra_ids, OptionalTensor extra_table, OptionalTensor offsets,
    OptionalTensor lengths, OptionalTensor mask);

}  // namespace mixpol::cpu
