"""Seeded random inputs for `dot_target_attention`, as ragged rows, and its formula as loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import mixpol_kernels
from mixpol_kernels.testing.inputs import rounded_once
from mixpol_kernels.testing.layouts import Placement, place

WEIGHTS = ("w_q", "w_k", "w_v", "w_o")


@dataclass(frozen=True)
class Config:
    """One random call.

    Attributes:
        layout: one of `layouts.LAYOUTS`.
        counts: tokens per user.
        width: D.
        attention: A; None for no projections at all.
        outputs: O of w_o.
        heads: H.
        candidates: M for a target [B, M, D]; None for [B, D].
        scale: of the dot products; None for the default.
        top_k: tokens that are attended to; None for all.
        only: the projections that are there; None for all of them.
        spread: factor of the query's values: how peaked the softmax is.
    """

    op: str = "dot_target_attention"
    has_unit: bool = False
    layout: str = "jagged"
    counts: tuple[int, ...] = (5, 0, 37, 64, 1, 130, 16)
    width: int = 16
    attention: int | None = 12
    outputs: int = 9
    heads: int = 1
    candidates: int | None = None
    scale: float | None = None
    top_k: int | None = None
    only: tuple[str, ...] | None = None
    spread: float = 1.0
    index_dtype: torch.dtype = torch.int64

    def weights(self) -> dict[str, tuple[int, int]]:
        """Shapes of the projections that are there."""
        if self.attention is None:
            return {}
        inner = self.attention
        value = inner if self.only is None or "w_v" in self.only else self.width
        shapes = dict.fromkeys(WEIGHTS[:3], (inner, self.width)) | {"w_o": (self.outputs, value)}
        return {n: s for n, s in shapes.items() if self.only is None or n in self.only}


@dataclass(frozen=True)
class Case:
    """Inputs in ragged form: "target", "history" [N, D] and projections, float32; `grad_out` is [B(, M), O]."""

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
        for name, tensor in self.floats.items():
            tensor = where.spread(tensor) if name == "history" else tensor.clone()
            arguments[name] = view(name, tensor.to(dtype)).detach().requires_grad_(requires_grad)
        return arguments | {"num_heads": self.config.heads, "scale": self.config.scale, "top_k": self.config.top_k}

    def call(self, arguments: dict[str, Any], backend: str = "auto", **more: Any) -> Any:
        """The public function on `arguments`."""
        return mixpol_kernels.dot_target_attention(**arguments, backend=backend, **more)

    def run(
        self,
        backend: str,
        where: Placement,
        dtype: torch.dtype = torch.float32,
        view: Callable[[str, Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Forward and backward: "out" and "grad <input>", the history's in ragged form; its pads must be zeros."""
        arguments = self.arguments(where, dtype, view, requires_grad=True)
        out = self.call(arguments, backend)
        grad_out = self.grad_out.to(dtype)
        out.backward(grad_out if view is None else view("grad_out", grad_out))
        results = {"out": out.detach()}
        for name in self.floats:
            grad = arguments[name].grad
            if name == "history":
                assert not where.pads(grad).count_nonzero(), "gradient at pads"
                grad = where.gather(grad)
            results[f"grad {name}"] = grad
        return results

    def take(self, users: Sequence[int]) -> Case:
        """These users only, in this order."""
        starts = [sum(self.counts[:b]) for b in range(len(self.counts))]
        tokens = [starts[b] + i for b in users for i in range(self.counts[b])]
        floats = {**self.floats, "target": self.floats["target"][list(users)]}
        floats["history"] = self.floats["history"][torch.tensor(tokens, dtype=torch.int64)]
        config = replace(self.config, counts=tuple(self.counts[b] for b in users))
        return Case(config, floats, self.grad_out[list(users)])

    def jitter(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Case:
        """The same problem a few units in the last place of `dtype` away."""
        eps = 2 * torch.finfo(dtype).eps
        floats = {n: t * (1 + eps * torch.randn(t.shape, generator=generator)) for n, t in self.floats.items()}
        return replace(self, floats=floats)

    def rounded_once(self, generator: torch.Generator) -> Case:
        """Every float of it one rounding to float32 away, in float64."""
        floats = {name: rounded_once(t, generator) for name, t in self.floats.items()}
        return replace(self, floats=floats, grad_out=rounded_once(self.grad_out, generator))


# Two scores at the edge of the best k that are closer than this may be told apart by rounding.
_EDGE = 1e-4


def make(config: Config, generator: torch.Generator) -> Case:
    """Draws a case, with `top_k` one whose choice does not hang on rounding."""
    for _ in range(200):
        case = _draw(config, generator)
        if config.top_k is None or edge(case, config.top_k) > _EDGE:
            return case
    raise RuntimeError(f"no inputs found for {config} whose best tokens are clear")


def edge(case: Case, top_k: int) -> float:
    """How much the last chosen weight of a row exceeds the next, at least, relative to it."""
    weights, start, closest = formula(replace(case, config=replace(case.config, top_k=None)))[1], 0, torch.inf
    for count in case.counts:
        if count > top_k and weights.shape[1:].numel():
            best = weights[start : start + count].topk(top_k + 1, 0).values
            closest = min(closest, float((1 - best[top_k] / best[top_k - 1]).min()))
        start += count
    return closest


def _draw(config: Config, generator: torch.Generator) -> Case:

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    batch = (len(config.counts), *(() if config.candidates is None else (config.candidates,)))
    floats = {
        "target": normal(*batch, config.width, scale=config.spread),
        "history": normal(sum(config.counts), config.width),
    }
    for name, shape in config.weights().items():
        floats[name] = normal(*shape, scale=shape[1] ** -0.5)
    outputs = floats["w_o"].shape[0] if "w_o" in floats else floats["w_v"].shape[0] if "w_v" in floats else config.width
    return Case(config, floats, normal(*batch, outputs))


def formula(case: Case) -> tuple[Tensor, Tensor]:
    """Output, and attention weights [N, M, H], as loops over users, candidates and heads in float64."""
    config, floats = case.config, {n: t.double() for n, t in case.floats.items()}
    target = floats["target"] if config.candidates is not None else floats["target"][:, None]

    def project(rows: Tensor, name: str) -> Tensor:
        return rows @ floats[name].T if name in floats else rows

    outputs, weights, start = [], [], 0
    for b, count in enumerate(case.counts):
        x = floats["history"][start : start + count]
        start += count
        keys, values = project(x, "w_k").chunk(config.heads, 1), project(x, "w_v").chunk(config.heads, 1)
        scale = keys[0].shape[1] ** -0.5 if config.scale is None else config.scale
        per_candidate = torch.zeros(count, target.shape[1], config.heads, dtype=torch.float64)
        for m in range(target.shape[1]):
            queries = project(target[b, m], "w_q").chunk(config.heads)
            heads = []
            for h in range(config.heads):
                scores = scale * (keys[h] @ queries[h])
                e = (scores - scores.max()).exp() if count else scores
                if config.top_k is not None:
                    best = sorted(range(count), key=lambda i, s=scores: (-float(s[i]), i))
                    e[best[config.top_k :]] = 0
                per_candidate[:, m, h] = e / e.sum()
                heads.append(per_candidate[:, m, h] @ values[h])
            outputs.append(project(torch.cat(heads), "w_o"))
        weights.append(per_candidate)
    out = torch.stack(outputs) if outputs else torch.zeros(0, case.grad_out.shape[-1], dtype=torch.float64)
    none = torch.zeros(0, target.shape[1], config.heads, dtype=torch.float64)
    return out.reshape(case.grad_out.shape), torch.cat([none, *weights])
