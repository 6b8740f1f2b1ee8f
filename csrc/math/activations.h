// Activations and their derivatives, shared by the CPU and CUDA kernels. T is float or a vector of floats
// with
// +, -, *, /; Ops has its exp(x), relu(x) and where_positive(x, a, b): b where x <= 0, else a (NaN takes a).
#pragma once

#if defined(__CUDACC__)
#define MIXPOL_HD __host__ __device__ __forceinline__
#else
#define MIXPOL_HD static inline __attribute__((always_inline))
#endif

namespace mixpol {

enum class Activation : int { relu = 0, prelu = 1, sigmoid = 2, silu = 3 };
enum class Normalize : int { none = 0, softmax = 1 };

namespace math {

template <class Ops, class T>
MIXPOL_HD T sigmoid(T x) {
    return 1.0f / (1.0f + Ops::exp(-x));
}

// a(x); `slope` is read by prelu only.
template <Activation A, class Ops, class T>
MIXPOL_HD T activate(T x, T slope) {
    if constexpr (A == Activation::relu) return Ops::relu(x);
    if constexpr (A == Activation::prelu) return Ops::where_positive(x, x, slope * x);
    if constexpr (A == Activation::sigmoid) return sigmoid<Ops>(x);
    if constexpr (A == Activation::silu) return x * sigmoid<Ops>(x);
}

// a'(x).
template <Activation A, class Ops, class T>
MIXPOL_HD T derivative(T x, T slope) {
    if constexpr (A == Activation::relu) return Ops::where_positive(x, T{} + 1.0f, T{});
    if constexpr (A == Activation::prelu) return Ops::where_positive(x, T{} + 1.0f, slope);
    if constexpr (A == Activation::sigmoid) {
        T p = sigmoid<Ops>(x);
        return p * (1.0f - p);
    }
    if constexpr (A == Activation::silu) {
        T p = sigmoid<Ops>(x);
        return p * (1.0f + x * (1.0f - p));
    }
}

}  // namespace math
}  // namespace mixpol
