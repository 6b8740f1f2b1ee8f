"""Seeded random inputs for `unit_statistics`, as ragged rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.ops.target_attention._statistics.api import unit_statistics
from mixpol_kernels.ops.unit import BLOCKS
from mixpol_kernels.testing.inputs import rounded_once
from mixpol_kernels.testing.layouts import Placement, place

LISTS = ("weights", "biases", "slopes")


@dataclass(frozen=True)
class Config:
    """One random call.

    Attributes:
        layout: one of `layouts.LAYOUTS`.
        counts: tokens per user.
        width: D.
        hidden: layers H_1, ..., the last one measured.
        candidates: M for a target [B, M, D]; None for [B, D].
        pads: `pad_to` is so much more than the longest history; None: no pads.
    """

    op: str = "unit_statistics"
    has_unit: bool = False
    layout: str = "jagged"
    counts: tuple[int, ...] = (3, 0, 70, 1, 48)
    width: int = 10
    hidden: tuple[int, ...] = (36, 20)
    candidates: int | None = None
    activation: str = "relu"
    blocks: tuple[str, ...] = BLOCKS
    dropout: float = 0.0
    pads: int | None = None
    index_dtype: torch.dtype = torch.int64


@dataclass(frozen=True)
class Case:
    """Inputs in ragged form: "target", "history" [N, D], "weights[i]", "biases[i]", "slopes[i]"; float32.

    `grad_out` is [2, H], for mean and variance.
    """

    config: Config
    floats: dict[str, Tensor]
    grad_out: Tensor

    @property
    def counts(self) -> tuple[int, ...]:
        return self.config.counts

    def place(self, generator: torch.Generator, layout: str | None = None, **options: Any) -> Placement:
        """The rows in the layout of the config, or in another one."""
        options.setdefault("index_dtype", self.config.index_dtype)
        return place(self.counts, layout or self.config.layout, generator, **options)

    def arguments(
        self,
        where: Placement,
        dtype: torch.dtype = torch.float32,
        view: Callable[[str, Tensor], Tensor] | None = None,
        requires_grad: bool = False,
    ) -> dict[str, Any]:
        """Keyword arguments of the public function; `view` maps (name, tensor) to another view of it."""
        view = view or (lambda _, tensor: tensor)
        arguments: dict[str, Any] = {name: view(name, tensor) for name, tensor in where.arguments.items()}
        arguments |= {prefix: [] for prefix in LISTS}
        for name, tensor in self.floats.items():
            tensor = where.spread(tensor) if name == "history" else tensor.clone()
            leaf = view(name, tensor.to(dtype)).detach().requires_grad_(requires_grad)
            prefix = name.split("[")[0]
            if prefix in LISTS:
                arguments[prefix].append(leaf)
            else:
                arguments[name] = leaf
        config = self.config
        arguments |= {"activation": config.activation, "blocks": config.blocks, "dropout": config.dropout, "seed": 77}
        arguments["pad_to"] = None if config.pads is None else max(self.counts, default=0) + config.pads
        return arguments

    def call(self, arguments: dict[str, Any], backend: str = "auto") -> Tensor:
        """Mean and variance, [2, H]."""
        found = unit_statistics(**arguments, backend=backend)
        return torch.stack([found.mean, found.variance])

    def run(
        self,
        backend: str,
        where: Placement,
        dtype: torch.dtype = torch.float32,
        view: Callable[[str, Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Forward and backward: "mean", "variance" and "grad <input>", the history's in ragged form."""
        arguments = self.arguments(where, dtype, view, requires_grad=True)
        out = self.call(arguments, backend)
        grad_out = self.grad_out.to(dtype)
        out.backward(grad_out if view is None else view("grad_out", grad_out))
        results = {"mean": out[0].detach(), "variance": out[1].detach()}
        for name in self.floats:
            prefix, _, index = name.partition("[")
            grad = arguments[prefix][int(index[:-1])].grad if index else arguments[name].grad
            if name == "history":
                assert not where.pads(grad).count_nonzero(), "gradient at pads"
                grad = where.gather(grad)
            results[f"grad {name}"] = grad
        return results

    def jitter(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Case:
        """The same problem a few units in the last place of `dtype` away."""
        eps = 2 * torch.finfo(dtype).eps
        floats = {n: t * (1 + eps * torch.randn(t.shape, generator=generator)) for n, t in self.floats.items()}
        return replace(self, floats=floats)

    def rounded_once(self, generator: torch.Generator) -> Case:
        """Every float of it one rounding to float32 away, in float64."""
        floats = {name: rounded_once(t, generator) for name, t in self.floats.items()}
        return replace(self, floats=floats, grad_out=rounded_once(self.grad_out, generator))


def make(config: Config, generator: torch.Generator) -> Case:
    """Draws a case."""

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    batch = (len(config.counts), *(() if config.candidates is None else (config.candidates,)))
    floats = {"target": normal(*batch, config.width), "history": normal(sum(config.counts), config.width)}
    widths = (len(config.blocks) * config.width, *config.hidden)
    for i, (inputs, units) in enumerate(itertools.pairwise(widths)):
        floats[f"weights[{i}]"] = normal(units, inputs, scale=inputs**-0.5)
        floats[f"biases[{i}]"] = normal(units, scale=0.5)
    for i, units in enumerate(config.hidden[:-1]):
        if config.activation == "prelu":
            floats[f"slopes[{i}]"] = normal(units, scale=0.5)
        if config.activation == "dice":
            floats[f"slopes[{i}]"] = normal(3, units)
        if config.activation == "dice_row":
            floats[f"slopes[{i}]"] = torch.stack([normal(units), 0.01 + torch.rand(units, generator=generator)])
    return Case(config, floats, normal(2, config.hidden[-1]))
