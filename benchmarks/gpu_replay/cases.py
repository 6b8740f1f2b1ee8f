"""Calls of public ops that launch every shipped configuration: what models use most, and what asks most of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import mixpol_kernels as mk
from gpu_replay.capture import ARCHITECTURE, Launch, launches
from mixpol_kernels.ops.triton import devices
from mixpol_models.bench.tune_trial import FOLDERS, Entry

USERS, LENGTH = 4096, 200
# Longer than what one program takes: cut into parts.
LONG_USERS, LONG_LENGTH = 32, 4096
# Of frameworks and papers, beside the sizes that have configurations.
POPULAR = ((64, (80, 40)), (64, (200, 80)), (64, (256, 128)))


@dataclass(frozen=True)
class Case:
    """One op at one size: forward and backward, whether their time is predicted or only their code looked at, and
    whether the kernels may refuse it."""

    op: str
    element: str
    width: int
    units: tuple[int, ...]
    variant: str
    users: int = USERS
    length: int = LENGTH
    timed: bool = True
    optional: bool = False

    @property
    def name(self) -> str:
        """As the record has it: "target_attention, half, 64 : 64, relu"."""
        shape = f"{self.width} : {' x '.join(map(str, self.units))}" if self.units else str(self.width)
        return f"{self.op}, {self.element}, {shape}, {self.variant}"

    def launches(self) -> list[Launch]:
        """What forward and backward launch."""
        forward, backward = self.directions()
        return forward + backward

    def directions(self) -> tuple[list[Launch], list[Launch]]:
        """What the forward launches, and what the backward does."""
        with mock.patch.object(devices, "elements", return_value=(self.element,)), launches() as found:
            output = _CALLS[self.op](_Inputs(self), self)
            forward = len(found)
            output.backward(torch.empty_like(output))  # type: ignore[no-untyped-call]
        return found[:forward], found[forward:]


class _Inputs:
    """Tensors whose floating-point values nobody reads, and integers that count."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.dtype = torch.bfloat16 if case.element == "half" else torch.float32
        self.generator = torch.Generator().manual_seed(0)
        self.lengths = torch.randint(1, case.length + 1, (case.users,), generator=self.generator)

    def floats(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, requires_grad=True)

    def integers(self, end: int, *shape: int) -> Tensor:
        return torch.randint(0, end, shape, generator=self.generator)

    def layout(self, kind: str) -> tuple[dict[str, Any], tuple[int, ...]]:
        """What says which tokens are whose, and the leading sizes of the tokens."""
        padded = (self.case.users, self.case.length)
        if kind == "jagged":
            offsets = torch.nn.functional.pad(self.lengths.cumsum(0), (1, 0))
            return {"offsets": offsets}, (int(offsets[-1]),)
        if kind == "mask":
            return {"mask": torch.arange(self.case.length) < self.lengths[:, None]}, padded
        return {"lengths": self.lengths}, padded

    def unit(self, activation: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        weights, biases, slopes, columns = [], [], [], 4 * self.case.width
        for rows in (*self.case.units, 1):
            weights.append(self.floats(rows, columns))
            biases.append(self.floats(rows))
            columns = rows
        if activation in ("prelu", "dice"):
            slopes = [self.floats(*((3, u) if activation == "dice" else (u,))) for u in self.case.units]
        return weights, biases, slopes


# Of each op: activation, normalisation, layout, candidates; gate, layout; candidates, layout.
_UNIT = {
    "relu": ("relu", "none", "lengths", 1),
    "relu, jagged": ("relu", "none", "jagged", 1),
    "dice, softmax, mask": ("dice", "softmax", "mask", 1),
    "dice, softmax, mask, parts": ("dice", "softmax", "mask", 1),
    "prelu, sigmoid, candidates": ("prelu", "sigmoid", "lengths", 8),
}
_FUSION = {"product": ("product", "lengths"), "full, extra, mask": ("full", "mask")}
_DOT = {"one target": (1, "lengths"), "targets, mask": (32, "mask"), "targets, mask, parts": (32, "mask")}


def _unit(inputs: _Inputs, case: Case) -> Tensor:
    activation, normalize, kind, candidates = _UNIT[case.variant]
    where, tokens = inputs.layout(kind)
    weights, biases, slopes = inputs.unit(activation)
    target = (case.users, candidates, case.width) if candidates > 1 else (case.users, case.width)
    found = mk.target_attention(
        inputs.floats(*target), inputs.floats(*tokens, case.width), weights, biases, activation=activation,
        slopes=slopes, normalize=normalize, backend="triton", **where,
    )  # fmt: skip
    assert isinstance(found, Tensor)
    return found


def _fusion(inputs: _Inputs, case: Case) -> Tensor:
    gate, kind = _FUSION[case.variant]
    where, tokens = inputs.layout(kind)
    width, extra = case.width, gate == "full"
    return mk.polarity_fusion(
        inputs.floats(case.users, width), inputs.floats(*tokens, width), inputs.integers(2, *tokens),
        inputs.floats(2, width),
        gate=(inputs.floats(width, 3 * width if extra else width), inputs.floats(width), inputs.floats(width, width)),
        extra_ids=inputs.integers(16, *tokens) if extra else None,
        extra_table=inputs.floats(16, width) if extra else None, backend="triton", **where,
    )  # fmt: skip


def _mixed(inputs: _Inputs, case: Case) -> Tensor:
    where, tokens = inputs.layout("lengths")
    weights, biases, _ = inputs.unit("relu")
    width = case.width
    gate = (inputs.floats(width, width), inputs.floats(width), inputs.floats(width, width))
    found = mk.mixed_polarity_attention(
        inputs.floats(case.users, width), mk.History(inputs.integers(100_000, *tokens), lengths=where["lengths"]),
        inputs.integers(2, *tokens), inputs.floats(100_000, width), mk.ActivationUnit(weights, biases, "relu"),
        mk.FusionParameters("tapf", inputs.floats(2, width), gate), backend="triton",
    )  # fmt: skip
    assert isinstance(found, Tensor)
    return found


def _dot(inputs: _Inputs, case: Case) -> Tensor:
    candidates, kind = _DOT[case.variant]
    where, tokens = inputs.layout(kind)
    target = (case.users, candidates, case.width) if candidates > 1 else (case.users, case.width)
    found = mk.dot_target_attention(
        inputs.floats(*target), inputs.floats(*tokens, case.width), backend="triton", **where
    )
    assert isinstance(found, Tensor)
    return found


def _dice_in_training(inputs: _Inputs, case: Case) -> Tensor:
    from mixpol_kernels.ops.target_attention._dice.api import dice_attention

    where, tokens = inputs.layout("lengths")
    weights, biases, _ = inputs.unit("relu")
    (units,) = case.units
    found = dice_attention(
        inputs.floats(case.users, case.width), inputs.floats(*tokens, case.width), weights, biases,
        inputs.floats(units), pad_to=case.length, backend="triton", **where,
    )  # fmt: skip
    return found.pooled


_CALLS: dict[str, Callable[[_Inputs, Case], Tensor]] = {
    "target_attention": _unit,
    "polarity_fusion": _fusion,
    "dot_target_attention": _dot,
    "mixed_polarity_attention": _mixed,
    "dice_attention": _dice_in_training,
}
_VARIANTS: dict[str, list[str]] = {
    "target_attention": list(_UNIT),
    "polarity_fusion": list(_FUSION),
    "dot_target_attention": list(_DOT),
}


def shipped(architecture: str = ARCHITECTURE) -> dict[str, list[Entry]]:
    """By op, the configurations on file."""
    return {op: [Entry(op, name) for name in devices.shipped(folder, architecture)] for op, folder in FOLDERS.items()}


def served() -> set[str]:
    """The configurations that an op can launch, those of sizes that have both directions, as `Launch` names them."""
    found = set()
    for op, entries in shipped().items():
        sizes = [(e.element, e.width, e.units) for e in entries]
        found |= {f"{op}/{e.name}" for e in entries if sizes.count((e.element, e.width, e.units)) == 2}
    return found


def cases() -> Iterator[Case]:
    """Every op at every shipped size in every variant, the first of which is timed; then what else people use."""
    for op, entries in shipped().items():
        sizes = [(e.element, e.width, e.units) for e in entries]
        for element, width, units in dict.fromkeys(s for s in sizes if sizes.count(s) == 2):  # both directions
            for variant in _VARIANTS[op]:
                users, length = (LONG_USERS, LONG_LENGTH) if "parts" in variant else (USERS, LENGTH)
                timed = variant == _VARIANTS[op][0]
                yield Case(op, element, width, units, variant, users, length, timed)
    for element in ("half", "float32"):
        yield Case("mixed_polarity_attention", element, 64, (64,), "ids", timed=False)
        yield Case("dice_attention", element, 64, (64,), "training", optional=True)
        for width, units in POPULAR:
            if units not in {e.units for e in shipped()["target_attention"]}:
                yield Case("target_attention", element, width, units, "relu", optional=True)
