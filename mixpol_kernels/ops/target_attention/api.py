"""The public function `target_attention`: validation and choice of implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from mixpol_kernels import backend as backends
from mixpol_kernels.autocast import under_autocast
from mixpol_kernels.checks import check_float, checked
from mixpol_kernels.history import accepts_jagged, layout
from mixpol_kernels.ops.target_attention import reference
from mixpol_kernels.ops.target_attention.autograd import FORWARD, TargetAttention
from mixpol_kernels.ops.target_attention.triton import support
from mixpol_kernels.ops.triton import devices
from mixpol_kernels.ops.unit import (
    BLOCKS,
    ActivationUnit,
    attention_result,
    check_dropout,
    check_target,
    draw_seed,
    with_candidates,
)


@accepts_jagged("history")
@checked
@under_autocast()
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

    Under `torch.autocast` the op takes its dtype where a kernel multiplies in it (on a GPU; bfloat16 on a CPU with
    AVX512-BF16), else float32: inputs are cast, and the result has the autocast dtype, as `nn.Linear`'s.

    Args:
        target: [B, D], or [B, M, D] when M candidates share each user's history.
        history: [N, D] with `offsets`, or [B, L, D] with `lengths`, `mask` or neither (every position kept).
            Any strides. Or jagged: a nested tensor [B, *, D] of layout torch.jagged, or a TorchRec JaggedTensor.
        weights: one to three hidden layers [H_1, 4 D], [H_2, H_1], ..., then the output layer [1, H_last].
        biases: [H_1], ..., [1], one per weight.
        activation: of the hidden layers; `ActivationUnit` lists them. "dice" is
            x * (p + α (1 - p)) with p = σ(n(x)), n(x) = scale * x + shift (the same paper, equation 3), and "dice_row"
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
            products of bfloat16 and float16 operands are summed in float32, those of float32 are IEEE or split into
            three TensorFloat32 products, which keep float32's error budget), "cuda" (compiled, forward only, float32;
            "auto" takes it where nothing needs a gradient) or "reference" (plain PyTorch). On a GPU offsets
            and lengths are not checked, which would wait for the device, but clamped to the history: nothing out of
            bounds is read.

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
    check_target(target)
    check_float(target, "target", history=history)
    given = ActivationUnit(weights, biases, activation, slopes, negative_slope, normalize, scale, blocks, dropout)
    unit = given.canonical(target.shape[-1])
    unit.check(target)
    given_seed, seed = seed, check_dropout(dropout, seed)
    where = layout(history, target.shape[0], name="history", trailing=1, offsets=offsets, lengths=lengths, mask=mask)
    if history.shape[-1] != target.shape[-1]:
        raise ValueError(f"history is {history.shape[-1]} wide and target {target.shape[-1]}; expected the same D")
    candidates = target.shape[1] if target.dim() == 3 else 1
    parameters = unit.parameters
    inputs = (target, history, *parameters)
    gradient = backends.needs_grad(*inputs)

    def saved(backend: str) -> int:
        tokens = math.prod(where.token_shape) * candidates
        kept = unit.saved_bytes(tokens, seed is None or seed is not given_seed) if backend == "cpu" else 4 * tokens
        return kept + backends.new_bytes(parameters, given.parameters)

    chosen = backends.choose(
        "target_attention",
        backend,
        target,
        saved,
        inputs,
        devices.float32_products,
        triton=lambda: support.refusal(target),
        cuda=lambda: unit.cuda_refusal(target),
    )
    if dropout and seed is None:
        seed = draw_seed()
    act, norm, _ = unit.codes
    if chosen == "reference":
        user, keep = where.assignment(target.device)
        pooled, attention = reference.target_attention(
            with_candidates(target), history.flatten(0, -2), user, keep,
            unit.weights, unit.biases, unit.slopes, unit.activation, normalize, dropout, seed,
        )  # fmt: skip
        pooled, attention = pooled.view(target.shape), attention.reshape(*where.token_shape, candidates)
    elif gradient:
        config = (chosen, act, norm, dropout, len(weights), chosen == "cpu" and unit.keeps_bits, return_weights)
        found: Tensor | tuple[Tensor, Tensor] = TargetAttention.apply(
            config, target, history, where.offsets, where.lengths, where.mask, seed, *parameters
        )
        if isinstance(found, Tensor):
            return found
        pooled, attention = found
    else:
        pooled, attention, _ = FORWARD.of(chosen)(
            target, history, *where.canonical(), unit.weights, unit.biases, unit.slopes or None, act, norm, dropout,
            seed, return_weights, False,
        )  # fmt: skip
    return attention_result(pooled, attention, target, return_weights)
