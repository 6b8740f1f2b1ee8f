"""The layouts of a behaviour history: jagged (offsets) or padded (lengths, mask, or full)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_INDEX_TYPES = (torch.int32, torch.int64)


class Layout(NamedTuple):
    """Which tokens belong to which user. At most one of the three tensors is set.

    Attributes:
        batch: number of users B.
        token_shape: leading dimensions of the history: (N,) jagged, (B, L) padded.
        offsets: [B + 1] int32 or int64, jagged: user b owns tokens offsets[b] ... offsets[b + 1] - 1.
        lengths: [B] int32 or int64, padded on the right: user b owns the first lengths[b] of L positions.
        mask: [B, L], padded on any side: nonzero is kept.
    """

    batch: int
    token_shape: tuple[int, ...]
    offsets: Tensor | None
    lengths: Tensor | None
    mask: Tensor | None

    def assignment(self) -> tuple[Tensor, Tensor | None]:
        """Token-level form, for the references.

        Returns:
            user: [T] int64, the user of each token; T is the number of tokens, pads included.
            keep: [T] bool, False at pads; None if there are none.
        """
        offsets, _, _ = self.canonical()
        if offsets is not None:
            positions = torch.arange(self.token_shape[0], device=offsets.device)
            # Unlike repeat_interleave, in bounds whatever the offsets: a compiled reference cannot check them.
            user = torch.searchsorted(offsets[1:].contiguous(), positions, right=True)
            return user.clamp(max=self.batch - 1), None
        rows = torch.arange(self.batch, device=self._device)
        return rows[:, None].expand(self.token_shape).reshape(-1), self.keep()

    def keep(self) -> Tensor | None:
        """[T] bool, False at pads; None if there are none."""
        _, lengths, mask = self.canonical()
        if mask is not None:
            return mask.reshape(-1)
        if lengths is None:
            return None
        position = torch.arange(self.token_shape[1], device=lengths.device)
        return (position[None, :] < lengths[:, None]).reshape(-1)

    def canonical(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Offsets, lengths and mask as the compiled ops take them."""
        return canonical(self.offsets, self.lengths, self.mask)

    def occupied(self) -> Tensor | None:
        """[B] bool: which users have a token; None where it is known, without waiting for a GPU, that all have one.

        Whatever a matrix product makes of the zeros of an empty history, NaN where the matrix has one, is masked by it.
        """
        if self.offsets is not None:
            found = self.offsets.diff() > 0
        elif self.lengths is not None:
            found = self.lengths > 0
        elif self.mask is not None:
            found = (self.mask != 0).any(1)
        elif self.token_shape[1] != 0:
            return None
        else:
            return torch.zeros(self.batch, dtype=torch.bool)
        # Values may be looked at where they are at hand, and not while the call is being recorded.
        recording = (
            torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or type(found) is not Tensor
        )
        if not recording and found.device.type == "cpu" and bool(found.all()):
            return None
        return found

    @property
    def _device(self) -> torch.device | None:
        for tensor in (self.offsets, self.lengths, self.mask):
            if tensor is not None:
                return tensor.device
        return None

    def check_values(self) -> None:
        """The value checks of the compiled kernels, for implementations that lack them.

        Raises:
            RuntimeError: offsets that do not rise from 0 to N, or lengths outside 0 ... L.
        """
        if self.offsets is not None:
            if int(self.offsets[0]) != 0 or int(self.offsets[-1]) != self.token_shape[0]:
                raise RuntimeError(
                    f"offsets run from {int(self.offsets[0])} to {int(self.offsets[-1])}; expected 0 to "
                    f"{self.token_shape[0]}, the number of history tokens"
                )
            bad = (self.offsets.diff() < 0).nonzero()
            if bad.numel():
                row = int(bad[0])
                raise RuntimeError(
                    f"offsets[{row + 1}] is {int(self.offsets[row + 1])}, below offsets[{row}] = "
                    f"{int(self.offsets[row])}; expected offsets that never fall"
                )
        if self.lengths is not None:
            bad = ((self.lengths < 0) | (self.lengths > self.token_shape[1])).nonzero()
            if bad.numel():
                row = int(bad[0])
                raise RuntimeError(
                    f"lengths[{row}] is {int(self.lengths[row])}; expected 0 ... {self.token_shape[1]}, "
                    "the padded length of the history"
                )


def canonical(
    offsets: Tensor | None, lengths: Tensor | None, mask: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Contiguous int64 offsets and lengths and bool mask; the tensors themselves where they are that already.

    Called in the forward and again in the backward, so that no copy is kept between them.
    """
    return (
        None if offsets is None else offsets.long().contiguous(),
        None if lengths is None else lengths.long().contiguous(),
        None if mask is None else (mask if mask.dtype == torch.bool else mask != 0).contiguous(),
    )


def layout(
    history: Tensor,
    batch: int,
    *,
    name: str,
    trailing: int,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
) -> Layout:
    """Validates a history's layout arguments.

    Args:
        history: [N, ...] jagged or [B, L, ...] padded.
        batch: number of users, from the target.
        name: the argument's name, for messages.
        trailing: number of dimensions behind the token dimensions (1 for vectors, 0 for ids).
        offsets: [B + 1] int32 or int64; makes the history jagged.
        lengths: [B] int32 or int64.
        mask: [B, L], bool, integer or float; nonzero is kept.

    Raises:
        ValueError: contradicting arguments or wrong shapes.
        TypeError: wrong dtypes.
    """
    if (offsets is not None) + (lengths is not None) + (mask is not None) > 1:
        given = [n for n, v in (("offsets", offsets), ("lengths", lengths), ("mask", mask)) if v is not None]
        raise ValueError(f"{' and '.join(given)} were given together; expected at most one of offsets, lengths, mask")
    dims = history.dim() - trailing
    shape = tuple(history.shape[:dims])
    if offsets is not None:
        if dims != 1:
            raise ValueError(f"{name} has shape {list(history.shape)}; expected [N{', D' * trailing}] with offsets")
        _check_index("offsets", offsets, (batch + 1,), "B + 1", history)
        return Layout(batch, shape, offsets, None, None)
    if dims != 2:
        hint = "; a jagged history also needs offsets=" if dims == 1 else ""
        raise ValueError(f"{name} has shape {list(history.shape)}; expected [B, L{', D' * trailing}]{hint}")
    if shape[0] != batch:
        raise ValueError(f"{name} has {shape[0]} users and target has {batch}; expected the same number")
    if lengths is not None:
        _check_index("lengths", lengths, (batch,), "B", history)
        return Layout(batch, shape, None, lengths, None)
    if mask is not None:
        if tuple(mask.shape) != shape:
            raise ValueError(f"mask has shape {list(mask.shape)}; expected {list(shape)}, one entry a position")
        _check_device("mask", mask, history)
        return Layout(batch, shape, None, None, mask)
    return Layout(batch, shape, None, None, None)


def _check_index(name: str, index: Tensor, shape: tuple[int, ...], words: str, history: Tensor) -> None:
    if index.dtype not in _INDEX_TYPES:
        raise TypeError(f"{name} has dtype {index.dtype}; expected torch.int32 or torch.int64")
    if index.shape != shape:
        raise ValueError(f"{name} has shape {list(index.shape)}; expected {list(shape)} ({words})")
    _check_device(name, index, history)


def _check_device(name: str, tensor: Tensor, history: Tensor) -> None:
    if tensor.device != history.device:
        raise ValueError(f"{name} is on {tensor.device} and the history on {history.device}; move one of them")
