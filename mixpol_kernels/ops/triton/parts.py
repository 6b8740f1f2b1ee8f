"""Long histories that are cut into parts, in Triton: one user takes several programs.

A history longer than PART positions is cut there, whatever else is in the batch, so that a user's bits do not depend
on it. The kernels see each part as a user of its own, and `combine_kernel` adds a user's parts in order.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixpol_kernels.ops.triton.shared import extent, kept_tokens

PART = 2048


@dataclasses.dataclass(frozen=True)
class Parts:
    """Slots for the parts of all users in order, some of them empty: how many there are is known without the data."""

    users: Tensor
    """[S] int64: the user of each slot."""
    starts: Tensor
    """[S] int64: the first row, in token order."""
    kept: Tensor
    """[S] int32: positions that may be kept, at most PART."""
    first: Tensor
    """[B + 1] int64: the first slot of each user, and S."""

    def combine(
        self, totals: Tensor, result: Tensor, stats: Tensor | None = None, merged: Tensor | None = None
    ) -> None:
        """Launches `combine_kernel`: totals [S, rows, width] to a result of `rows` rows a user."""
        rows, width = totals.shape[1:]
        combine_kernel[(result.shape[0] * rows,)](
            totals, stats, result, merged, self.first, rows,
            W=width, BW=triton.next_power_of_2(width), SOFTMAX=stats is not None, num_warps=1,
        )  # fmt: skip


def cut(
    users: int, positions: int, offsets: Tensor | None, lengths: Tensor | None, device: torch.device
) -> Parts | None:
    """The parts of all histories, or None if none can have two; positions: N of jagged tokens, else L.

    Nothing is read back from the device. Jagged, part p of user u has slot f(u) + p with f(u) = offsets[u] // PART + u:
    a user of n tokens has ceil(n / PART) <= f(u + 1) - f(u) parts, since floor(a + b) >= floor(a) + floor(b), so that
    no two share a slot; and there are N // PART + B slots, not B times the parts of the longest.
    """
    if positions <= PART or not users:
        return None
    if offsets is not None:
        ends = offsets.to(torch.int64).clamp(0, positions)  # a kernel cannot raise: nothing out of bounds is read
        starts, counts = ends[:-1], (ends[1:] - ends[:-1]).clamp(min=0)
        slots = users + positions // PART
        first = torch.arange(users + 1, device=device) + ends // PART
        first[-1] = slots
        user = torch.searchsorted(first[:-1], torch.arange(slots, device=device), right=True)
        user = (user - 1).clamp(min=0)
    else:
        each = triton.cdiv(positions, PART)
        starts = torch.arange(0, users * positions, positions, device=device)
        counts = torch.full_like(starts, positions) if lengths is None else lengths.to(torch.int64).clamp(0, positions)
        first = torch.arange(0, users * each + 1, each, device=device)
        user = torch.arange(users, device=device).repeat_interleave(each, output_size=users * each)
    begin = (torch.arange(len(user), device=device) - first[user]).clamp(min=0) * PART
    kept = (counts[user] - begin).clamp(0, PART).to(torch.int32)
    return Parts(user, starts[user] + begin.minimum(counts[user]), kept, first)


class Histories:
    """Assignment of histories to programs: a user's history each, or a part of a long one.

    Attributes:
        history: [..., D], rows of adjacent elements.
        layout: offsets, lengths and mask of the kernels.
        number: LAYOUT.
        items: programs, by user.
        parts: None where each user has one, as asked for by `whole`.
        skips_pads: whether pads of outputs of a row a token are left as they are.
    """

    def __init__(
        self,
        users: int,
        history: Tensor,
        offsets: Tensor | None,
        lengths: Tensor | None,
        mask: Tensor | None,
        whole: bool = False,
    ) -> None:
        self.history = history if history.stride(-1) == 1 or history.shape[-1] == 1 else history.contiguous()
        self.layout = (offsets, lengths, mask)
        self.number = next((i for i, given in enumerate(self.layout) if given is not None), 3)
        self.items = users
        self.parts = None if whole else cut(users, history.shape[-2], offsets, lengths, history.device)
        self.skips_pads = self.parts is not None and lengths is not None
        if self.parts:  # LAYOUT: jagged, whose pads nobody looks at, or with a mask
            self.history = self.history.reshape(-1, history.shape[-1])
            self.items = len(self.parts.users)
            self.layout, self.number = (self.parts.starts, self.parts.kept, mask), 0 if mask is None else 2

    def spread(self, of_users: Tensor) -> Tensor:
        """[B, ...] contiguous as the programs take it: of a part, what its user has."""
        return of_users.index_select(0, self.parts.users) if self.parts else of_users.contiguous()

    def room(self, *shape: int) -> Tensor:
        """[items, *shape] float32, for what each part leaves."""
        return self.history.new_empty((self.items, *shape), dtype=torch.float32)

    def per_token(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An output of a row a token, to be written."""
        return (self.history.new_zeros if self.skips_pads else self.history.new_empty)(shape, dtype=dtype)


@triton.jit
def stretch(offsets, lengths, user, length, LAYOUT: tl.constexpr, PARTS: tl.constexpr):
    """`extent` of a user; with PARTS of a slot, whose start and kept positions stand in `offsets` and `lengths`."""
    if PARTS:
        first = tl.load(offsets + user)
        kept = tl.load(lengths + user)
        positions = kept
    else:
        first, kept, positions = extent(offsets, lengths, user, length, LAYOUT)
    return first, kept, positions


@triton.jit
def share(highest, total, all_highest, all_total):
    """Of a part in its user's softmax, 1 of an only part: both have a largest score s and Σ exp(s - largest)."""
    part = total * tl.exp(highest - tl.where(all_highest == -float("inf"), 0.0, all_highest))
    return tl.where(part == all_total, 1.0, part / all_total)


@triton.jit
def combine_kernel(
    totals, stats, result, merged, first, rows, W: tl.constexpr, BW: tl.constexpr, SOFTMAX: tl.constexpr
):
    """Row `program_id` of the users' `rows` each: Σ of its parts' totals [S, rows, W], in order.

    SOFTMAX: each part's total is its softmax's, of the numbers in `stats` (see `share`); the user's own go to `merged`.
    """
    program = tl.program_id(0).to(tl.int64)
    user = (tl.program_id(0) // rows).to(tl.int64)
    row = tl.program_id(0) % rows
    begin = tl.load(first + user)
    end = tl.load(first + user + 1)
    highest = -float("inf")
    denominator = 0.0
    if SOFTMAX:
        for slot in range(begin, end):
            highest = tl.maximum(highest, tl.load(stats + (slot * rows + row) * 2))
        for slot in range(begin, end):
            at = stats + (slot * rows + row) * 2
            denominator += tl.load(at + 1) * tl.exp(tl.load(at) - tl.where(highest == -float("inf"), 0.0, highest))
        tl.store(merged + program * 2, highest)
        tl.store(merged + program * 2 + 1, denominator)
    w = tl.arange(0, BW)
    total = tl.zeros([BW], tl.float32)
    for slot in range(begin, end):
        x = tl.load(totals + (slot * rows + row) * W + w, mask=w < W, other=0.0)
        if SOFTMAX:
            at = stats + (slot * rows + row) * 2
            x *= share(tl.load(at), tl.load(at + 1), highest, denominator)
        total += x
    tl.store(result + program * W + w, total.to(result.dtype.element_ty), mask=w < W)


@triton.jit
def rescale_kernel(
    attention, stats, merged, users, offsets, lengths, mask, rows, LAYOUT: tl.constexpr, TILE: tl.constexpr
):
    """Weights [tokens, rows] of one part and row: from shares of the part to shares of the user's history."""
    program = tl.program_id(0).to(tl.int64)
    slot = (tl.program_id(0) // rows).to(tl.int64)
    row = tl.program_id(0) % rows
    first, kept, _ = stretch(offsets, lengths, slot, 0, LAYOUT, True)
    at = merged + (tl.load(users + slot) * rows + row) * 2
    factor = share(tl.load(stats + program * 2), tl.load(stats + program * 2 + 1), tl.load(at), tl.load(at + 1))
    for l0 in range(0, kept, TILE):
        l = (l0 + tl.arange(0, TILE)).to(tl.int64)
        keep = kept_tokens(mask, first, l, kept, LAYOUT)
        weights = attention + (first + l) * rows + row
        tl.store(weights, tl.load(weights, mask=keep, other=0.0) * factor, mask=keep)
