"""The public function `interleave`: validation and choice of implementation."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mixpol_kernels import backend as backends
from mixpol_kernels.backend import TIME_TYPES
from mixpol_kernels.checks import checked
from mixpol_kernels.history import check_offsets
from mixpol_kernels.library import INTERPRETING
from mixpol_kernels.ops.interleave import autograd, reference
from mixpol_kernels.ops.interleave.triton import support

_INDEX_TYPES = (torch.int32, torch.int64)
_MOST = 2**63 - 1


class Interleaved(NamedTuple):
    """A mixed history of each user, oldest event first: where its events come from, not the events themselves.

    Attributes:
        source: [N] int64, each event's place in cat([positives, negatives]).
        polarity: [N] uint8, 1 positive, 0 negative: rows of a polarity table with the default signs.
        offsets: [B + 1] int64: user b owns events offsets[b] ... offsets[b + 1] - 1.
        n_positive: number of positives that were given, so that negative i has place n_positive + i.
        n_negative: number of negatives that were given.

    Example:
        >>> import torch, mixpol_kernels as mk
        >>> mixed = mk.Interleaved(torch.tensor([0, 2, 1]), torch.tensor([1, 0, 1]), torch.tensor([0, 3]), 2, 1)
        >>> mixed.take(torch.tensor([10, 11]), torch.tensor([99]))
        tensor([10, 99, 11])
    """

    source: Tensor
    polarity: Tensor
    offsets: Tensor
    n_positive: int
    n_negative: int

    @checked
    def take(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The mixed history's rows of a column that both lists have: cat([positive, negative])[source].

        Args:
            positive: [n_positive, ...], the positives' column (item ids, times, embeddings ...), any dtype.
            negative: [n_negative, ...], the negatives' column: same dtype, device and trailing dimensions.

        Returns:
            [N, ...]; differentiable where the columns are.

        Raises:
            ValueError: a column has another number of rows than the lists had, or the two do not match.
            TypeError: the columns' dtypes differ.
        """
        for name, column, rows in (("positive", positive, self.n_positive), ("negative", negative, self.n_negative)):
            if column.dim() == 0 or column.shape[0] != rows:
                raise ValueError(
                    f"{name} has shape {list(column.shape)}; expected [{rows}, ...], a row for each {name} event"
                )
        if positive.shape[1:] != negative.shape[1:]:
            raise ValueError(
                f"negative has rows of shape {list(negative.shape[1:])}; expected {list(positive.shape[1:])}, "
                "as those of positive"
            )
        if positive.dtype != negative.dtype:
            raise TypeError(f"negative has dtype {negative.dtype} and positive {positive.dtype}; expected the same")
        if positive.device != negative.device:
            raise ValueError(f"negative is on {negative.device} and positive on {positive.device}; move one of them")
        return torch.cat([positive, negative]).index_select(0, self.source)


@checked
def interleave(
    positive_times: Tensor,
    positive_offsets: Tensor,
    negative_times: Tensor,
    negative_offsets: Tensor,
    *,
    budget: int | None = None,
    negative_share: float | None = None,
    backend: str = "auto",
) -> Interleaved:
    """Merges each user's positives and negatives by time into one mixed history, within a length budget.

    Jagged in, jagged out. The result says where each event comes from; `Interleaved.take` gathers columns.

    - Order: oldest first. Events of equal time keep the order of their list, negatives before positives, so
      that a positive counts as newer than a negative of the same time.
    - Budget k, no share: a user keeps the last min(k, p + q) of that order, p and q being the numbers of
      positives and negatives.
    - Budget k and share r: the quota of negatives is floor(r * k + 1/2), at most k. A user keeps the newest
      min(q, quota) negatives, then the newest min(p, what is left of k) positives, then more negatives
      while the budget has room. What one polarity cannot fill goes to the other, so a history is below the
      budget only if the user's events are.

    The budget and the share are those of `mixpol_models.data.SequenceConfig`.

    Args:
        positive_times: [P] int64, int32, float32 or float64; user b's times, positive_offsets[b] ...
            positive_offsets[b + 1] - 1, must not fall. Infinite times are fine, NaN is refused.
        positive_offsets: [B + 1] int32 or int64, rising from 0 to P.
        negative_times: [Q], dtype of `positive_times`, in the same order.
        negative_offsets: [B + 1] int32 or int64, rising from 0 to Q.
        budget: most events a user keeps, at least 0. Default: all events.
        negative_share: share of the budget that is kept for negatives, in [0, 1]; needs a budget. Default:
            the newest events of either polarity.
        backend: "auto", "cpu" (compiled: one linear merge a user, users shared out to threads), "triton" or "cuda" (for
            tensors on a GPU: a binary search an event) or "reference" (plain PyTorch: two stable sorts). All give the
            same. On a GPU a budget makes the call wait for the device once, for the number of events. "triton" tells
            of wrong times and offsets later (`check_device_errors`), and under `torch.compile` the reference does not
            check them.

    Returns:
        `Interleaved`: source [N] int64, polarity [N] uint8, offsets [B + 1] int64. N is P + Q without a
        budget, and depends on the offsets' values with one.

    Raises:
        ValueError: misshapen or contradicting arguments, or a backend that cannot take them.
        TypeError: wrong dtypes.
        RuntimeError: times that fall or are NaN, offsets that do not rise from 0 to the number of times.

    Example:
        >>> import torch, mixpol_kernels as mk
        >>> liked, skipped = torch.tensor([10, 40, 5]), torch.tensor([20, 30, 50])  # two users' times
        >>> mixed = mk.interleave(liked, torch.tensor([0, 2, 3]), skipped, torch.tensor([0, 3, 3]), budget=3)
        >>> mixed.take(liked, skipped), mixed.polarity, mixed.offsets
        (tensor([30, 40, 50,  5]), tensor([0, 1, 0, 1], dtype=torch.uint8), tensor([0, 3, 4]))
    """
    _check_lists(positive_times, positive_offsets, negative_times, negative_offsets)
    n_negative = _quota(budget, negative_share)
    chosen = backends.choose("interleave", backend, positive_times, triton=lambda: support.refusal(positive_times))
    positive_at, negative_at = positive_offsets.long().contiguous(), negative_offsets.long().contiguous()
    arguments = (positive_times.detach(), positive_at, negative_times.detach(), negative_at, budget, n_negative)
    # On a GPU a check would wait for the device: the Triton kernels report what is wrong instead.
    checks = chosen == "reference" or (chosen == "triton" and INTERPRETING and positive_times.is_cpu)
    if checks and not torch.compiler.is_compiling():
        _check_values("positive", positive_times, positive_at)
        _check_values("negative", negative_times, negative_at)
    run = reference.interleave if chosen == "reference" else autograd.FORWARD.of(chosen)
    merged: tuple[Tensor, Tensor, Tensor] = run(*arguments)
    return Interleaved(*merged, positive_times.shape[0], negative_times.shape[0])


def _check_lists(
    positive_times: Tensor, positive_offsets: Tensor, negative_times: Tensor, negative_offsets: Tensor
) -> None:
    """Shapes, dtypes and devices of the four tensors."""
    if positive_times.dtype not in TIME_TYPES:
        raise TypeError(f"positive_times has dtype {positive_times.dtype}; expected int64, int32, float32 or float64")
    if negative_times.dtype != positive_times.dtype:
        raise TypeError(
            f"negative_times has dtype {negative_times.dtype} and positive_times {positive_times.dtype}; "
            "expected the same dtype"
        )
    if positive_offsets.dim() != 1 or positive_offsets.shape[0] == 0:
        raise ValueError(f"positive_offsets has shape {list(positive_offsets.shape)}; expected [B + 1]")
    if negative_offsets.shape != positive_offsets.shape:
        raise ValueError(
            f"negative_offsets has shape {list(negative_offsets.shape)}; expected {list(positive_offsets.shape)}, "
            "as positive_offsets: both list the same users"
        )
    named = {"negative_times": negative_times, "positive_times": positive_times}
    for name, times in named.items():
        if times.dim() != 1:
            raise ValueError(f"{name} has shape {list(times.shape)}; expected one dimension, the users' lists in a row")
    for name, offsets in (("positive_offsets", positive_offsets), ("negative_offsets", negative_offsets)):
        if offsets.dtype not in _INDEX_TYPES:
            raise TypeError(f"{name} has dtype {offsets.dtype}; expected torch.int32 or torch.int64")
        named[name] = offsets
    for name, tensor in named.items():
        if tensor.device != positive_times.device:
            raise ValueError(
                f"{name} is on {tensor.device} and positive_times on {positive_times.device}; move one of them"
            )


def _quota(budget: int | None, negative_share: float | None) -> int | None:
    """The negatives' part of the budget; None without a share."""
    if budget is not None:
        if isinstance(budget, bool) or not isinstance(budget, (int, torch.SymInt)):
            raise TypeError(f"budget was {budget!r}; expected None or a whole number, the most events a user keeps")
        if not 0 <= budget <= _MOST:
            raise ValueError(f"budget was {budget}; expected None or 0 ... 2^63 - 1 events a user")
    if negative_share is None:
        return None
    if not 0 <= negative_share <= 1:
        raise ValueError(f"negative_share was {negative_share}; expected None or a share in [0, 1]")
    if budget is None:
        raise ValueError(
            f"negative_share was {negative_share} without a budget; expected a budget that it is a share of"
        )
    return min(math.floor(negative_share * budget + 0.5), budget)


def _check_values(polarity: str, times: Tensor, offsets: Tensor) -> None:
    """The value checks of the compiled kernel, for the reference."""
    events = times.shape[0]
    check_offsets(f"{polarity}_offsets", offsets, events, f"{polarity}_times")
    name = f"{polarity}_times"
    bad = times.isnan()
    starts = torch.zeros(events + 1, dtype=torch.bool, device=times.device)
    starts[offsets] = True
    bad[1:] |= (times[1:] < times[:-1]) & ~starts[1:-1]
    where = bad.nonzero()
    if where.numel():
        at = int(where[0])
        value = times[at].item()
        if value != value:
            raise RuntimeError(f"{name}[{at}] is nan; expected a number")
        raise RuntimeError(
            f"{name}[{at}] is {value}, below {name}[{at - 1}] = {times[at - 1].item()} of the same user; "
            "expected times that never fall within a user's list: sort them, oldest first"
        )
