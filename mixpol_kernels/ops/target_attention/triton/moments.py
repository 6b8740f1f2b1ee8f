"""Launches of batch statistics of a layer's pre-activations, and of Dice in training, by the staged kernels.

Padded rows are counted exactly: a zero token behind each user's own counts as often as it is padded. Means come with
what their dtype rounds away (`rest`), from counts, means and squares that tiles of rows merge and one kernel adds.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from mixpol_kernels.history import Layout
from mixpol_kernels.library import INTERPRETING
from mixpol_kernels.ops.registry import Arguments
from mixpol_kernels.ops.target_attention.triton import launch, staged, support
from mixpol_kernels.ops.target_attention.triton import staged_kernels as kernels
from mixpol_kernels.ops.target_attention.triton.staged import DICE, End, Pass, Sums

MERGED_UNITS, MERGED_ROWS = 32, 8


def statistics_forward(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """`mixpol::unit_statistics_fwd`; what the mean's dtype rounds away is float32."""
    _check("unit_statistics", a)
    with torch.cuda.device_of(a.target):
        return _moments(Pass(a, len(a.weights), a.pad_to), a.target.dtype)


def statistics_backward(a: Arguments) -> tuple[Tensor, Tensor, list[Tensor]]:
    """`mixpol::unit_statistics_bwd`."""
    with torch.cuda.device_of(a.target):
        layers = Pass(a, len(a.weights), a.pad_to)
        upstream = _upstream(
            layers, a.pad_to, a.grad_mean.float(), a.grad_variance.float(), a.mean.float(), a.mean_rest
        )
        end = End(staged.MOMENTS, moments=upstream)
        sums = Sums(layers, out=False)
        grad_target, grad_history = staged.results(layers, a)
        for chunk in layers.chunks():
            found = layers.forward(chunk, backward=True, measured=True)
            layers.backward(chunk, *found, end, sums, grad_target, grad_history)
        rows = [slope.numel() // slope.shape[-1] for slope in a.slopes] or [0] * (len(layers.units) - 1)
        parts = [sums.of_layer(i, count) for i, count in enumerate([*rows, 0])]
        slopes = [slope for _, slope, _ in parts[:-1]] if a.slopes else []
        parameters = [*sums.weights(), *(bias for bias, _, _ in parts), *slopes]
    return staged.finished(a, grad_target, grad_history, parameters, [*a.weights, *a.biases, *a.slopes])


def dice_forward(a: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`mixpol::dice_attention_fwd`.

    Its slopes are [6, H] in float32: alpha, scale and shift of `target_attention`, then of the pre-activations the
    mean, what float32 rounds away of it, and 1 / √(variance + eps).
    """
    _check("dice_attention", a)
    with torch.cuda.device_of(a.target):
        layers = Pass(_unit(a, []), 1, a.pad_to)
        mean, variance, rest = _moments(layers, torch.float32)
        inverse = torch.rsqrt(variance + a.eps)
        scale = inverse if a.norm_weight is None else inverse * a.norm_weight.float()
        shift = -mean * scale
        if a.norm_bias is not None:
            shift = shift + a.norm_bias.float()
        slopes = torch.stack([a.alpha.float(), scale, shift, mean, rest, inverse])
    pooled, attention, _ = launch.forward(_unit(a, [slopes[:3]]).but(save_bits=False))
    return pooled, attention, mean.to(a.target.dtype), variance.to(a.target.dtype), slopes


def dice_backward(a: Arguments) -> tuple[Tensor, Tensor, list[Tensor]]:
    """`mixpol::dice_attention_bwd`: the gradients of the statistics need all tokens, then one sweep takes both."""
    launch.check_gradients(a)
    _, scale, _, mean, rest, inverse = a.slopes.unbind()
    with torch.cuda.device_of(a.target):
        layers = Pass(_unit(a, [a.slopes[:3]]), 1, a.pad_to)
        end = staged.from_weights(layers, a)
        first = Sums(layers, out=False, slopes_only=True)
        chunks = [*layers.chunks()]
        found: tuple[list[Tensor | None], list[Tensor | None]] = ([], [])
        for chunk in chunks:
            found = layers.forward(chunk, backward=True)
            layers.backward(chunk, *found, end, first, None, None)
        d_alpha, d_scale, d_shift = first.of_layer(0, 3)[1]
        d_scale = d_scale - d_shift * mean
        grad_variance = -0.5 * d_scale * scale * inverse * inverse
        end.kind = staged.WEIGHTS | staged.MOMENTS
        end.moments = _upstream(layers, a.pad_to, -d_shift * scale, grad_variance, mean, rest)
        sums = Sums(layers)
        grad_target, grad_history = staged.results(layers, a)
        for chunk in chunks:
            if len(chunks) > 1:
                found = layers.forward(chunk, backward=True)
            layers.backward(chunk, *found, end, sums, grad_target, grad_history)
        bias, _, output = sums.of_layer(0, 0)
        slopes = torch.stack([d_alpha, d_scale * inverse, d_shift])
        assert sums.scalars is not None
        parameters = [*sums.weights(), output, bias, staged.total(sums.scalars), slopes]
    return staged.finished(a, grad_target, grad_history, parameters, [*a.weights, *a.biases, slopes.to(a.target.dtype)])


def _unit(a: Arguments, slopes: list[Tensor]) -> Arguments:
    """The arguments of `target_attention`."""
    return a.but(slopes=slopes, activation=DICE, dropout=0.0, seed=None)


def _check(op: str, a: Arguments) -> None:
    if refusal := support.refusal(a.target):
        raise ValueError(f"{op}: the Triton kernels cannot run: {refusal}")
    if INTERPRETING:  # on a GPU a check would wait for the device: the kernels clamp instead
        Layout(a.target.shape[0], tuple(a.history.shape[:-1]), a.offsets, a.lengths, a.mask).check_values()


def _moments(layers: Pass, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of the last layer's pre-activations, and what `dtype` rounds away of the mean."""
    units = layers.units[-1]
    tiles = triton.cdiv(layers.most_rows(), layers.tiles.rows)
    new = layers.target.new_empty
    slabs = layers.target.new_zeros((max(tiles, 1), 3 * units), dtype=torch.float32)
    mean, variance, rest = new((units,), dtype=dtype), new((units,), dtype=dtype), new((units,), dtype=torch.float32)
    for chunk in layers.chunks():
        layers.forward(chunk, measured=True, statistics=slabs)
    kernels.merge_statistics[(triton.cdiv(units, MERGED_UNITS),)](
        slabs, mean, variance, rest, tiles, H=units, UNITS=MERGED_UNITS, ROWS=MERGED_ROWS, num_warps=4
    )
    return mean, variance, rest


def _upstream(
    layers: Pass, pad_to: int, grad_mean: Tensor, grad_variance: Tensor, mean: Tensor, rest: Tensor
) -> Tensor:
    """What `signal_kernel` takes as moments: u + v (· - mean - rest) of each row."""
    if pad_to < 0:
        rows = (layers.tokens.counts.sum() * layers.candidates).clamp(min=1).float()
    else:
        rows = torch.full_like(mean[0], max(layers.users * pad_to * layers.candidates, 1))
    return torch.stack([grad_mean / rows, 2 * grad_variance / rows, mean, rest])
