// Look-up of mixed-polarity tokens, and the gradient of a looked-up table: the CUDA launchers.
#pragma once

#include <tuple>

#include "cuda/launch.h"

namespace mixpol::cuda {

Tensor polarity_embedding_fwd(Tensor item_ids, Tensor polarity, Tensor item_table, Tensor polarity_table,
                              OptionalTensor extra_ids, OptionalTensor extra_table, OptionalTensor offsets,
                              OptionalTensor lengths, OptionalTensor mask);

Tensor table_grad_dense(Tensor ids, Tensor grad_tokens, OptionalTensor offsets, OptionalTensor lengths,
                        OptionalTensor mask, int64_t table_rows);

// Waits for the device once: the number of unique ids is part of the result's shape.
std::tuple<Tensor, Tensor> table_grad_sparse(Tensor ids, Tensor grad_tokens, OptionalTensor offsets,
                                             OptionalTensor lengths, OptionalTensor mask, int64_t table_rows);

}  // namespace mixpol::cuda
