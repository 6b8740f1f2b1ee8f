// Merging of positive and negative lists: the CUDA launcher.
#pragma once

#include <tuple>

#include "cuda/launch.h"

namespace mixpol::cuda {

// With a budget it waits for the device once: how many events stay is part of the result's shape.
std::tuple<Tensor, Tensor, Tensor> interleave(Tensor positive_times, Tensor positive_offsets,
                                              Tensor negative_times, Tensor negative_offsets,
                                              std::optional<int64_t> budget,
                                              std::optional<int64_t> n_negative);

}  // namespace mixpol::cuda
