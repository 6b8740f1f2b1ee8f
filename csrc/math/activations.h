// Activations and their derivatives, shared by the CPU and CUDA kernels. T is float or a vector of floats
// with
// +, -, *, /; Ops has its exp(x), exp_between(x): the same where exp(x) is between 2^-125 and 2^127, else
// anything from 0 to 2^-125 and from 2^127 to inf (NaN stays NaN), relu(x), abs(x), copysign(size, sign),
// where_positive(x, a, b): b where x <= 0, else a (NaN takes a), and where_below(x, limit, a, b): a where x <
// limit, else b (NaN takes b).
#pragma once

#include "math/host_device.h"

namespace mixpol {

// Every activation, in the order of its code, which is that of mixpol_kernels/ops/unit.py's ACTIVATIONS.
#define MIXPOL_ACTIVATIONS(X) X(relu) X(prelu) X(sigmoid) X(silu) X(tanh) X(gelu) X(dice) X(dice_row)

#define MIXPOL_NAME(name) name,
enum class Activation : int { MIXPOL_ACTIVATIONS(MIXPOL_NAME) };
#undef MIXPOL_NAME
#define MIXPOL_ONE(name) +1
constexpr int ACTIVATION_COUNT = MIXPOL_ACTIVATIONS(MIXPOL_ONE);
#undef MIXPOL_ONE

enum class Normalize : int { none = 0, softmax = 1, sigmoid = 2 };
constexpr int NORMALIZE_COUNT = 3;

// Rows of parameters per unit: prelu's slope; Dice's alpha, and scale and shift of n(x) = scale * x + shift;
// per-row Dice's alpha, and what the unit adds to the sum under the root.
MIXPOL_BOTH constexpr int parameter_rows(Activation a) {
    return a == Activation::dice ? 3 : a == Activation::dice_row ? 2 : a == Activation::prelu ? 1 : 0;
}

// Whether a unit's output depends on the other units of its token.
MIXPOL_BOTH constexpr bool row_wise(Activation a) { return a == Activation::dice_row; }

namespace math {

template <class T>
struct UnitParameters {
    T slope, scale, shift;
};

template <class Ops, class T>
MIXPOL_HD T sigmoid(T x) {
    return 1.0f / (1.0f + Ops::exp_between(-x));
}

// Cephes tanhf: an odd polynomial where 1 - 2 / (exp(2x) + 1) would cancel.
template <class Ops, class T>
MIXPOL_HD T tanh(T x) {
    T size = Ops::abs(x), square = x * x;
    T p = T{} - 5.70498872745e-3f;
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    T small = p * square * x + x;
    T large = Ops::copysign(1.0f - 2.0f / (Ops::exp(size + size) + 1.0f), x);
    return Ops::where_below(size, 0.625f, small, large);
}

// erf to about 1 ulp in two ranges; minimax coefficients as published by N. Juffa (stackoverflow.com,
// question 35148198).
template <class Ops, class T>
MIXPOL_HD T erf(T x) {
    T size = Ops::abs(x), square = x * x;
    T r = T{} - 5.96761703e-4f;
    r = r * square + 4.99119423e-3f;
    r = r * square - 2.67681349e-2f;
    r = r * square + 1.12819925e-1f;
    r = r * square - 3.76125336e-1f;
    r = r * square + 1.28379166e-1f;
    T small = r * x + x;
    T q = size * -1.72853470e-5f + 3.83197126e-4f;
    q = q * square + (size * -3.88396438e-3f + 2.42546219e-2f);
    q = q * size - 1.06777877e-1f;
    q = q * size - 6.34846687e-1f;
    q = q * size - 1.28717512e-1f;
    T large = Ops::copysign(1.0f - Ops::exp(q * size - size), x);
    return Ops::where_below(size, 0.927734375f, small, large);
}

// Φ(x), the normal distribution function.
template <class Ops, class T>
MIXPOL_HD T normal_cdf(T x) {
    return 0.5f * (1.0f + erf<Ops>(x * 0.70710678118654752f));
}

// Dice (Deep Interest Network, arXiv 1706.06978, equation 3): x * (p + alpha * (1 - p)), p = σ(n(x)).
template <class Ops, class T>
MIXPOL_HD T dice(T x, T n, T alpha) {
    T p = sigmoid<Ops>(n);
    return x * (p + alpha * (1.0f - p));
}

// Its derivatives by x at fixed n, by n, and by alpha.
template <class T>
struct DiceDerivatives {
    T x, n, alpha;
};

template <class Ops, class T>
MIXPOL_HD DiceDerivatives<T> dice_derivatives(T x, T n, T alpha) {
    T p = sigmoid<Ops>(n), off = 1.0f - p;
    return {p + alpha * off, x * (1.0f - alpha) * p * off, off * x};
}

// a(x), of those that are not row-wise.
template <Activation A, class Ops, class T>
MIXPOL_HD T activate(T x, const UnitParameters<T>& unit) {
    if constexpr (A == Activation::relu) return Ops::relu(x);
    if constexpr (A == Activation::prelu) return Ops::where_positive(x, x, unit.slope * x);
    if constexpr (A == Activation::sigmoid) return sigmoid<Ops>(x);
    if constexpr (A == Activation::silu) return x * sigmoid<Ops>(x);
    if constexpr (A == Activation::tanh) return tanh<Ops>(x);
    if constexpr (A == Activation::gelu) return x * normal_cdf<Ops>(x);
    if constexpr (A == Activation::dice) return dice<Ops>(x, x * unit.scale + unit.shift, unit.slope);
}

// What one pre-activation gives to the backward: a'(x), and the derivatives of a(x) by the unit's parameters.
template <class T>
struct Derivatives {
    T x, slope, scale, shift;
};

template <Activation A, class Ops, class T>
MIXPOL_HD Derivatives<T> derivatives(T x, const UnitParameters<T>& unit) {
    Derivatives<T> d{};
    if constexpr (A == Activation::relu) d.x = Ops::where_positive(x, T{} + 1.0f, T{});
    if constexpr (A == Activation::prelu) {
        d.x = Ops::where_positive(x, T{} + 1.0f, unit.slope);
        d.slope = Ops::where_positive(x, T{}, x);
    }
    if constexpr (A == Activation::sigmoid) {
        T p = sigmoid<Ops>(x);
        d.x = p * (1.0f - p);
    }
    if constexpr (A == Activation::silu) {
        T p = sigmoid<Ops>(x);
        d.x = p * (1.0f + x * (1.0f - p));
    }
    if constexpr (A == Activation::tanh) {
        T y = tanh<Ops>(x);
        d.x = 1.0f - y * y;
    }
    if constexpr (A == Activation::gelu)
        d.x = normal_cdf<Ops>(x) + x * 0.39894228040143268f * Ops::exp(x * x * -0.5f);
    if constexpr (A == Activation::dice) {
        const DiceDerivatives<T> by = dice_derivatives<Ops>(x, x * unit.scale + unit.shift, unit.slope);
        d.slope = by.alpha;
        d.shift = by.n;
        d.scale = by.n * x;
        d.x = by.x + by.n * unit.scale;
    }
    return d;
}

}  // namespace math
}  // namespace mixpol
