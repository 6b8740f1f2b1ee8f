// The operations that csrc/math asks for, on one float of a CUDA thread.
#pragma once

#include <cmath>

#include "cuda/args.cuh"

namespace mixpol::cuda {

struct Scalar {
    static __device__ __forceinline__ float exp(float x) { return expf(x); }
    static __device__ __forceinline__ float exp_between(float x) { return expf(x); }
    static __device__ __forceinline__ float relu(float x) { return x <= 0.0f ? 0.0f : x; }
    static __device__ __forceinline__ float abs(float x) { return fabsf(x); }
    static __device__ __forceinline__ float copysign(float size, float sign) { return copysignf(size, sign); }
    static __device__ __forceinline__ float where_positive(float x, float a, float b) {
        return x <= 0.0f ? b : a;
    }
    static __device__ __forceinline__ float where_below(float x, float limit, float a, float b) {
        return x < limit ? a : b;
    }
};

// The parameters of unit `column`, from [parameter_rows][columns].
template <Activation A>
__device__ __forceinline__ math::UnitParameters<float> unit_parameters(const float* slope, int columns,
                                                                       int column) {
    math::UnitParameters<float> unit{};
    if constexpr (parameter_rows(A) > 0) unit.slope = __ldg(slope + column);
    if constexpr (parameter_rows(A) > 1) {
        unit.scale = __ldg(slope + columns + column);
        unit.shift = __ldg(slope + 2 * columns + column);
    }
    return unit;
}

}  // namespace mixpol::cuda
