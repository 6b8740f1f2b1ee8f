"""Activations and their derivatives on a tile [tokens, units], for the Triton kernels.

ACT is an index into `autograd.ACTIVATIONS`: 0 relu, 1 prelu, 2 sigmoid, 3 silu, 4 tanh, 5 gelu, 6 dice. The formulas
are those of csrc/math/activations.h.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mixpol_kernels.ops.triton.shared import sigmoid


@triton.jit
def tanh(x):
    """Cephes tanhf: an odd polynomial where 1 - 2 / (exp(2x) + 1) would cancel."""
    size = tl.abs(x)
    square = x * x
    p = -5.70498872745e-3 * square + 2.06390887954e-2
    p = p * square - 5.37397155531e-2
    p = p * square + 1.33314422036e-1
    p = p * square - 3.33332819422e-1
    small = p * square * x + x
    large = 1.0 - 2.0 / (tl.exp(size + size) + 1.0)
    large = tl.where(x < 0, -large, large)
    return tl.where(size < 0.625, small, large)


@triton.jit
def normal_cdf(x):
    return 0.5 * (1.0 + tl.erf(x * 0.70710678118654752))


@triton.jit
def parameters(slopes, units, inside, COUNT: tl.constexpr, ACT: tl.constexpr):
    """Rows of a layer's slopes, 0 at pads: prelu's slope or dice's alpha, then dice's scale and shift."""
    first = tl.zeros_like(units).to(tl.float32)
    scale = first
    shift = first
    if ACT == 1:
        first = tl.load(slopes + units, mask=inside, other=0.0).to(tl.float32)
    if ACT == 6:
        first = tl.load(slopes + units, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(slopes + COUNT + units, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(slopes + 2 * COUNT + units, mask=inside, other=0.0).to(tl.float32)
    return first, scale, shift


@triton.jit
def activate(x, first, scale, shift, ACT: tl.constexpr):
    """a(x). `first`, `scale` and `shift` are what `parameters` returned."""
    if ACT == 0:
        y = tl.where(x <= 0, 0.0, x)  # NaN stays NaN
    elif ACT == 1:
        y = tl.where(x <= 0, first[None, :] * x, x)
    elif ACT == 2:
        y = sigmoid(x)
    elif ACT == 3:
        y = x * sigmoid(x)
    elif ACT == 4:
        y = tanh(x)
    elif ACT == 5:
        y = x * normal_cdf(x)
    else:
        p = sigmoid(x * scale[None, :] + shift[None, :])
        y = x * (p + first[None, :] * (1.0 - p))
    return y


@triton.jit
def derivative(x, first, scale, shift, ACT: tl.constexpr):
    """a'(x)."""
    if ACT == 0:
        y = tl.where(x <= 0, 0.0, 1.0)
    elif ACT == 1:
        y = tl.where(x <= 0, first[None, :] + tl.zeros_like(x), 1.0)
    elif ACT == 2:
        p = sigmoid(x)
        y = p * (1.0 - p)
    elif ACT == 3:
        p = sigmoid(x)
        y = p * (1.0 + x * (1.0 - p))
    elif ACT == 4:
        p = tanh(x)
        y = 1.0 - p * p
    elif ACT == 5:
        y = normal_cdf(x) + x * 0.39894228040143268 * tl.exp(x * x * -0.5)
    else:
        p = sigmoid(x * scale[None, :] + shift[None, :])
        off = 1.0 - p
        y = p + first[None, :] * off + x * (1.0 - first[None, :]) * p * off * scale[None, :]
    return y


@triton.jit
def parameter_gradients(grad, x, first, scale, shift, ACT: tl.constexpr):
    """What gradients of a(x) give to the units' parameters, summed over the tile's tokens: three [units]."""
    d_first = tl.zeros_like(first)
    d_scale = d_first
    d_shift = d_first
    if ACT == 1:
        d_first = tl.sum(tl.where(x <= 0, grad * x, 0.0), 0)
    if ACT == 6:
        p = sigmoid(x * scale[None, :] + shift[None, :])
        off = 1.0 - p
        d_first = tl.sum(grad * off * x, 0)
        through = grad * x * (1.0 - first[None, :]) * p * off
        d_shift = tl.sum(through, 0)
        d_scale = tl.sum(through * x, 0)
    return d_first, d_scale, d_shift
