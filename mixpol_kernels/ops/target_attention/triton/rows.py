"""Rows of the staged kernels: pairs of a token and a candidate, in granules of 16 tokens of one user.

A granule is cut from its user's start, so what is summed within one and over a user's granules in order does not depend
on the batch. An item is a granule with one of its user's candidates: item i of a chunk is granule g0 + i // block and
candidate c0 + i % block, and rows 16 i ... 16 i + 15 are its tokens.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

GRANULE = 16
FIELDS = 5
_GRANULE = tl.constexpr(GRANULE)
_FIELDS = tl.constexpr(FIELDS)


@dataclasses.dataclass(frozen=True)
class Spans:
    """Pieces of all users' histories, in order of users and tokens.

    How many there may be is known without the data; those behind `total` have no token.
    """

    fields: Tensor
    """[S, 5] int64: user, first token, its place among the user's tokens, tokens, and how often the zero token counts
    that follows them (statistics of padded rows)."""
    first: Tensor
    """[B + 1] int64: the first piece of each user, and their number."""

    @property
    def total(self) -> Tensor:
        """[1] int64: how many pieces there are."""
        return self.first[-1:]


class Tokens:
    """Where the kept tokens of each user are: `counts` from `begins` on, by way of `index` where it is given.

    Values outside the history are clamped to it, since a kernel cannot raise. Nothing is read back from the device.
    """

    def __init__(
        self, users: int, shape: torch.Size, offsets: Tensor | None, lengths: Tensor | None, mask: Tensor | None,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.users, self.positions, self.jagged = users, shape[-1], offsets is not None
        self.index: Tensor | None = None
        self.pads = lengths is not None or mask is not None
        if offsets is not None:
            ends = offsets.clamp(0, self.positions)
            self.begins, self.counts = ends[:-1], (ends[1:] - ends[:-1]).clamp(min=0)
        elif mask is not None:
            kept, size = mask.reshape(-1), mask.numel()
            self.counts = mask.sum(1)
            self.begins = self.counts.cumsum(0) - self.counts
            places = torch.where(kept, kept.cumsum(0) - 1, size)
            index = torch.zeros(size + 1, dtype=torch.int64, device=device)
            self.index = index.scatter_(0, places, torch.arange(size, device=device))
        else:
            self.begins = torch.arange(0, users * self.positions, max(self.positions, 1), device=device)[:users]
            if not self.positions:
                self.begins = torch.zeros(users, dtype=torch.int64, device=device)
            full = torch.full((users,), self.positions, device=device)
            self.counts = full if lengths is None else lengths.clamp(0, self.positions)

    def spans(self, size: int, *, empty: bool = False, weights: Tensor | None = None) -> Spans:
        """Pieces of `size` tokens.

        Args:
            size: tokens.
            empty: one piece for a user without tokens too.
            weights: [B] how often a zero token counts behind each user's own; None for none.
        """
        device, extra = self.counts.device, 0 if weights is None else 1
        each = (self.counts + (extra + size - 1)) // size
        each = each.clamp(min=1) if empty else each
        ends = each.cumsum(0)
        bound = self.users + self.positions // size
        if not self.jagged:
            bound = self.users * max(-(-(self.positions + extra) // size), int(empty))
        slots = torch.arange(bound, device=device)
        user = torch.searchsorted(ends, slots, right=True).clamp(max=self.users - 1)
        place = (slots - (ends - each)[user]) * size
        counts = self.counts[user]
        follows = torch.zeros_like(place)
        if weights is not None:
            follows = torch.where((place <= counts) & (counts < place + size), weights[user], 0)
        begins = self.begins[user] + place.minimum(counts)
        fields = torch.stack([user, begins, place, (counts - place).clamp(0, size), follows], 1)
        return Spans(fields, torch.nn.functional.pad(ends, (1, 0)))


@triton.jit
def items(granules, i, g0, c0, block, slots, candidates):
    """Of items i: whether they have tokens or a zero token, and the row of the target."""
    granule = (g0 + i // block).to(tl.int64)
    inside = granule < slots
    at = granules + granule * _FIELDS
    used = tl.load(at + 3, mask=inside, other=0) + tl.load(at + 4, mask=inside, other=0) > 0
    return used, tl.load(at, mask=inside, other=0) * candidates + c0 + i % block


@triton.jit
def rows(
    granules, index, r, g0, c0, block, slots, candidates, length, user_units, row_units,
    ALIGN: tl.constexpr, ZEROS: tl.constexpr,
):  # fmt: skip
    """Of rows r of a chunk: is it a token, how often it counts, where its vector is, and the row of its target.

    Then its cell of a tensor [tokens, candidates], and its place among its user's tokens. ZEROS: a zero token may
    follow a user's own, and counts as often as its granule says.
    """
    i = r // _GRANULE
    granule = (g0 + i // block).to(tl.int64)
    inside = granule < slots
    at = granules + granule * _FIELDS
    l = r % _GRANULE
    count = tl.load(at + 3, mask=inside, other=0)
    user = tl.load(at, mask=inside, other=0)
    keep = l < count
    token = tl.load(at + 1, mask=inside, other=0) + l
    if index is not None:
        token = tl.load(index + token, mask=keep, other=0)
    weight = tl.where(keep, 1.0, 0.0)
    if ZEROS:
        weight = tl.where(l == count, tl.load(at + 4, mask=inside, other=0).to(tl.float32), weight)
    vector = user * user_units * ALIGN + (token - user * length) * row_units * ALIGN
    candidate = c0 + i % block
    place = tl.load(at + 2, mask=inside, other=0) + l
    return keep, weight, vector, user * candidates + candidate, token * candidates + candidate, place


@triton.jit
def mix(x):
    """lowbias32, as in csrc/math/dropout.h."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def dropout(call, target, place, units, LAYER: tl.constexpr, THRESHOLD: tl.constexpr, SCALE: tl.constexpr):
    """Factors [rows, units]: 0, or SCALE; those of the CPU kernels (csrc/math/dropout.h)."""
    token = mix(mix(tl.cast(call, tl.uint32) ^ target.to(tl.uint32)) ^ place.to(tl.uint32))
    key = mix(token ^ LAYER)
    bits = mix(key[:, None] + (units.to(tl.uint32) * 0x9E3779B9)[None, :]) >> 8
    return tl.where(bits >= THRESHOLD, SCALE, 0.0)
