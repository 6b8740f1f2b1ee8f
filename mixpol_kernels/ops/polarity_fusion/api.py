"""The public function `polarity_fusion`: validation and choice of implementation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixpol_kernels import backend as backends
from mixpol_kernels.autocast import in_float32
from mixpol_kernels.checks import check_choice, check_float, check_ids, check_range, check_shape
from mixpol_kernels.history import layout
from mixpol_kernels.ops.polarity_fusion import reference
from mixpol_kernels.ops.polarity_fusion.autograd import FUSIONS, PolarityFusion


@in_float32
def polarity_fusion(
    target: Tensor,
    tokens: Tensor,
    polarity: Tensor | None = None,
    polarity_table: Tensor | None = None,
    *,
    fusion: str = "tapf",
    gate: Sequence[Tensor] = (),
    sign: Tensor | None = None,
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

    TAPF is Target-Aware Polarity Fusion of "Beyond Positive Signals" (arXiv 2606.15252). The paper's formula is
    not public: this is our reading of its description in words, a gate from the product of target and token,
    then a signed residual that moves positives towards the target and negatives away.

    Under `torch.autocast` the op runs in float32: inputs of a lower precision are cast.

    Args:
        target: [B, D].
        tokens: [N, D] with `offsets`, or [B, L, D] with `lengths`, `mask` or neither. Any strides.
        polarity: [N] or [B, L], integer rows of `polarity_table` (uint8 ... int64); unused with "none".
        polarity_table: [P, D]; by convention row 0 is negative and row 1 positive; unused with "none".
        fusion: "none", "bias" or "tapf".
        gate: for "tapf", (W_g [D, D], b_g [D], W_t [D, D]).
        sign: for "tapf", [P]; default -1 for row 0 and +1 for the others. No gradient.
        offsets: [B + 1] int32 or int64; user b owns tokens offsets[b] ... offsets[b + 1] - 1.
        lengths: [B] int32 or int64; the first lengths[b] positions are kept.
        mask: [B, L]; nonzero positions are kept, on any side.
        backend: "auto", "cpu" (compiled, float32) or "reference" (plain PyTorch).

    Returns:
        The fused tokens, with the shape and dtype of `tokens`; pads are zeros (with "none", `tokens` itself).

    Raises:
        ValueError: contradicting or misshapen arguments, or a backend that cannot take them.
        TypeError: wrong dtypes.
        RuntimeError: a polarity outside the table, offsets or lengths out of range. Nothing is computed.

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
    sign = check_fusion(target, fusion, polarity, where.token_shape, polarity_table, gate, sign)
    if fusion == "none":
        backends.choose("polarity_fusion", backend, target, lambda: 0)
        return tokens
    assert polarity is not None
    assert polarity_table is not None
    chosen = backends.choose("polarity_fusion", backend, target, lambda: 0)
    if chosen == "reference":
        if not torch.compiler.is_compiling():
            where.check_values()  # before the assignment, which trusts the offsets
        user, keep = where.assignment()
        if not torch.compiler.is_compiling():
            check_range("polarity", polarity, polarity_table.shape[0], keep)
        fused = reference.polarity_fusion(
            target[:, None, :], tokens.reshape(-1, tokens.shape[-1]), polarity.reshape(-1),
            user.to(target.device), keep, polarity_table, sign, (gate[0], gate[1], gate[2]) if gate else None,
        )  # fmt: skip
        return fused.reshape(tokens.shape)
    out: Tensor = PolarityFusion.apply(
        target, tokens, polarity, polarity_table, sign, where.offsets, where.lengths, where.mask, *gate
    )
    return out


def default_sign(rows: int, like: Tensor) -> Tensor:
    """-1 for row 0, +1 for the others."""
    sign = torch.ones(rows, dtype=like.dtype, device=like.device)
    sign[:1] = -1
    return sign


def check_fusion(
    target: Tensor,
    fusion: str,
    polarity: Tensor | None,
    token_shape: tuple[int, ...],
    polarity_table: Tensor | None,
    gate: Sequence[Tensor],
    sign: Tensor | None,
) -> Tensor:
    """Validates what the fusion needs; returns the sign per polarity row."""
    check_choice("fusion", fusion, FUSIONS)
    width = target.shape[-1]
    expected = 3 if fusion == "tapf" else 0
    if len(gate) != expected:
        raise ValueError(
            f"gate has {len(gate)} entries; fusion={fusion!r} expects {expected}"
            + (": W_g [D, D], b_g [D], W_t [D, D]" if expected else "")
        )
    if fusion == "none":
        return target.new_ones(1)
    if polarity is None or polarity_table is None:
        missing = "polarity" if polarity is None else "polarity_table"
        raise ValueError(f"{missing} was None; fusion={fusion!r} needs it (or pass fusion='none')")
    check_float(target, "target", polarity_table=polarity_table)
    check_ids("polarity", polarity, target.device)
    check_shape("polarity", polarity, token_shape, "one per history token")
    if polarity_table.dim() != 2 or polarity_table.shape[1] != width:
        raise ValueError(f"polarity_table has shape {list(polarity_table.shape)}; expected [P, {width}]")
    for name, tensor, shape in zip(
        ("gate[0] (W_g)", "gate[1] (b_g)", "gate[2] (W_t)"),
        gate,
        ((width, width), (width,), (width, width)),
        strict=False,
    ):
        check_float(target, "target", **{name: tensor})
        check_shape(name, tensor, shape, "D = the width of target")
    if sign is None:
        return default_sign(polarity_table.shape[0], target)
    check_float(target, "target", sign=sign)
    check_shape("sign", sign, (polarity_table.shape[0],), "one per polarity row")
    return sign.detach()
