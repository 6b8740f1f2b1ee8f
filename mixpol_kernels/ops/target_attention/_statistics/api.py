"""The public function `unit_statistics`: validation and choice of implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixpol_kernels import backend as backends
from mixpol_kernels.autocast import under_autocast
from mixpol_kernels.checks import check_float, checked
from mixpol_kernels.history import Layout, accepts_jagged, layout
from mixpol_kernels.ops.target_attention._statistics import reference
from mixpol_kernels.ops.target_attention._statistics.autograd import FORWARD, UnitStatistics
from mixpol_kernels.ops.target_attention.triton import support
from mixpol_kernels.ops.unit import BLOCKS, ActivationUnit, check_dropout, check_target, with_candidates


class Statistics(NamedTuple):
    """Result of `unit_statistics`.

    Attributes:
        mean: [H], of each unit.
        variance: [H], biased: the mean squared distance from `mean`.
        rows: int64 scalar tensor, the rows behind them: tokens times candidates, pads included if asked for.
    """

    mean: Tensor
    variance: Tensor
    rows: Tensor


@accepts_jagged("history")
@checked
@under_autocast(products=False)
def unit_statistics(
    target: Tensor,
    history: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    activation: str = "relu",
    slopes: Sequence[Tensor] = (),
    negative_slope: float = 0.01,
    blocks: Sequence[str] = BLOCKS,
    dropout: float = 0.0,
    seed: Tensor | int | None = None,
    pad_to: int | None = None,
    offsets: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Statistics:
    """Batch statistics of one layer of a DIN activation unit: what Dice and batch norm need in training.

    Mean and variance, per unit, of W_i h_(i-1) + b_i over all tokens (of all candidates), with h as in
    `target_attention`. Differentiable in every input. Nothing of size tokens × units is written, in either
    direction; the variance comes from centred data. Frameworks that normalise padded batches count every padded
    position as a zero token: `pad_to` reproduces that exactly, from one row per target.

    Args:
        target: [B, D] or [B, M, D].
        history: [N, D] with `offsets`, or [B, L, D], or jagged, as in `target_attention`. Any strides.
        weights: the hidden layers up to the one in question: [H_1, 4 D], [H_2, H_1], ...; one to three.
        biases: one [H_i] per weight.
        activation, slopes, negative_slope, blocks: as in `target_attention`; `slopes` for all layers but the last.
        dropout, seed: of the layers below, as in `target_attention`, which then takes the same seed.
        pad_to: count every history as padded with zero tokens to this length. None: kept tokens only.
        offsets, lengths, mask: the layout, as in `target_attention`.
        backend: "auto", "cpu" (compiled, float32), "triton" (on a GPU; float32, bfloat16 and float16) or "reference"
            (plain PyTorch).

    Returns:
        `Statistics`; zeros if there is no row at all.

    Raises:
        ValueError: contradicting or misshapen arguments, or a backend that cannot take them.
        TypeError: wrong dtypes.
        RuntimeError: offsets or lengths out of range, or a history longer than `pad_to`. Nothing is computed.

    Example:
        >>> import torch
        >>> from mixpol_kernels.ops.target_attention._statistics.api import unit_statistics
        >>> target, history = torch.randn(2, 8), torch.randn(2, 5, 8)
        >>> found = unit_statistics(target, history, [torch.randn(16, 32)], [torch.zeros(16)], pad_to=5,
        ...                            lengths=torch.tensor([5, 2]))
        >>> found.mean.shape, int(found.rows)
        (torch.Size([16]), 10)
    """
    check_target(target)
    check_float(target, "target", history=history)
    given = ActivationUnit(weights, biases, activation, slopes, negative_slope, blocks=blocks, dropout=dropout)
    unit = given.canonical(target.shape[-1])
    if not 1 <= len(weights) <= 3:
        raise ValueError(f"weights has {len(weights)} entries; expected one to three hidden layers")
    unit.check_layers(target, len(weights) - 1, None)
    where = layout(history, target.shape[0], name="history", trailing=1, offsets=offsets, lengths=lengths, mask=mask)
    if history.shape[-1] != target.shape[-1]:
        raise ValueError(f"history is {history.shape[-1]} wide and target {target.shape[-1]}; expected the same D")
    check_pads(None, pad_to)
    given_seed, seed = seed, check_dropout(dropout, seed)
    if dropout and seed is None:
        raise ValueError(f"seed was None with dropout {dropout}; expected the one that the attention takes")
    if dropout and pad_to is not None and len(weights) > 1:
        raise ValueError(f"pad_to was {pad_to} with dropout {dropout}; expected None: dropout makes the pads differ")
    candidates = target.shape[1] if target.dim() == 3 else 1
    inputs = (target, history, *unit.parameters)
    chosen = backends.choose(
        "unit_statistics",
        backend,
        target,
        lambda _: (
            8 * weights[-1].shape[0]
            + (8 if dropout and seed is not given_seed else 0)
            + backends.new_bytes(unit.parameters, given.parameters)
        ),
        inputs,
        triton=lambda: support.refusal(target),
    )
    act, _, _ = unit.codes
    kept = kept_tokens(where, history.device)
    if chosen == "reference":
        if not torch.compiler.is_compiling():
            where.check_values()
            check_pads(kept, pad_to)
        user, keep = where.assignment(target.device)
        mean, variance = reference.unit_statistics(
            with_candidates(target), history.flatten(0, -2), user, keep, None if pad_to is None else pad_to - kept,
            unit.weights, unit.biases, unit.slopes, unit.activation, dropout, seed,
        )  # fmt: skip
    else:
        check_pads(kept if is_free(chosen, kept) else None, pad_to)
        length = -1 if pad_to is None else pad_to
        if backends.needs_grad(*inputs):
            mean, variance = UnitStatistics.apply(
                chosen, target, history, where.offsets, where.lengths, where.mask, seed, act, dropout, length,
                len(weights), *unit.parameters,
            )  # fmt: skip
        else:
            mean, variance, _ = FORWARD.of(chosen)(
                target, history, *where.canonical(), unit.weights, unit.biases, unit.slopes, act, dropout, seed, length
            )
    return Statistics(mean, variance, counted_rows(kept, where.batch, candidates, pad_to))


def check_pads(kept: Tensor | None, pad_to: int | None) -> None:
    """Refuses a padded length that is none, or shorter than one of the `kept` tokens a user, [B], where given."""
    if pad_to is None:
        return
    if not 0 <= pad_to < 2**31:
        raise ValueError(f"pad_to was {pad_to}; expected a length below 2^31, or None")
    if kept is not None and bool((kept > pad_to).any()):
        long = int((kept > pad_to).nonzero()[0])
        raise RuntimeError(
            f"pad_to is {pad_to} and user {long} has {int(kept[long])} tokens; expected at least the longest history"
        )


def is_free(chosen: str, kept: Tensor) -> bool:
    """Whether values that the kernels do not check may be looked at: on a GPU that would wait for it."""
    return chosen == "triton" and kept.is_cpu and not torch.compiler.is_compiling()


def counted_rows(kept: Tensor, batch: int, candidates: int, pad_to: int | None) -> Tensor:
    """The rows behind statistics, an int64 scalar tensor."""
    rows = kept.sum() if pad_to is None else torch.full((), batch * pad_to, device=kept.device)
    return rows * candidates


def kept_tokens(where: Layout, device: torch.device) -> Tensor:
    """Kept tokens of each user, [B] int64."""
    offsets, lengths, mask = where.canonical()
    if offsets is not None:
        return offsets.diff()
    if lengths is not None:
        return lengths
    if mask is not None:
        return mask.sum(1)
    return torch.full((where.batch,), where.token_shape[1], dtype=torch.int64, device=device)
