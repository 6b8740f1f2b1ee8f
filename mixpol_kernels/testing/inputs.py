"""Seeded random inputs for every op, kept as ragged rows that run in any layout, dtype and backend."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import mixpol_kernels
from mixpol_kernels.ops.mixed_polarity_attention.flat import bundled
from mixpol_kernels.ops.unit import BLOCKS
from mixpol_kernels.testing.layouts import Placement, place
from mixpol_kernels.testing.oracle import kink_distance

OPS = ("polarity_embedding", "polarity_fusion", "target_attention", "mixed_polarity_attention")
# A rectifier's gradient jumps at 0: no hidden unit may come so close that rounding decides its side.
_KINK_MARGIN = 32 * torch.finfo(torch.float32).eps
_JITTER = 2.0**-14


@dataclass(frozen=True)
class Config:
    """Shape and options of one random call. Options that an op lacks are ignored.

    Attributes:
        op: one of OPS.
        layout: one of `layouts.LAYOUTS`.
        counts: tokens per user; None draws them from 0 ... length, with an empty and a full row among them.
        batch, length: users B and longest row L, when `counts` is None.
        width: D.
        hidden: hidden layers H_1, ...
        candidates: M for a target [B, M, D] where the op takes one; None for [B, D].
        id_dtype: of item ids and polarities; index_dtype: of offsets and lengths.
        items, n_polarity: rows of the tables.
        dropout: of hidden units; seed: of their dropout, the same in every call.
        gate_inputs: "product" or "full", for "tapf".
        n_extra: rows of the extra table; 0 for none.
    """

    op: str = "mixed_polarity_attention"
    layout: str = "jagged"
    counts: tuple[int, ...] | None = None
    batch: int = 5
    length: int = 9
    width: int = 16
    hidden: tuple[int, ...] = (8,)
    candidates: int | None = None
    fusion: str = "tapf"
    activation: str = "relu"
    normalize: str = "none"
    scale: float = 1.0
    dropout: float = 0.0
    seed: int = -(2**40) + 12345
    blocks: tuple[str, ...] = BLOCKS
    id_dtype: torch.dtype = torch.int64
    index_dtype: torch.dtype = torch.int64
    items: int = 50
    n_polarity: int = 2
    gate_inputs: str = "product"
    n_extra: int = 0
    sparse: bool = False

    @property
    def has_target(self) -> bool:
        return self.op != "polarity_embedding"

    @property
    def has_tokens(self) -> bool:
        """Whether tokens are an input; else they come from the item table."""
        return self.op in ("polarity_fusion", "target_attention")

    @property
    def has_unit(self) -> bool:
        return self.op in ("target_attention", "mixed_polarity_attention")

    @property
    def has_polarity(self) -> bool:
        if self.op == "polarity_embedding":
            return True
        return self.op != "target_attention" and self.fusion != "none"

    @property
    def has_gate(self) -> bool:
        return self.op in ("polarity_fusion", "mixed_polarity_attention") and self.fusion == "tapf"

    @property
    def has_extra(self) -> bool:
        return self.has_polarity and self.n_extra > 0


@dataclass(frozen=True)
class Case:
    """Random inputs in ragged form: users own `counts` consecutive tokens.

    Attributes:
        floats: differentiable inputs by name ("target", "tokens", "item_table", "polarity_table",
            "extra_table", "gate[i]", "weights[i]", "biases[i]", "slopes[i]"), float32; "tokens" is [N, D].
        ids, polarity, extra: [N].
        sign: [P].
        grad_out: gradient of the output, [B, D], [B, M, D] or [N, D].
    """

    config: Config
    counts: tuple[int, ...]
    floats: dict[str, Tensor]
    ids: Tensor
    polarity: Tensor
    extra: Tensor
    sign: Tensor
    grad_out: Tensor

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
        """Keyword arguments of the public function.

        Args:
            where: the layout.
            dtype: of the floating-point inputs.
            view: maps (name, tensor) to another view of the same values, for stride tests.
            requires_grad: make every differentiable input a leaf with gradient.
        """
        config = self.config

        def made(name: str, tensor: Tensor) -> Tensor:
            return tensor if view is None else view(name, tensor)

        def leaf(name: str) -> Tensor:
            tensor = self.floats[name]
            tensor = where.spread(tensor) if name == "tokens" else tensor.clone()
            return made(name, tensor.to(dtype)).detach().requires_grad_(requires_grad)

        def leaves(prefix: str) -> list[Tensor]:
            return [leaf(f"{prefix}[{i}]") for i in range(self._entries(prefix))]

        arguments: dict[str, Any] = {k: made(k, v) for k, v in where.arguments.items()}
        if config.has_target:
            arguments["target"] = leaf("target")
        if config.has_tokens:
            arguments["history" if config.op == "target_attention" else "tokens"] = leaf("tokens")
        else:
            arguments["item_ids"] = made("item_ids", where.spread(self.ids.to(config.id_dtype)))
            arguments["item_table"] = leaf("item_table")
            arguments["sparse"] = config.sparse
        if config.op != "target_attention":
            arguments["polarity"] = arguments["polarity_table"] = None
        if config.has_polarity:
            arguments["polarity"] = made("polarity", where.spread(self.polarity.to(config.id_dtype)))
            arguments["polarity_table"] = leaf("polarity_table")
        if config.has_extra:
            arguments["extra_ids"] = made("extra_ids", where.spread(self.extra.to(config.id_dtype)))
            arguments["extra_table"] = leaf("extra_table")
        if config.op in ("polarity_fusion", "mixed_polarity_attention"):
            arguments |= {"fusion": config.fusion, "gate": leaves("gate")}
        if config.has_gate:
            arguments["sign"] = made("sign", self.sign.to(dtype))
        if config.has_unit:
            arguments |= {p: leaves(p) for p in ("weights", "biases", "slopes")}
            arguments |= {
                key: getattr(config, key) for key in ("activation", "normalize", "scale", "blocks", "dropout", "seed")
            }
        return arguments

    def call(self, arguments: dict[str, Any], backend: str = "auto", **more: Any) -> Any:
        """The public function on `arguments`, bundled where it takes bundles."""
        if self.config.op == "mixed_polarity_attention":
            given, options = bundled(**arguments)
            function: Any = mixpol_kernels.mixed_polarity_attention
            return function(*given, **options, backend=backend, **more)
        return getattr(mixpol_kernels, self.config.op)(**arguments, backend=backend, **more)

    def run(
        self,
        backend: str,
        where: Placement,
        dtype: torch.dtype = torch.float32,
        view: Callable[[str, Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Forward and backward in ragged form: "out" and "grad <input>", with dense table gradients.

        Raises:
            ValueError: something other than zeros stands at the pads of the output or of a gradient.
        """
        arguments = self.arguments(where, dtype, view, requires_grad=True)
        out = self.call(arguments, backend)
        token_out = not self.config.has_unit
        untouched = self.config.op == "polarity_fusion" and self.config.fusion == "none"
        grad_out = self.grad_out.to(dtype)
        if token_out:
            grad_out = where.spread(grad_out)
        if view is not None:
            grad_out = view("grad_out", grad_out)
        torch.autograd.backward(out, grad_out)
        results = {"out": where.gather(out.detach()) if token_out else out.detach()}
        if token_out and not untouched:
            _expect_zeros("out", where.pads(out.detach()))
        for name, value in arguments.items():
            for label, tensor in [(name, value)] if isinstance(value, Tensor) else _named(name, value):
                if not (tensor.is_floating_point() and tensor.requires_grad):
                    continue
                grad = tensor.grad
                if grad is None and name == "target" and token_out and not self.config.has_gate:
                    grad = torch.zeros_like(tensor)  # only the gate reads the target
                if grad is None:
                    raise ValueError(f"{label} got no gradient")
                grad = grad.to_dense() if grad.is_sparse else grad
                if name in ("history", "tokens"):
                    if not untouched:
                        _expect_zeros(f"grad {label}", where.pads(grad))
                    label, grad = "tokens", where.gather(grad)
                results[f"grad {label}"] = grad
        return results

    def take(self, users: Sequence[int]) -> Case:
        """The case of these users only, in this order; users may repeat."""
        starts = [sum(self.counts[:b]) for b in range(len(self.counts))]
        token = [starts[b] + i for b in users for i in range(self.counts[b])]
        rows, tokens = torch.tensor(users, dtype=torch.int64), torch.tensor(token, dtype=torch.int64)
        floats = dict(self.floats)
        if "target" in floats:
            floats["target"] = floats["target"][rows]
        if "tokens" in floats:
            floats["tokens"] = floats["tokens"][tokens]
        return replace(
            self,
            counts=tuple(self.counts[b] for b in users),
            floats=floats,
            ids=self.ids[tokens],
            polarity=self.polarity[tokens],
            extra=self.extra[tokens],
            grad_out=self.grad_out[rows if self.config.has_unit else tokens],
        )

    def jitter(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Case:
        """Nearly the same problem, no rectifier close to its kink: another draw of the rounding errors.

        Units in the last place would not do: a term of a long sum is moved by much less than the sum is rounded by.
        """
        share = max(2 * torch.finfo(dtype).eps, _JITTER)
        for _ in range(100):
            floats = {
                name: t * (1 + share * torch.randn(t.shape, generator=generator)) for name, t in self.floats.items()
            }
            case = replace(self, floats=floats).rounded(dtype)
            if kink_distance(case) > _KINK_MARGIN:
                return case
        raise RuntimeError(f"no inputs near these keep every hidden unit of {self.config} away from 0")

    def rounded_once(self, generator: torch.Generator) -> Case:
        """Every float of it one rounding to float32 away, up or down, in float64."""
        floats = {name: rounded_once(t, generator) for name, t in self.floats.items()}
        return replace(self, floats=floats, grad_out=rounded_once(self.grad_out, generator))

    def rounded(self, dtype: torch.dtype) -> Case:
        """With values that `dtype` holds exactly, still in float32: every dtype then gets the same problem."""
        floats = {name: t.to(dtype).float() for name, t in self.floats.items()}
        return replace(self, floats=floats, grad_out=self.grad_out.to(dtype).float())

    def _entries(self, prefix: str) -> int:
        return sum(name.startswith(f"{prefix}[") for name in self.floats)


def make(config: Config, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Case:
    """Draws a case of the given shape whose values `dtype` holds, with no rectifier close to its kink."""
    for _ in range(100):
        case = _draw(config, generator).rounded(dtype)
        if kink_distance(case) > _KINK_MARGIN:
            return case
    raise RuntimeError(f"no inputs found that keep every hidden unit of {config} away from 0")


def rounded_once(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """tensor (1 +- eps / 2) of float32, the signs drawn, in float64."""
    signs = torch.randint(2, tensor.shape, generator=generator) * 2 - 1
    return tensor.double() * (1 + torch.finfo(torch.float32).eps / 2 * signs)


def draw_counts(config: Config, generator: torch.Generator) -> tuple[int, ...]:
    """Tokens per user: for "full" all L; else 0 and L among uniform draws."""
    if config.counts is not None:
        return config.counts
    if config.layout == "full":
        return (config.length,) * config.batch
    counts = torch.randint(config.length + 1, (config.batch,), generator=generator)
    counts[:1] = config.length
    counts[1:2] = 0
    return tuple(counts[torch.randperm(config.batch, generator=generator)].tolist())


def _draw(config: Config, generator: torch.Generator) -> Case:
    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    counts = draw_counts(config, generator)
    tokens, width = sum(counts), config.width
    between = (config.candidates,) if config.has_unit and config.candidates is not None else ()
    floats: dict[str, Tensor] = {}
    if config.has_target:
        floats["target"] = normal(len(counts), *between, width)
    if config.has_tokens:
        floats["tokens"] = normal(tokens, width)
    else:
        floats["item_table"] = normal(config.items, width)
    if config.has_polarity:
        floats["polarity_table"] = normal(config.n_polarity, width, scale=0.5)
    if config.has_extra:
        floats["extra_table"] = normal(config.n_extra, width, scale=0.5)
    if config.has_gate:
        inputs = 3 * width if config.gate_inputs == "full" else width
        floats["gate[0]"] = normal(width, inputs, scale=inputs**-0.5)
        floats["gate[1]"] = normal(width)
        floats["gate[2]"] = normal(width, width, scale=width**-0.5)
    if config.has_unit:
        widths = [len(config.blocks) * width, *config.hidden, 1]
        for i, (inputs, units) in enumerate(itertools.pairwise(widths)):
            floats[f"weights[{i}]"] = normal(units, inputs, scale=(2 / inputs) ** 0.5)
            floats[f"biases[{i}]"] = normal(units, scale=0.5)
            if config.activation == "prelu" and i < len(config.hidden):
                floats[f"slopes[{i}]"] = normal(units, scale=0.5)
            if config.activation == "dice" and i < len(config.hidden):
                floats[f"slopes[{i}]"] = torch.stack(
                    [normal(units, scale=0.3), 0.5 + torch.rand(units, generator=generator), normal(units)]
                )
            if config.activation == "dice_row" and i < len(config.hidden):
                floats[f"slopes[{i}]"] = torch.stack(
                    [normal(units, scale=0.3), 0.01 + torch.rand(units, generator=generator)]
                )
    sign = torch.ones(config.n_polarity)
    sign[::2] = -1
    sign[2::3], sign[3::3] = 0, 0.5
    return Case(
        config,
        counts,
        floats,
        torch.randint(config.items, (tokens,), generator=generator),
        torch.randint(config.n_polarity, (tokens,), generator=generator),
        torch.randint(max(config.n_extra, 1), (tokens,), generator=generator),
        sign,
        normal(len(counts), *between, width) if config.has_unit else normal(tokens, width),
    )


def _named(name: str, value: Any) -> list[tuple[str, Tensor]]:
    return [(f"{name}[{i}]", t) for i, t in enumerate(value)] if isinstance(value, list) else []


def _expect_zeros(name: str, pads: Tensor) -> None:
    if pads.count_nonzero():  # NaN counts as nonzero
        raise ValueError(f"{name} is not zero at {int(pads.count_nonzero())} of {pads.numel()} pad elements")
