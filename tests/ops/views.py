"""Views of a tensor's values at other strides, out of buffers whose every other element is wrong."""

from __future__ import annotations

import torch
from torch import Tensor


def wild(shape: list[int], like: Tensor) -> Tensor:
    """A buffer whose every element is wrong: NaN, True, or out of every range."""
    if like.is_floating_point():
        return torch.full(shape, torch.nan, dtype=like.dtype)
    if like.dtype == torch.bool:
        return torch.ones(shape, dtype=torch.bool)
    return torch.full(shape, torch.iinfo(like.dtype).max, dtype=like.dtype)


def with_gaps(tensor: Tensor) -> Tensor:
    """Every second element of every dimension of a larger buffer."""
    view = wild([2 * n + 1 for n in tensor.shape], tensor)[tuple(slice(1, 2 * n, 2) for n in tensor.shape)]
    return view.copy_(tensor)


def transposed(tensor: Tensor) -> Tensor:
    """Dimensions stored in reverse."""
    order = list(range(tensor.dim()))[::-1]
    return tensor.permute(order).contiguous().permute(order)


def sliced(tensor: Tensor) -> Tensor:
    """The middle of wider rows."""
    return wild([*tensor.shape[:-1], tensor.shape[-1] + 8], tensor)[..., 3 : 3 + tensor.shape[-1]].copy_(tensor)


def shifted(tensor: Tensor) -> Tensor:
    """Contiguous, but one element off the alignment that an allocator gives."""
    return wild([tensor.numel() + 1], tensor)[1:].view(tensor.shape).copy_(tensor)


VIEWS = [with_gaps, transposed, sliced, shifted]
