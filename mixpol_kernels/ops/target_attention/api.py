"""The public function `target_attention`: validation and choice of implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mixpol_kernels import backend as backends
from mixpol_kernels.autocast import in_float32
from mixpol_kernels.checks import check_choice, check_float, check_shape, checked
from mixpol_kernels.history import accepts_jagged, layout
from mixpol_kernels.ops.target_attention import reference
from mixpol_kernels.ops.target_attention.autograd import (
    ACTIVATIONS,
    NORMALIZERS,
    TargetAttention,
    keeps_bits,
    ops,
    with_candidates,
)
from mixpol_kernels.ops.target_attention.dropout import check_dropout, draw_seed
from mixpol_kernels.ops.target_attention.triton import support

BLOCKS = ("t", "x", "t-x", "t*x")
PUBLIC_ACTIVATIONS = (*ACTIVATIONS, "leaky_relu")


@accepts_jagged("history")
@checked
@in_float32
def target_attention(
    target: Tensor,
    history: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    activation: str = "relu",
    slopes: Sequence[Tensor] = (),
    negative_slope: float = 0.01,
    normalize: str = "none",
    scale: float = 1.0,
    blocks: Sequence[str] = BLOCKS,
    dropout: float = 0.0,
    seed: Tensor | int | None = None,
    offsets: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    return_weights: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """DIN target attention: scores every history token against its user's target and pools the tokens.

    For token x and target t, with hidden layers (W_i, b_i), output layer (w_o, b_o) and activation a:

        h_1 = a(W_1 [t ; x ; t - x ; t * x] + b_1),  h_i = a(W_i h_(i-1) + b_i),  s = w_o · h_last + b_o

    and pooled = Σ w_l x_l with w = s, σ(s), or softmax(s) over the user's tokens (Deep Interest Network,
    arXiv 1706.06978, section 4.3; block order as in its released code). The fused form never builds the
    4D-wide input: W_1 [t ; x ; t - x ; t * x] + b_1 = x · G(t) + c(t). It adds the blocks of W_1 that meet the same
    input, so an infinite entry of W_1 can give NaN where the concatenated form stays infinite.

    Under `torch.autocast` the op runs in float32: inputs of a lower precision are cast.

    Args:
        target: [B, D], or [B, M, D] when M candidates share each user's history.
        history: [N, D] with `offsets`, or [B, L, D] with `lengths`, `mask` or neither (every position kept).
            Any strides. Or jagged: a nested tensor [B, *, D] of layout torch.jagged, or a TorchRec JaggedTensor.
        weights: one to three hidden layers [H_1, 4 D], [H_2, H_1], ..., then the output layer [1, H_last].
        biases: [H_1], ..., [1], one per weight.
        activation: "relu", "prelu", "leaky_relu", "sigmoid", "silu", "tanh", "gelu" (exact), "dice":
            x * (p + α (1 - p)) with p = σ(n(x)), n(x) = scale * x + shift (the same paper, equation 3), or "dice_row":
            the same with n(x_j) = (x_j - m) / √(Σ_k ((x_k - m)² + ε_k)), m the mean over the H_i units of one token
            (torch-rechub's Dice, `basic/activation.py`, with ε = 1e-3 and one α for all units).
        slopes: for "prelu", one [H_i] tensor per hidden layer; for "dice", one [3, H_i]: α, scale and shift; for
            "dice_row", one [2, H_i]: α and ε.
        negative_slope: of "leaky_relu".
        normalize: "none", "softmax", or "sigmoid" (w = σ(s)).
        scale: multiplies the scores before they are normalised; 1 / √D is usual beside softmax.
        blocks: what the first layer's inputs are, in order: any of "t", "x", "t-x", "t*x", each once. weights[0]
            is then [H_1, len(blocks) D].
        dropout: probability that a hidden unit is set to 0 behind its activation; the others are divided by
            1 - dropout. Which ones follows from the seed and from where the token is: its target's row in the batch,
            its place among the user's tokens, layer and unit. So nothing is kept for the backward, any layout drops
            the same, and the same user in another row of the batch drops others.
        seed: int64 (one value on the CPU, or a number), for `dropout`. None draws one from torch's default generator.
        offsets: [B + 1] int32 or int64; user b owns tokens offsets[b] ... offsets[b + 1] - 1.
        lengths: [B] int32 or int64; the first lengths[b] positions are kept.
        mask: [B, L]; nonzero positions are kept, on any side.
        return_weights: also return the attention weights; they have a gradient too.
        backend: "auto", "cpu" (compiled; float32, or bfloat16 and float16 computed in float32; with AVX512-BF16 the
            operands of bfloat16's products are rounded to it, sums are float32), "triton" (on a GPU, the same dtypes;
            products of bfloat16 and float16 operands are summed in float32, those of float32 are IEEE or,
            after `torch.set_float32_matmul_precision("high")`, may be split into three TensorFloat32 products), "cuda"
            (compiled, forward only, float32; "auto" takes it where nothing needs a gradient) or "reference" (plain
            PyTorch). On a GPU offsets and lengths are not checked, which would wait for the device,
            but clamped to the history: nothing out of bounds is read.

    Returns:
        pooled with the shape and dtype of `target`; an empty history gives zeros. With `return_weights`
        also the weights w, [N] or [B, L], with a last dimension M if the target has one; pads are 0.

    Raises:
        ValueError: contradicting or misshapen arguments, or a backend that cannot take them.
        TypeError: wrong dtypes.
        RuntimeError: offsets or lengths out of range. Nothing is computed.

    Example:
        >>> import torch, mixpol_kernels as mk
        >>> target, history = torch.randn(2, 8), torch.randn(2, 5, 8)
        >>> weights, biases = [torch.randn(16, 32), torch.randn(1, 16)], [torch.zeros(16), torch.zeros(1)]
        >>> mk.target_attention(target, history, weights, biases, lengths=torch.tensor([5, 2])).shape
        torch.Size([2, 8])
    """
    if target.dim() not in (2, 3):
        raise ValueError(f"target has shape {list(target.shape)}; expected [B, D] or [B, M, D]")
    check_float(target, "target", history=history)
    given_parameters = (*weights, *biases, *slopes)
    weights, biases, slopes, activation = canonical_unit(
        target.shape[-1], weights, biases, slopes, activation, negative_slope, scale, blocks
    )
    check_activation_unit(target, weights, biases, slopes, activation, normalize)
    given_seed, seed = seed, check_dropout(dropout, seed)
    where = layout(history, target.shape[0], name="history", trailing=1, offsets=offsets, lengths=lengths, mask=mask)
    if history.shape[-1] != target.shape[-1]:
        raise ValueError(f"history is {history.shape[-1]} wide and target {target.shape[-1]}; expected the same D")
    candidates = target.shape[1] if target.dim() == 3 else 1
    act, norm = ACTIVATIONS.index(activation), NORMALIZERS.index(normalize)
    parameters = (*weights, *biases, *slopes)
    inputs = (target, history, *parameters)
    gradient = backends.needs_grad(*inputs)
    chosen = backends.choose(
        "target_attention",
        backend,
        target,
        lambda: (
            saved_bytes(candidates, where.token_shape, weights, act, dropout, seed, given_seed)
            + backends.new_bytes(parameters, given_parameters)
        ),
        backends.STORED,
        lambda: support.refusal(target, weights, activation, dropout),
        lambda: 4 * math.prod(where.token_shape) * candidates + backends.new_bytes(parameters, given_parameters),
        lambda: cuda_refusal(target, weights, activation, dropout, gradient),
        inputs,
    )
    if dropout and seed is None:
        seed = draw_seed()
    triton = chosen == "triton"
    bits = chosen == "cpu" and keeps_bits(act, weights, dropout)
    if chosen == "reference":
        if not torch.compiler.is_compiling():
            where.check_values()
        user, keep = where.assignment()
        pooled, attention = reference.target_attention(
            with_candidates(target), history.flatten(0, -2), user.to(target.device), keep,
            weights, biases, slopes, activation, normalize, dropout, seed,
        )  # fmt: skip
        pooled = pooled.view(target.shape)
        attention = attention.reshape(*where.token_shape, candidates)
    elif gradient:
        found: Tensor | tuple[Tensor, Tensor] = TargetAttention.apply(
            target, history, where.offsets, where.lengths, where.mask, seed,
            (act, norm, dropout, len(weights), bits, return_weights, triton), *weights, *biases, *slopes,
        )  # fmt: skip
        if isinstance(found, Tensor):
            return found
        pooled, attention = found
    else:
        pooled, attention, _ = ops(triton)[0](
            target, history, *where.canonical(), weights, biases, slopes or None, act, norm, dropout, seed,
            return_weights, False,
        )  # fmt: skip
    if not return_weights:
        return pooled
    attention = attention.to(target.dtype)  # kept in float32 for the backward
    return pooled, attention[..., 0] if target.dim() == 2 else attention


def canonical_unit(
    width: int,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slopes: Sequence[Tensor],
    activation: str,
    negative_slope: float,
    scale: float,
    blocks: Sequence[str],
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], str]:
    """The unit as the ops know it: four blocks in the usual order, the scale in the output layer, leaky_relu as prelu.

    Done on the parameters, which are small, so that no kernel has to know these options.
    """
    check_choice("activation", activation, PUBLIC_ACTIVATIONS)
    if activation != "leaky_relu" and scale == 1.0 and tuple(blocks) == BLOCKS:
        return weights, biases, slopes, activation
    if not weights:
        raise ValueError("weights has 0 entries; expected hidden layers and then the output layer")
    if len(biases) != len(weights):
        raise ValueError(f"biases has {len(biases)} entries and weights {len(weights)}; expected one bias per weight")
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):  # products would make floats of integers
        check_float(weights[0], "weights[0]", **{f"weights[{i}]": weight, f"biases[{i}]": bias})
    if activation == "leaky_relu":
        if len(slopes):
            raise ValueError(f"slopes has {len(slopes)} entries; leaky_relu takes none, but negative_slope")
        dtype = weights[0].dtype
        if math.isfinite(negative_slope) and abs(negative_slope) > torch.finfo(dtype).max:
            raise ValueError(f"negative_slope was {negative_slope}; expected a number that {dtype} can hold")
        slopes = [weight.new_full(weight.shape[:1], negative_slope) for weight in weights[:-1]]
        activation = "prelu"
    if tuple(blocks) != BLOCKS:
        if not blocks or len(set(blocks)) != len(blocks) or not set(blocks) <= set(BLOCKS):
            raise ValueError(f"blocks was {tuple(blocks)}; expected some of {', '.join(map(repr, BLOCKS))}, each once")
        check_shape("weights[0]", weights[0], (*weights[0].shape[:1], len(blocks) * width), "units, one D per block")
        given = dict(zip(blocks, weights[0].split(width, dim=1), strict=True))
        absent = weights[0].new_zeros(weights[0].shape[0], width)
        weights = [torch.cat([given.get(block, absent) for block in BLOCKS], dim=1), *weights[1:]]
    if scale != 1.0:
        weights, biases = [*weights[:-1], weights[-1] * scale], [*biases[:-1], biases[-1] * scale]
    return weights, biases, slopes, activation


def cuda_refusal(target: Tensor, weights: Sequence[Tensor], activation: str, dropout: float, gradient: bool) -> str:
    """Why the compiled CUDA forwards cannot take this unit; empty if they can."""
    if activation == "dice_row":
        return "it has no activation 'dice_row'; use backend='reference'"
    if dropout:
        return f"it has no dropout and got {dropout}; use backend='reference'"
    sizes = (target.shape[-1], *(weight.shape[0] for weight in weights[:-1]))
    return backends.cuda_refusal(target, gradient, sizes)


def saved_bytes(
    candidates: int,
    token_shape: tuple[int, ...],
    weights: Sequence[Tensor],
    activation: int,
    dropout: float,
    seed: Tensor | int | None,
    given_seed: Tensor | int | None,
) -> int:
    """Bytes that the fused form keeps for backward beyond its inputs; `seed` is what the op takes, None to draw one."""
    bits = (weights[-2].shape[0] + 7) // 8 if keeps_bits(activation, weights, dropout) else 0
    return math.prod(token_shape) * candidates * (4 + bits) + (
        8 if dropout and (seed is None or seed is not given_seed) else 0
    )


def check_activation_unit(
    target: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slopes: Sequence[Tensor],
    activation: str,
    normalize: str,
) -> None:
    """Validates the layers of an activation unit against a target [..., D]."""
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("normalize", normalize, NORMALIZERS)
    layers = len(weights)
    if not 2 <= layers <= 4:
        raise ValueError(f"weights has {layers} entries; expected one to three hidden layers and then the output layer")
    check_layers(target, weights, biases, slopes, activation, layers - 1, 1)


def check_layers(
    target: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slopes: Sequence[Tensor],
    activation: str,
    activated: int,
    outputs: int | None,
) -> None:
    """Validates a chain of layers, `activated` of them with an activation; `outputs`: the last one's width, or None."""
    layers = len(weights)
    if len(biases) != layers:
        raise ValueError(f"biases has {len(biases)} entries and weights {layers}; expected one bias per weight")
    rows = {"prelu": (), "dice": (3,), "dice_row": (2,)}.get(activation)
    expected = 0 if rows is None else activated
    if len(slopes) != expected:
        raise ValueError(f"slopes has {len(slopes)} entries; activation={activation!r} expects {expected}")
    width, dtype, device = 4 * target.shape[-1], target.dtype, target.device
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if not weight.numel() and weight.dim() == 2 and not weight.shape[0]:
            raise ValueError(f"weights[{i}] has shape {list(weight.shape)}; expected at least one unit")
        out = outputs if outputs and i == layers - 1 else weight.shape[0] if weight.dim() == 2 else -1
        group = (weight, bias, slopes[i]) if i < len(slopes) else (weight, bias)
        for tensor in group:  # messages are made only when something is wrong: this runs in every call
            if tensor.dtype != dtype or tensor.device != device:
                names = (f"weights[{i}]", f"biases[{i}]", f"slopes[{i}]")
                check_float(target, "target", **dict(zip(names, group, strict=False)))
            shape = (out, width) if tensor is weight else (out,) if tensor is bias else (*(rows or ()), out)
            if tensor.shape != shape:
                check_shape(f"weights[{i}]", weight, (out, width), "units, inputs; the first layer has 4 D")
                check_shape(f"biases[{i}]", bias, (out,), "one per unit")
                words = {"dice": "alpha, scale and shift", "dice_row": "alpha and epsilon"}.get(
                    activation, "one per unit"
                )
                check_shape(f"slopes[{i}]", tensor, shape, words)
        width = out
