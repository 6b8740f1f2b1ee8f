// Softmax dot-product attention of query rows over raw and over projected tokens: the launchers.
#pragma once

#include <tuple>

#include "cpu/launch.h"

namespace mixpol::cpu {

std::tuple<Tensor, Tensor, Tensor> dot_attention_fwd(Tensor queries, Tensor history, OptionalTensor offsets,
                                                     OptionalTensor lengths, OptionalTensor mask, bool sliced,
                                                     int64_t top_k, bool save_attention);

std::tuple<Tensor, Tensor> dot_attention_bwd(Tensor grad_pooled, Tensor stats, Tensor queries, Tensor history,
                                             OptionalTensor offsets, OptionalTensor lengths,
                                             OptionalTensor mask, bool sliced, int64_t top_k);

// Projections and all, for targets [B, D] or [B, M, D]; nothing is kept for a backward.
Tensor dot_attention_infer(Tensor target, Tensor history, OptionalTensor offsets, OptionalTensor lengths,
                           OptionalTensor mask, OptionalTensor w_q, OptionalTensor w_k, OptionalTensor w_v,
                           OptionalTensor w_o, int64_t num_heads, double scale, int64_t top_k);

std::tuple<Tensor, Tensor> dot_attention_projected_fwd(Tensor queries, Tensor history, OptionalTensor offsets,
                                                       OptionalTensor lengths, OptionalTensor mask,
                                                       Tensor w_k, Tensor w_v);

std::tuple<Tensor, Tensor, Tensor, Tensor> dot_attention_projected_bwd(
    Tensor grad_pooled, Tensor stats, Tensor queries, Tensor history, OptionalTensor offsets,
    OptionalTensor lengths, OptionalTensor mask, Tensor w_k, Tensor w_v);

}  // namespace mixpol::cpu
