// Which hidden units dropout sets to zero: a function of the seed, the target's row (user * M + candidate),
// the token's place among its user's tokens, the layer and the unit. Nothing is stored, and neither threads
// nor the layout change it. T is uint32_t or a vector of them.
// mixpol_kernels/ops/target_attention/reference.py has the same in torch.
#pragma once

#include <cstdint>

#include "math/host_device.h"

namespace mixpol::math {

// "lowbias32", a bijection of 32 bits (C. Wellons, github.com/skeeto/hash-prospector, public domain).
template <class T>
MIXPOL_HD T mix(T x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x;
}

constexpr uint32_t UNIT_STEP = 0x9e3779b9u;  // 2^32 / golden ratio
constexpr int DROPOUT_BITS = 24;             // resolution of the probability

MIXPOL_HD uint32_t dropout_call(uint64_t seed) {
    return mix(mix(static_cast<uint32_t>(seed) ^ UNIT_STEP) ^ static_cast<uint32_t>(seed >> 32));
}

MIXPOL_HD uint32_t dropout_token(uint32_t call, int64_t row, int64_t position) {
    return mix(mix(call ^ static_cast<uint32_t>(row)) ^ static_cast<uint32_t>(position));
}

MIXPOL_HD uint32_t dropout_layer(uint32_t token, int layer) {
    return mix(token ^ static_cast<uint32_t>(layer));
}

// `at`: a layer's key plus unit * UNIT_STEP. The unit is dropped where this is below p * 2^DROPOUT_BITS.
template <class T>
MIXPOL_HD T dropout_bits(T at) {
    return mix(at) >> (32 - DROPOUT_BITS);
}

}  // namespace mixpol::math
