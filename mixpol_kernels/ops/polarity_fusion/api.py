"""The public function `polarity_fusion`: validation and choice of implementation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mixpol_kernels import backend as backends
from mixpol_kernels.autocast import under_autocast
from mixpol_kernels.checks import check_float, checked
from mixpol_kernels.history import accepts_jagged, layout
from mixpol_kernels.ops.fusion import FusionParameters
from mixpol_kernels.ops.polarity_fusion import reference
from mixpol_kernels.ops.polarity_fusion.autograd import PolarityFusion
from mixpol_kernels.ops.polarity_fusion.triton import support


@accepts_jagged("tokens", "polarity", "extra_ids", returns_tokens=True)
@checked
@under_autocast(products=False)
def polarity_fusion(
    target: Tensor,
    tokens: Tensor,
    polarity: Tensor | None = None,
    polarity_table: Tensor | None = None,
    *,
    fusion: str = "tapf",
    gate: Sequence[Tensor] = (),
    sign: Tensor | None = None,
    extra_ids: Tensor | None = None,
    extra_table: Tensor | None = None,
    offsets: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Marks history tokens with their polarity, for backbones that need the tokens themselves.

    With s the polarity row of token x and t its user's target:

        none   x' = x
        bias   x' = x + P[s]
        tapf   g = σ(W_g (x * t) + b_g),  x' = x + P[s] + sign_s · g * (W_t t)

    With W_g [D, 3 D] the gate sees token and target too: g = σ(W_g [x ; t ; x * t] + b_g). With an extra table E,
    of recency buckets or positions say, "bias" and "tapf" also add E[r] to x', r the token's entry of `extra_ids`.

    TAPF is Target-Aware Polarity Fusion of "Beyond Positive Signals" (arXiv 2606.15252). The paper's formula is
    not public: this is our reading of its description in words, a gate from the product of target and token,
    then a signed residual that moves positives towards the target and negatives away. The compiled [D, 3 D] form
    adds the blocks of W_g that meet x, so an infinite token can give 0 or 1 where the concatenated form gives NaN.

    Under `torch.autocast` the op takes its dtype on a GPU, where kernels multiply in it, and float32 on a CPU: inputs
    are cast, and the result has the dtype computed in.

    Args:
        target: [B, D].
        tokens: [N, D] with `offsets`, or [B, L, D] with `lengths`, `mask` or neither. Any strides. Or jagged, a nested
            tensor or a TorchRec JaggedTensor, as `polarity` and `extra_ids` may be then.
        polarity: [N] or [B, L], integer rows of `polarity_table` (uint8 ... int64); unused with "none".
        polarity_table: [P, D]; by convention row 0 is negative and row 1 positive; unused with "none".
        fusion: "none", "bias" or "tapf".
        gate: for "tapf", (W_g [D, D] or [D, 3 D], b_g [D], W_t [D, D]).
        sign: for "tapf", [P], any values, 0 included; default -1 for row 0 and +1 for the others. No gradient.
        extra_ids: like `polarity`, rows of `extra_table`.
        extra_table: [R, D]; None without one. Not with "none". Meant for small tables: the backward sums the whole
            table's gradient once per block of users. Of a pass of `mixed_polarity_attention`, forward and backward
            (B = 256, D = 64, L = 200), R = 64 took 4 to 6 % more and R = 1000 7 to 10 %.
        offsets: [B + 1] int32 or int64; user b owns tokens offsets[b] ... offsets[b + 1] - 1.
        lengths: [B] int32 or int64; the first lengths[b] positions are kept.
        mask: [B, L]; nonzero positions are kept, on any side.
        backend: "auto", "cpu" (compiled, float32), "triton" (on a GPU; float32, bfloat16 and float16; products of
            float32 are as in `target_attention`; offsets and lengths are clamped there, not checked, and a bad id is an
            error later: `check_device_errors`), "cuda" (compiled, forward only, float32) or "reference" (plain
            PyTorch).

    Returns:
        The fused tokens, with the shape and dtype of `tokens`, nested if they are; pads are zeros (with "none",
        `tokens` itself).

    Raises:
        ValueError: contradicting or misshapen arguments, or a backend that cannot take them.
        TypeError: wrong dtypes.
        RuntimeError: a polarity or extra id outside its table, offsets or lengths out of range. Nothing is computed.

    Example:
        >>> import torch, mixpol_kernels as mk
        >>> target, tokens, polarity = torch.randn(2, 8), torch.randn(2, 5, 8), torch.randint(2, (2, 5))
        >>> mk.polarity_fusion(target, tokens, polarity, torch.randn(2, 8), fusion="bias").shape
        torch.Size([2, 5, 8])
    """
    if target.dim() != 2:
        raise ValueError(f"target has shape {list(target.shape)}; expected [B, D], one target a user")
    check_float(target, "target", tokens=tokens)
    where = layout(tokens, target.shape[0], name="tokens", trailing=1, offsets=offsets, lengths=lengths, mask=mask)
    if tokens.shape[-1] != target.shape[-1]:
        raise ValueError(f"tokens are {tokens.shape[-1]} wide and target {target.shape[-1]}; expected the same D")
    parameters = FusionParameters(fusion, polarity_table, gate, sign, extra_table)
    signs = parameters.check(target, polarity, extra_ids, where.token_shape)
    inputs = () if fusion == "none" else (target, tokens, polarity_table, extra_table, *gate)
    chosen = backends.choose(
        "polarity_fusion",
        backend,
        target,
        lambda backend: signs.nbytes if backend == "cpu" and parameters.makes_signs and fusion != "none" else 0,
        inputs,
        triton=lambda: "" if fusion == "none" else support.refusal(target, polarity_table, extra_table, bool(gate)),
        cuda=lambda: "" if fusion == "none" else backends.beyond_chip(target.shape[-1]),
    )
    if polarity is None or polarity_table is None or fusion == "none":
        return tokens
    if chosen == "reference":
        user, keep = where.assignment(
            target.device, polarity=(polarity, polarity_table), extra_ids=(extra_ids, extra_table)
        )
        fused = reference.polarity_fusion(
            target[:, None, :], tokens.flatten(0, -2), polarity.reshape(-1), user, keep, polarity_table, signs,
            (gate[0], gate[1], gate[2]) if gate else None,
            None if extra_ids is None else extra_ids.reshape(-1), extra_table,
        )  # fmt: skip
        return fused.reshape(tokens.shape)
    out: Tensor = PolarityFusion.apply(
        chosen, target, tokens, polarity, polarity_table, signs, extra_ids, extra_table,
        where.offsets, where.lengths, where.mask, *gate,
    )  # fmt: skip
    return out
