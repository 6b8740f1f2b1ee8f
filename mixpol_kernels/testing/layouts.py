"""One ragged history in every layout, and back: tests compare layouts token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LAYOUTS = ("jagged", "lengths", "mask_left", "mask_holes", "full")


@dataclass(frozen=True)
class Placement:
    """Where the N tokens of a ragged history stand.

    Attributes:
        shape: token dimensions: (N,) or (B, L).
        index: [N] flat position of each token in `shape`; None when jagged.
        arguments: the layout argument of the public functions: offsets, lengths, mask, or nothing.
    """

    shape: tuple[int, ...]
    index: Tensor | None
    arguments: dict[str, Tensor]

    def spread(self, tokens: Tensor) -> Tensor:
        """[N, ...] to [*shape, ...]; pads hold NaN, or integers outside every table."""
        if self.index is None:
            return tokens.clone()
        size = self.shape[0] * self.shape[1]
        wild = torch.empty(size, *tokens.shape[1:], dtype=tokens.dtype)
        if tokens.dtype.is_floating_point:
            wild.fill_(torch.nan)
        else:
            limits = torch.iinfo(tokens.dtype)
            wild.fill_(limits.max)
            if limits.min < 0:
                wild[::2] = limits.min
        wild[self.index] = tokens
        return wild.reshape(*self.shape, *tokens.shape[1:])

    def gather(self, padded: Tensor) -> Tensor:
        """[*shape, ...] to [N, ...]; undoes `spread`."""
        return padded if self.index is None else padded.flatten(0, 1)[self.index]

    def pads(self, padded: Tensor) -> Tensor:
        """[*shape, ...] to what stands at the pads, [pads, ...]."""
        if self.index is None:
            return padded[:0]
        flat = padded.flatten(0, 1)
        pad = torch.ones(flat.shape[0], dtype=torch.bool)
        pad[self.index] = False
        return flat[pad]


def place(
    counts: Sequence[int],
    layout: str,
    generator: torch.Generator,
    *,
    length: int | None = None,
    index_dtype: torch.dtype = torch.int64,
) -> Placement:
    """Lays out users with `counts` tokens each.

    Args:
        counts: tokens per user.
        layout: one of LAYOUTS; "full" needs equal counts.
        generator: places the tokens of "mask_holes".
        length: padded length L; default the largest count.
        index_dtype: of offsets and lengths.

    Raises:
        ValueError: unknown layout, or counts that it cannot hold.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout was {layout!r}; expected one of {', '.join(LAYOUTS)}")
    number = torch.tensor(counts, dtype=torch.int64)
    if layout == "jagged":
        offsets = torch.zeros(len(counts) + 1, dtype=torch.int64)
        offsets[1:] = number.cumsum(0)
        return Placement((int(offsets[-1]),), None, {"offsets": offsets.to(index_dtype)})
    longest = max(counts, default=0)
    length = longest if length is None else length
    if length < longest or (layout == "full" and any(n != length for n in counts)):
        raise ValueError(f"counts were {list(counts)}; layout {layout!r} with length {length} cannot hold them")
    columns = [_columns(n, length, layout, generator) for n in counts]
    rows = [b * length + c for b, c in enumerate(columns)]
    index = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)
    arguments: dict[str, Tensor] = {}
    if layout == "lengths":
        arguments["lengths"] = number.to(index_dtype)
    elif layout.startswith("mask"):
        mask = torch.zeros(len(counts) * length, dtype=torch.bool)
        mask[index] = True
        arguments["mask"] = mask.reshape(len(counts), length)
    return Placement((len(counts), length), index, arguments)


def _columns(count: int, length: int, layout: str, generator: torch.Generator) -> Tensor:
    if layout == "mask_left":
        return torch.arange(length - count, length)
    if layout == "mask_holes":
        return torch.randperm(length, generator=generator)[:count].sort().values
    return torch.arange(count)
