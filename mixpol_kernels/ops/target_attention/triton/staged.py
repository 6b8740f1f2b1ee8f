"""Launches of the staged kernels: activation units of any size, their batch statistics, and Dice in training.

How many launches there are follows from shapes alone, and nothing is read back from the device, so that a step can be
captured in a CUDA graph (dropout's seed is a number in it then).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from mixpol_kernels.library import INTERPRETING
from mixpol_kernels.ops.registry import Arguments
from mixpol_kernels.ops.target_attention.triton import staged_kernels as kernels
from mixpol_kernels.ops.target_attention.triton.rows import GRANULE, Tokens
from mixpol_kernels.ops.triton import devices, shared
from mixpol_kernels.ops.triton.parts import PART, Parts
from mixpol_kernels.ops.unit import ACTIVATIONS

MOST_ROWS = 1 << 18
"""Rows in scratch memory at a time: many, since each chunk costs a dozen launches."""
SCRATCH = 256 << 20
"""About the bytes of scratch memory."""
MOST_CANDIDATES = 1024
"""Candidates in scratch memory at a time."""
PROGRAMS = 2 if INTERPRETING else 264
"""About how many programs share a sum over all rows: fixed, so that bits do not depend on the machine."""
ACROSS = ACTIVATIONS.index("dice_row")
DICE = ACTIVATIONS.index("dice")
SUM_ROWS, SUM_COLUMNS = 16, 64
SOFTMAX = 1


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How the products are cut.

    Attributes:
        rows, units, depth: outputs, and terms at a time.
        back: rows of the backward's, which hold more in registers.
        columns: of D, of the tokens' gradients, which have two products each.
        sums: rows at a time of a sum over rows, whose outputs are blocks of `square` by `square`.
        warps, stages: `num_warps` and `num_stages` of Triton.
    """

    rows: int
    back: int
    units: int
    depth: int
    columns: int
    sums: int
    square: int
    warps: int
    stages: int


# By element (`devices.ELEMENTS`): within 99 KB of shared memory and the registers of every architecture, for any unit.
TILES = {
    "half": Tiles(rows=128, back=64, units=64, depth=64, columns=32, sums=64, square=64, warps=8, stages=2),
    "tf32x3": Tiles(rows=64, back=64, units=64, depth=16, columns=32, sums=16, square=64, warps=8, stages=2),
    "float32": Tiles(rows=64, back=64, units=64, depth=16, columns=32, sums=32, square=64, warps=8, stages=1),
}
INTERPRETED = Tiles(64, 64, 32, 32, 32, 64, 32, 1, 1)


class POOLED:
    """Of the kernels that multiply no matrices: tokens and columns at a time, and scores."""

    tile, columns, scores = (16, 32, 32) if INTERPRETING else (32, 64, 1024)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Granules g0 ... g0 + many - 1 with candidates c0 ... c0 + block - 1."""

    g0: int
    c0: int
    block: int
    many: int

    @property
    def items(self) -> int:
        return self.many * self.block

    @property
    def rows(self) -> int:
        return self.items * GRANULE


class Pass:
    """What one call's launches share: inputs as the kernels take them, packed weights, granules, scratch memory.

    Args:
        a: arguments of an op.
        hidden: number of its weights that are hidden layers.
        pad_to: zero tokens count behind each user's own, up to this length; -1 for none.
    """

    def __init__(self, a: Arguments, hidden: int, pad_to: int = -1) -> None:
        target, history = a.target, a.history
        self.width = target.shape[-1]
        self.users, self.candidates = target.shape[0], target.shape[1] if target.dim() == 3 else 1
        self.target = target.contiguous()
        self.history = history if history.stride(-1) == 1 or self.width == 1 else history.contiguous()
        self.units = [weight.shape[0] for weight in a.weights[:hidden]]
        self.biases, self.slopes = list(a.biases[:hidden]), [slope.contiguous() for slope in a.slopes or ()]
        self.activation = a.activation
        self.dtype = target.dtype
        queries, keys, differences, products = a.weights[0].float().split(self.width, 1)
        first = torch.stack([keys - differences, products, queries + differences]).to(self.dtype)
        self.first = [first, first.transpose(1, 2).contiguous()]
        self.deeper = [(weight.contiguous(), weight.t().contiguous()) for weight in a.weights[1:hidden]]
        self.tokens = Tokens(self.users, history.shape[:-1], a.offsets, a.lengths, a.mask, target.device)
        self.zeros = pad_to >= 0
        zeros = (pad_to - self.tokens.counts).clamp(min=0) if self.zeros else None
        self.granules = self.tokens.spans(GRANULE, weights=zeros)
        self.call, self.drop = _dropout(a.dropout, a.seed, *getattr(a, "candidate", (1, 0)))
        element = devices.elements(self.dtype)[0]
        self.tiles = INTERPRETED if INTERPRETING else TILES[element]
        self.align = devices.alignment(self.history)
        rows = self.history.stride(-2) // self.align
        padded = self.history.dim() == 3
        self.where = (self.tokens.positions, self.history.stride(0) // self.align, rows) if padded else (0, 0, rows)
        self.precision = {"PRECISION": "tf32x3" if element == "tf32x3" else "ieee"}
        self.options = {"num_warps": self.tiles.warps, "num_stages": self.tiles.stages}
        self.scratch: dict[str, Tensor] = {}
        self.room = self._rows_at_once()

    def chunks(self) -> Iterator[Chunk]:
        """All rows, a bounded number at a time."""
        slots, step = self.granules.fields.shape[0], max(self.tiles.rows, self.tiles.back) // GRANULE
        for c0 in range(0, self.candidates, MOST_CANDIDATES):
            block = min(MOST_CANDIDATES, self.candidates - c0)
            most = max(step, self.room // (GRANULE * block) // step * step)
            for g0 in range(0, slots, most):
                yield Chunk(g0, c0, block, -(-min(most, slots - g0) // step) * step)

    def _rows_at_once(self) -> int:
        each = sum(self.units) * (4 + 2 * self.dtype.itemsize) + 4 * max(self.units)
        return int(min(MOST_ROWS, max(SCRATCH // each, self.tiles.rows)))

    def most_rows(self) -> int:
        """Of the largest chunk."""
        return max((chunk.rows for chunk in self.chunks()), default=0)

    def take(self, name: str, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Scratch memory, the same in every chunk."""
        if name not in self.scratch or self.scratch[name].numel() < rows * columns:
            self.scratch[name] = self.target.new_empty((rows, columns), dtype=dtype)
        return self.scratch[name]

    def at(self, chunk: Chunk) -> tuple[int, int, int, int, int]:
        """g0, c0, block, slots and candidates of the kernels; those behind the chunk are out of sight."""
        slots = min(self.granules.fields.shape[0], chunk.g0 + chunk.many)
        return chunk.g0, chunk.c0, chunk.block, slots, self.candidates

    def product(self, rows: int) -> dict[str, Any]:
        """What kernels of a product are compiled and launched with."""
        return {"ROWS": rows, "UNITS": self.tiles.units, "DEPTH": self.tiles.depth, **self.precision, **self.options}

    def grid(self, columns: int, rows: int) -> tuple[int, int]:
        """Blocks of units, which share what they read, before tiles of rows."""
        return triton.cdiv(columns, self.tiles.units), triton.cdiv(rows, self.tiles.rows)

    def forward(
        self,
        chunk: Chunk,
        *,
        backward: bool = False,
        measured: bool = False,
        statistics: Tensor | None = None,
        out: tuple[Tensor, Tensor, Tensor, int] | None = None,
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """What the layers of a chunk are before and behind their activations; None where nobody asks for it.

        Args:
            chunk: rows.
            backward: all that the backward reads.
            measured: the last layer has no activation, but statistics.
            statistics: to merge its own to.
            out: weight and bias of the output layer, where scores go, and the normaliser.
        """
        befores: list[Tensor | None] = []
        afters: list[Tensor | None] = []
        units, tiles = self.units, self.tiles
        fields, total = self.granules.fields, self.granules.total
        source: Tensor | None = self.take("constants", chunk.items, units[0])
        at, index = self.at(chunk), self.tokens.index
        kernels.constants_kernel[self.grid(units[0], chunk.items)](
            self.target, fields, total, self.first[1][2], self.biases[0], source, *at,
            D=self.width, H=units[0], **self.product(tiles.rows),
        )  # fmt: skip
        for i, count in enumerate(units):
            last = i == len(units) - 1
            activated = not (last and measured)
            across = activated and self.activation == ACROSS
            scored = last and out is not None and not across and count <= tiles.units
            output = out[:3] if out is not None and scored else (None, None, None)
            wanted = activated and (not last or across or (out is not None and not scored))
            before = self.take(f"before {i}", chunk.rows, count) if backward or across else None
            after = self.take(f"after {i}", chunk.rows, count, self.dtype) if wanted else None
            slope = self.slopes[i] if self.slopes and activated else None
            norm = out[3] if scored and out is not None else 0
            weight, product = (self.first[1][0], self.first[1][1]) if i == 0 else (self.deeper[i - 1][1], None)
            kernels.layer_kernel[self.grid(count, chunk.rows)](
                self.target, self.history, index, fields, total, source, weight, product, self.biases[i],
                None if across else slope, *output[:2],
                before, None if across else after, output[2], statistics if last else None,
                *at, *self.where, *self.call,
                K=self.width if i == 0 else units[i - 1], H=count, FIRST=i == 0, LAYER=i,
                ACT=self.activation if activated and not across else 0, NORM=norm, **self.drop,
                ZEROS=self.zeros, ALIGN=self.align, **self.product(tiles.rows),
            )  # fmt: skip
            if across:
                kernels.across_kernel[self.grid(1, chunk.rows)[1:]](
                    fields, index, total, before, slope, after, *at, self.where[0], *self.call,
                    H=count, LAYER=i, **self.drop, ZEROS=self.zeros,
                    ROWS=tiles.rows, UNITS=tiles.units, **self.options,
                )  # fmt: skip
            if last and out is not None and not scored:
                kernels.score_kernel[self.grid(1, chunk.rows)[1:]](
                    fields, index, total, after, *out[:3], *at, self.where[0],
                    H=count, NORM=out[3], ROWS=tiles.rows, UNITS=tiles.units, **self.options,
                )  # fmt: skip
            befores.append(before)
            afters.append(after)
            source = after
        return befores, afters

    def backward(
        self, chunk: Chunk, befores: Sequence[Tensor | None], afters: Sequence[Tensor | None], end: End, sums: Sums,
        grad_target: Tensor | None, grad_history: Tensor | None,
    ) -> None:  # fmt: skip
        """Adds what a chunk gives to all gradients; without `grad_target`, to the last layer's slopes alone."""
        units, tiles = self.units, self.tiles
        fields, total, index = self.granules.fields, self.granules.total, self.tokens.index
        at, length, back = self.at(chunk), self.where[0], triton.cdiv(chunk.rows, tiles.back)
        above = weight = None
        for i in reversed(range(len(units))):
            count, last = units[i], i == len(units) - 1
            kind = end.kind if last else 0
            across = self.activation == ACROSS and kind != MOMENTS
            activation = 0 if kind == MOMENTS else self.activation
            slope = self.slopes[i] if self.slopes and kind != MOMENTS else None
            signals = self.take(f"signals {i}", chunk.rows, count, self.dtype) if grad_target is not None else None
            raw = self.take("raw", chunk.rows, max(units)) if across else None
            each = self.take("items", chunk.items, count) if i == 0 and grad_target is not None else None
            kernels.signal_kernel[triton.cdiv(count, tiles.units), back](
                fields, index, total, *(end.inputs() if last else (None,) * 4), above, weight,
                befores[i], afters[i] if across else None, slope, end.moments if last else None,
                signals, raw, sums.partials[i], sums.scalars if last else None, None if across else each,
                *at, length, *self.call,
                NEXT=1 if last else units[i + 1], H=count, LAYER=i, LAST=kind, NORM=end.normalize if last else 0,
                ACT=activation, **self.drop, ZEROS=self.zeros, **self.product(tiles.back),
            )  # fmt: skip
            if grad_target is None:
                return
            if across:
                kernels.across_backward_kernel[(back,)](
                    fields, index, total, befores[i], raw, slope, signals, sums.partials[i], each, *at, length,
                    H=count, ZEROS=self.zeros, ROWS=tiles.back, UNITS=tiles.units, **self.options,
                )  # fmt: skip
            if i:
                self.outer(chunk, 0, signals, afters[i - 1], sums.deeper[i - 1], count, units[i - 1])
                above, weight = signals, self.deeper[i - 1][0]
        self.outer(chunk, 1, signals, None, sums.tokens, units[0], self.width)
        self.outer(chunk, 2, each, None, sums.targets, units[0], self.width)
        terms = self.take("terms", chunk.items, self.width)
        sizes = {"H": units[0], "D": self.width, "ROWS": tiles.back, "COLUMNS": tiles.columns, "DEPTH": tiles.depth}
        columns = triton.cdiv(self.width, tiles.columns)
        kernels.tokens_kernel[columns, chunk.many * GRANULE // tiles.back](
            self.target, self.history, index, fields, total, signals, self.first[0][0], self.first[0][1],
            end.weights if end.grad_pooled is not None else None, end.grad_pooled, grad_history, terms,
            *at, *self.where, ADD=chunk.c0 > 0, ALIGN=self.align, **sizes, **self.precision, **self.options,
        )  # fmt: skip
        kernels.targets_kernel[columns, triton.cdiv(chunk.items, tiles.back)](
            fields, total, each, self.first[0][2], terms, *at, **sizes, **self.precision, **self.options
        )
        kernels.chain_kernel[(chunk.items, triton.cdiv(self.width, POOLED.columns))](
            fields, total, terms, grad_target, *at[:3], chunk.many, self.candidates,
            D=self.width, COLUMNS=POOLED.columns, num_warps=1,
        )  # fmt: skip

    def outer(
        self, chunk: Chunk, kind: int, signals: Tensor | None, source: Tensor | None, slabs: Tensor, units: int, k: int
    ) -> None:
        """Adds a chunk's products of signals and inputs to the slabs of a weight's gradient."""
        tiles = self.tiles
        blocks = triton.cdiv(units, tiles.square) * triton.cdiv(k, tiles.square)
        last = triton.cdiv(chunk.items if kind == 2 else chunk.rows, tiles.sums)
        kernels.outer_kernel[(blocks, min(slabs.shape[0], last))](
            self.target, self.history, self.tokens.index, self.granules.fields, self.granules.total,
            signals, source, slabs, *self.at(chunk), *self.where, last, slabs.shape[1],
            H=units, K=k, KIND=kind, ZEROS=self.zeros, ALIGN=self.align,
            ROWS=tiles.sums, UNITS=tiles.square, COLUMNS=tiles.square, **self.precision, **self.options,
        )  # fmt: skip


WEIGHTS, MOMENTS = 1, 2


@dataclasses.dataclass
class End:
    """Where the gradients of the last layer come from.

    Attributes:
        kind: WEIGHTS of the tokens, MOMENTS of the pre-activations, or their sum for both.
        weights, gradients, means: of the tokens, [tokens, M]; of them; and Σ of the products a user, of a softmax.
        out: weight of the output layer.
        grad_pooled: as the target.
        moments: [4, H], as `signal_kernel` takes them.
    """

    kind: int
    normalize: int = 0
    weights: Tensor | None = None
    gradients: Tensor | None = None
    means: Tensor | None = None
    out: Tensor | None = None
    grad_pooled: Tensor | None = None
    moments: Tensor | None = None

    def inputs(self) -> tuple[Tensor | None, ...]:
        """The first of `signal_kernel`."""
        return self.weights, self.gradients, self.means, self.out


class Sums:
    """Gradients of parameters in the making: slabs that programs own, and that are added in order at the end.

    Attributes:
        partials: of each layer, [tiles, 5 H]: bias, three rows of slopes, output weight.
        scalars: [tiles, 1] of the output bias; None without an output layer.
        tokens, targets, deeper: of the weights.
    """

    def __init__(self, layers: Pass, *, out: bool = True, slopes_only: bool = False) -> None:
        tiles = triton.cdiv(layers.most_rows(), layers.tiles.back)
        zeros, width, units = layers.target.new_zeros, layers.width, layers.units
        self.partials = [zeros((tiles, 5 * count), dtype=torch.float32) for count in units]
        self.scalars = zeros((tiles, 1), dtype=torch.float32) if out else None
        if slopes_only:
            return

        def slabs(count: int, k: int, several: int = 1) -> Tensor:
            square = layers.tiles.square
            blocks = triton.cdiv(count, square) * triton.cdiv(k, square)
            found: Tensor = zeros((-(-PROGRAMS // blocks), several * count * k), dtype=torch.float32)
            return found

        self.tokens, self.targets = slabs(units[0], width, 2), slabs(units[0], width)
        self.deeper = [slabs(count, below) for below, count in itertools.pairwise(units)]

    def of_layer(self, i: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of a layer: gradients of bias, [rows, H] of slopes, and of the output weight."""
        found = total(self.partials[i]).view(5, -1)
        return found[0], found[1 : 1 + rows], found[4]

    def weights(self) -> list[Tensor]:
        """Gradients of the hidden layers' weights."""
        units = self.partials[0].shape[1] // 5
        tokens, products = total(self.tokens).view(2, units, -1)
        targets = total(self.targets).view(units, -1)
        first = torch.cat([targets, tokens, targets - tokens, products], dim=1)
        sizes = [partials.shape[1] // 5 for partials in self.partials]
        return [first, *(total(slabs).view(size, -1) for slabs, size in zip(self.deeper, sizes[1:], strict=True))]


def total(slabs: Tensor) -> Tensor:
    rows, columns = slabs.shape
    sums: Tensor = slabs.new_empty((columns,))
    shared.sum_slabs[(triton.cdiv(columns, SUM_COLUMNS),)](
        slabs, sums, rows, columns, columns, ROWS=SUM_ROWS, COLUMNS=SUM_COLUMNS, num_warps=4
    )
    return sums


def _dropout(
    dropout: float, seed: Tensor | None, step: int, shift: int
) -> tuple[tuple[int, int, int], dict[str, float]]:
    """What the kernels drop by: the key of the call, rows of targets as `step` times theirs plus `shift`; constants.

    The seed is on the CPU, so that nothing waits for the device.
    """
    if not dropout or seed is None:
        return (0, step, shift), {"THRESHOLD": 0, "SCALE": 1.0}
    value = int(seed)
    key = _mix(_mix(value & 0xFFFFFFFF ^ 0x9E3779B9) ^ (value >> 32 & 0xFFFFFFFF))
    signed = key - (1 << 32) if key >> 31 else key  # always an int32 for the compiler
    return (signed, step, shift), {"THRESHOLD": int(dropout * 2**24), "SCALE": 1.0 / (1.0 - dropout)}


def _mix(x: int) -> int:
    """lowbias32, as in csrc/math/dropout.h."""
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def pieces(tokens: Tokens) -> tuple[Tensor, Parts | None]:
    """Histories as the kernels take them that give each a program, and long ones several: spans, and how they add up.

    None where each user has one.
    """
    if tokens.positions <= PART:
        users, nothing = torch.arange(tokens.users, device=tokens.counts.device), torch.zeros_like(tokens.counts)
        return torch.stack([users, tokens.begins, nothing, tokens.counts, nothing], 1), None
    spans = tokens.spans(PART, empty=True)
    users, starts, _, kept, _ = spans.fields.unbind(1)
    return spans.fields, Parts(users, starts, kept, spans.first)


def forward(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """`mixpol::target_attention_fwd`."""
    target, history, normalize = a.target, a.history, a.normalize
    layers = Pass(a, len(a.weights) - 1)
    tokens = layers.tokens
    pooled = target.new_empty(target.shape)
    shape = (*history.shape[:-1], layers.candidates)
    weights = (target.new_zeros if tokens.pads else target.new_empty)(shape, dtype=torch.float32)
    if pooled.numel():
        with torch.cuda.device_of(target):
            out = (a.weights[-1].contiguous(), a.biases[-1], weights, normalize)
            for chunk in layers.chunks():
                layers.forward(chunk, out=out)
            if normalize == SOFTMAX:
                kernels.softmax_kernel[(layers.users * layers.candidates,)](
                    weights, tokens.begins, tokens.counts, tokens.index, layers.candidates,
                    TILE=POOLED.scores, num_warps=4,
                )  # fmt: skip
            spans, parts = pieces(tokens)
            to = pooled
            if parts:
                to = weights.new_empty((len(spans), layers.candidates, layers.width))
            kernels.pool_kernel[(len(spans) * layers.candidates, triton.cdiv(layers.width, POOLED.columns))](
                weights, layers.history, tokens.index, spans, to, layers.candidates, *layers.where,
                D=layers.width, ALIGN=layers.align, TILE=POOLED.tile, COLUMNS=POOLED.columns, num_warps=4,
            )  # fmt: skip
            if parts:
                parts.combine(to, pooled)
    none = target.new_empty((0,), dtype=torch.uint8)
    return pooled, weights if a.save_attention else target.new_empty((0,), dtype=torch.float32), none


def from_weights(layers: Pass, a: Arguments) -> End:
    """The end of a backward that begins with the weights of the tokens."""
    weights, tokens = a.attention.contiguous(), layers.tokens
    grad_pooled = a.grad_pooled.contiguous()
    grad_weights = None if a.grad_attention is None else a.grad_attention.contiguous()
    spans, parts = pieces(tokens)
    gradients = torch.empty_like(weights)
    means = terms = None
    if a.normalize == SOFTMAX:
        means = terms = weights.new_empty((layers.users, layers.candidates))
        if parts:
            terms = weights.new_empty((len(spans), layers.candidates, 1))
    kernels.upstream_kernel[(len(spans) * layers.candidates,)](
        grad_pooled, grad_weights, weights, layers.history, tokens.index, spans, gradients, terms,
        layers.candidates, *layers.where,
        D=layers.width, ALIGN=layers.align, TILE=POOLED.tile, COLUMNS=POOLED.columns, num_warps=4,
    )  # fmt: skip
    if parts and means is not None and terms is not None:
        parts.combine(terms, means)
    out = a.weights[-1].contiguous()
    return End(WEIGHTS, a.normalize, weights, gradients, means, out, grad_pooled)


def results(layers: Pass, a: Arguments) -> tuple[Tensor, Tensor]:
    """Where the gradients of targets, in float32, and tokens go."""
    rows = (layers.users, layers.candidates, layers.width)
    several = layers.candidates > MOST_CANDIDATES
    fill = a.history.new_zeros if layers.tokens.pads else a.history.new_empty
    grad_history = fill(a.history.shape, dtype=torch.float32 if several else a.history.dtype)
    return a.target.new_zeros(rows, dtype=torch.float32), grad_history


def backward(a: Arguments) -> tuple[Tensor, Tensor, list[Tensor]]:
    """`mixpol::target_attention_bwd`, of arguments that were checked."""
    layers = Pass(a, len(a.weights) - 1)
    grad_target, grad_history = results(layers, a)
    if not a.target.numel() or not a.history.numel():
        grad_history.zero_()
        parameters = [torch.zeros_like(p) for p in (*a.weights, *a.biases, *a.slopes)]
        return finished(a, grad_target, grad_history, parameters, parameters)
    with torch.cuda.device_of(a.target):
        sums, end = Sums(layers), from_weights(layers, a)
        for chunk in layers.chunks():
            layers.backward(chunk, *layers.forward(chunk, backward=True), end, sums, grad_target, grad_history)
        rows = [slope.numel() // slope.shape[-1] for slope in a.slopes] or [0] * len(layers.units)
        found = [sums.of_layer(i, count) for i, count in enumerate(rows)]
        assert sums.scalars is not None
        weights = [*sums.weights(), found[-1][2]]
        biases = [*(bias for bias, _, _ in found), total(sums.scalars)]
        slopes = [slope for _, slope, _ in found] if a.slopes else []
    parameters = [*weights, *biases, *slopes]
    return finished(a, grad_target, grad_history, parameters, [*a.weights, *a.biases, *a.slopes])


def finished(
    a: Arguments, grad_target: Tensor, grad_history: Tensor, parameters: Sequence[Tensor], like: Sequence[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients as an op returns them: shapes and dtypes of what they belong to, each in memory of its own."""
    own = [found.to(p.dtype).view(p.shape).clone() for found, p in zip(parameters, like, strict=True)]
    return grad_target.to(a.target.dtype).view(a.target.shape), grad_history.to(a.history.dtype), own
