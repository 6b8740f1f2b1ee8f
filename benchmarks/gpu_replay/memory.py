"""What a load or store costs besides its instruction: wavefronts of shared memory, sectors and levels of global."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

BANKS, WARP, SECTOR = 32, 32, 32
# Of tensors up to this size, which every block reads, others have brought what this SM reads first into L2.
COMMON = 2 << 20


def conflict_free(width: int) -> int:
    """Wavefronts of a warp whose lanes have `width` bytes each, at best."""
    return max(width // 4, 1)


def wavefronts(address: Any, width: int, active: Any) -> tuple[int, int]:
    """Of a shared-memory access, summed over the warps: wavefronts, and what it takes without bank conflicts.

    A wavefront serves 32 banks of four bytes, each with one word. Lanes with 8 bytes go by halves of a warp, lanes with
    16 by quarters; where neighbours read the same address two such groups go at once.

    Args:
        address: [threads], bytes.
        width: bytes a lane.
        active: [threads], bool.
    """
    lanes = np.arange(len(address))
    groups = {16: 4, 8: 2}.get(width, 1)
    words = np.asarray(address)[:, None] // 4 + np.arange(max(width // 4, 1), dtype=np.uint64)
    group = lanes // (WARP // groups)
    ideal = int(np.bincount(lanes // WARP, weights=active).astype(bool).sum()) * conflict_free(width)
    if groups > 1:
        rows = np.asarray(address).reshape(-1, WARP)
        for near in (1, 2):
            if (rows == rows[:, np.arange(WARP) ^ near]).all():
                return max(_busiest(words, group // 2, active), 1), ideal
    return _busiest(words, group, active), ideal


def matrix_wavefronts(address: Any, matrices: int) -> tuple[int, int]:
    """Of LDSM and STSM: eight lanes hold the addresses of a matrix's rows of 16 bytes, and a matrix is a wavefront."""
    lanes = np.arange(len(address))
    words = np.asarray(address)[:, None] // 4 + np.arange(4, dtype=np.uint64)
    active = lanes % WARP < 8 * matrices
    return _busiest(words, lanes // 8, active), matrices * len(address) // WARP


def _busiest(words: Any, group: Any, active: Any) -> int:
    """Σ over groups of lanes of the most different words that one bank has to give."""
    number = np.broadcast_to(group[:, None], words.shape)[active].astype(np.int64).ravel()
    word = words[active].astype(np.int64).ravel()
    if not number.size:
        return 0
    pairs = np.unique(number << 32 | word)
    slots = (pairs >> 32) * BANKS + pairs % BANKS
    loads = np.bincount(slots, minlength=(int(number.max()) + 1) * BANKS)
    return int(loads.reshape(-1, BANKS).max(1).sum())


@dataclass
class Traffic:
    """Of one execution of a load or store by a block: requests in the L1's data stage, and bytes by their origin."""

    wavefronts: float = 0.0
    l2: float = 0.0
    dram: float = 0.0


class Memory:
    """Global memory as one SM sees it: addresses of tensors, values of integer ones, and what is in its L1.

    Args:
        tensors: those that a kernel takes.
        l1: bytes of the L1 cache.
    """

    def __init__(self, tensors: list[Tensor], l1: int) -> None:
        self.regions: list[tuple[int, int, Any]] = []
        self.lines = max(l1, 0) // SECTOR
        self.cached: OrderedDict[int, None] = OrderedDict()
        self.seen: set[int] = set()
        self._bases: dict[int, int] = {}
        for tensor in tensors:
            self.pointer(tensor)

    def pointer(self, tensor: Tensor) -> int:
        """Where a tensor is; made up, and the same in every run. Views of one storage overlap."""
        storage = tensor.untyped_storage()
        start = storage.data_ptr()
        if start not in self._bases:
            base = (len(self._bases) + 1) << 36
            integer = not tensor.dtype.is_floating_point and tensor.device.type == "cpu"
            content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy() if integer else None
            self._bases[start] = base
            self.regions.append((base, base + storage.nbytes(), content))
        return self._bases[start] + tensor.data_ptr() - start

    def read(self, address: Any, width: int) -> Any:
        """Little-endian values of `width` bytes where an integer tensor is, else None; 0 out of bounds."""
        at = np.atleast_1d(np.asarray(address, np.uint64))
        for base, end, content in self.regions:
            if content is not None and ((at >= base) & (at < end)).any():
                inside = (at >= base) & (at + width <= end)
                offset = np.where(inside, at - base, 0).astype(np.int64)
                value = np.zeros(at.shape, np.uint64)
                for k in range(min(width, 8)):
                    value |= content[offset + k].astype(np.uint64) << np.uint64(8 * k)
                value = np.where(inside, value, 0).astype(np.uint64)
                return int(value[0]) if np.ndim(address) == 0 else value
        return None

    def load(self, address: Any, width: int, keep: bool = True) -> Traffic:
        """Of active lanes at these addresses. What is read goes into L1 with `keep`."""
        sectors = np.unique(np.asarray(address) // SECTOR)
        found = Traffic(_requests(sectors, len(address), width))
        for sector in sectors.tolist():
            if sector in self.cached:
                self.cached.move_to_end(sector)
                continue
            self._count(found, sector)
            if keep and self.lines:
                self.cached[sector] = None
                if len(self.cached) > self.lines:
                    self.cached.popitem(last=False)
        return found

    def store(self, address: Any, width: int) -> Traffic:
        """Written through, and no longer in L1."""
        sectors = np.unique(np.asarray(address) // SECTOR)
        found = Traffic(_requests(sectors, len(address), width))
        for sector in sectors.tolist():
            self.cached.pop(sector, None)
            self._count(found, sector)
        return found

    def _count(self, traffic: Traffic, sector: int) -> None:
        first = sector not in self.seen
        self.seen.add(sector)
        if first and not self._common(sector * SECTOR):
            traffic.dram += SECTOR
        else:
            traffic.l2 += SECTOR

    def _common(self, address: int) -> bool:
        at = (address >> 36) - 1
        return not 0 <= at < len(self.regions) or self.regions[at][1] - self.regions[at][0] <= COMMON


def _requests(sectors: Any, lanes: int, width: int) -> float:
    """128-byte lines of the warps' requests; at least what their width takes."""
    lines = len(np.unique(sectors // 4))
    return float(max(lines, -(-lanes * width // 128)))
