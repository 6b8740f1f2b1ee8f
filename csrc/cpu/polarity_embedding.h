// Look-up of items and polarities, and the gradient of a looked-up table: the launchers.
#pragma once

#include <tuple>

#include "cpu/launch.h"

namespace mixpol::cpu {

Tensor polarity_embedding_fwd(Tensor item_ids, Tensor polarity, Tensor item_table, Tensor polarity_table,
                              OptionalTensor extra_ids, OptionalTensor extra_table, OptionalTensor offsets,
                              OptionalTensor lengths, OptionalTensor mask);

Tensor table_grad_dense(Tensor ids, Tensor grad_tokens, OptionalTensor offsets, OptionalTensor lengths,
                        OptionalTensor mask, int64_t table_rows);

std::tuple<Tensor, Tensor> table_grad_sparse(Tensor ids, Tensor grad_tokens, OptionalTensor offsets,
                                             OptionalTensor lengths, OptionalTensor mask, int64_t table_rows);

}  // namespace mixpol::cpu
