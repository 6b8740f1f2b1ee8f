// Batch statistics of the activation unit's pre-activations: the launchers.
#pragma once

#include <tuple>

#include "cpu/launch.h"

namespace mixpol::cpu {

// How many rows the statistics are over, pads included; fails where a history is longer than `pad_to`.
double statistics_rows(const Layout& layout, int64_t candidates, int64_t pad_to);

// Mean, what float32 rounds away of it, and biased variance of the last layer's pre-activations, [H_last];
// packs the pass.
void batch_statistics(StatisticsPass& pass, const Layout& layout, float* mean, float* rest, float* variance);

std::tuple<Tensor, Tensor, Tensor> unit_statistics_fwd(Tensor target, Tensor history, OptionalTensor offsets,
                                                       OptionalTensor lengths, OptionalTensor mask,
                                                       std::vector<Tensor> weights,
                                                       std::vector<Tensor> biases, std::vector<Tensor> slopes,
                                                       int64_t activation, double dropout,
                                                       OptionalTensor seed, int64_t pad_to);

std::tuple<Tensor, Tensor, std::vector<Tensor>> unit_statistics_bwd(
    Tensor grad_mean, Tensor grad_variance, Tensor mean, Tensor mean_rest, Tensor target, Tensor history,
    OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask, std::vector<Tensor> weights,
    std::vector<Tensor> biases, std::vector<Tensor> slopes, int64_t activation, double dropout,
    OptionalTensor seed, int64_t pad_to);

}  // namespace mixpol::cpu
