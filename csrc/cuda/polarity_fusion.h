// Polarity fusion of tokens, forward: the CUDA launcher.
#pragma once

#include "cuda/launch.h"

namespace mixpol::cuda {

Tensor polarity_fusion_fwd(Tensor target, Tensor tokens, Tensor polarity, Tensor polarity_table, Tensor sign,
                           OptionalTensors gate, OptionalTensor extra_ids, OptionalTensor extra_table,
                           OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask);

}  // namespace mixpol::cuda
