// The merge by time of two jagged lists a user: the launcher, and the merge itself, which is scalar code.
#pragma once

#include <tuple>

#include "cpu/launch.h"

namespace mixpol::cpu {

// Source places, polarity, offsets; see mixpol_kernels/ops/interleave/api.py.
std::tuple<Tensor, Tensor, Tensor> interleave(Tensor positive_times, Tensor positive_offsets,
                                              Tensor negative_times, Tensor negative_offsets,
                                              std::optional<int64_t> budget,
                                              std::optional<int64_t> n_negative);

}  // namespace mixpol::cpu
