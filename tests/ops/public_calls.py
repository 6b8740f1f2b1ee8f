"""A small valid call of every public function and route, for tests that change one thing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import mixpol_kernels as mk
from mixpol_kernels.ops.target_attention._dice.api import dice_attention
from mixpol_kernels.ops.target_attention._statistics.api import unit_statistics

USERS, TOKENS, WIDTH, UNITS, ITEMS = 3, 6, 4, 3, 7
COUNTS = (2, 0, 4)
PAD_TO = 5
# Of interleave and its result there are no derivatives.
DIFFERENTIABLE = (
    "target_attention",
    "target_attention, weights",
    "dot_target_attention",
    "dot_target_attention, projections",
    "dot_target_attention, projected tokens",
    "dot_target_attention, top_k",
    "mixed_polarity_attention",
    "mixed_polarity_attention, rows",
    "polarity_embedding",
    "polarity_embedding, sparse",
    "polarity_fusion",
    "polarity_fusion, bias",
    "unit_statistics",
    "dice_attention",
)
OTHERS = ("target_attention, mask", "target_attention, lengths", "interleave", "take")


def call(name: str, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> tuple[Callable[..., Any], Any]:
    """The function and its keyword arguments; one of DIFFERENTIABLE or OTHERS. No kinks."""

    def normal(*shape: int) -> Tensor:
        # Drawn in float32, so that other dtypes have the same values.
        return torch.randn(shape, generator=generator).to(dtype)

    def ids(rows: int) -> Tensor:
        return torch.randint(rows, (TOKENS,), generator=generator)

    offsets = torch.tensor([0, *torch.tensor(COUNTS).cumsum(0).tolist()])
    op = name.partition(",")[0]
    if op == "interleave":
        times, at = torch.tensor([1, 2, 1, 5]), torch.tensor([0, 2, 4])
        arguments = {"positive_times": times, "positive_offsets": at, "negative_times": times, "negative_offsets": at}
        return mk.interleave, arguments | {"budget": 3, "negative_share": 0.5}
    if op == "take":
        at = torch.tensor([0, 1])
        mixed = mk.interleave(torch.tensor([1]), at, torch.tensor([2]), at)
        return mixed.take, {"positive": normal(1, 2), "negative": normal(1, 2)}
    target, history = normal(USERS, WIDTH), normal(TOKENS, WIDTH)
    weights, biases = [normal(UNITS, 4 * WIDTH), normal(1, UNITS)], [normal(UNITS), normal(1)]
    unit = {"weights": weights, "biases": biases, "offsets": offsets}
    dice = {"activation": "dice", "slopes": [normal(3, UNITS)], "normalize": "sigmoid", "scale": 0.7}
    extra = {"extra_ids": ids(2), "extra_table": normal(2, WIDTH)}
    rows = {"polarity": ids(2), "polarity_table": normal(2, WIDTH), **extra}
    gate = (normal(WIDTH, 3 * WIDTH), normal(WIDTH), normal(WIDTH, WIDTH))
    tapf = {**rows, "fusion": "tapf", "gate": gate, "sign": normal(2)}
    if name in OTHERS:
        where = torch.arange(4) < torch.tensor(COUNTS)[:, None]
        padded = {"lengths": torch.tensor(COUNTS)} if name.endswith("lengths") else {"mask": where}
        return mk.target_attention, {
            "target": target, "history": normal(USERS, 4, WIDTH), "weights": weights, "biases": biases, **padded,
            "activation": "leaky_relu", "negative_slope": 0.1, "blocks": ("t", "x", "t*x", "t-x"),
        }  # fmt: skip
    if op == "target_attention":
        return mk.target_attention, {
            "target": target, "history": history, **unit, **dice, "dropout": 0.3, "seed": 5,
            "return_weights": name.endswith("weights"),
        }  # fmt: skip
    if op == "mixed_polarity_attention":
        looked_up = {"item_ids": ids(ITEMS), "item_table": normal(ITEMS, WIDTH)}
        if name.endswith("rows"):
            looked_up = {"item_ids": None, "item_table": None, "item_rows": history}
        return mk.mixed_polarity_attention, {"target": target, **looked_up, **tapf, **unit, **dice}
    if op == "polarity_embedding":
        tables = {"item_ids": ids(ITEMS), "item_table": normal(ITEMS, WIDTH), **rows}
        return mk.polarity_embedding, {**tables, "offsets": offsets, "sparse": name.endswith("sparse")}
    if op == "polarity_fusion":
        fusion = {**rows, "fusion": "bias"} if name.endswith("bias") else tapf
        return mk.polarity_fusion, {"target": target, "tokens": history, **fusion, "offsets": offsets}
    if op == "unit_statistics":
        unit = {"weights": weights[:1], "biases": biases[:1], "offsets": offsets}
        return unit_statistics, {
            "target": target, "history": history, **unit, "activation": "silu", "pad_to": PAD_TO,
        }  # fmt: skip
    if op == "dice_attention":
        norm = {"alpha": normal(UNITS), "norm_weight": normal(UNITS), "norm_bias": normal(UNITS), "eps": 0.1}
        return dice_attention, {
            "target": target, "history": history, **unit, **norm, "scale": 0.7, "pad_to": PAD_TO,
        }  # fmt: skip
    heads = {"num_heads": 2, "scale": 0.7} | {f"w_{i}": normal(WIDTH, WIDTH) for i in "qkvo"}
    options = {"dot_target_attention": {}, "top_k": {"top_k": 2}}.get(name.rpartition(", ")[2], heads)
    if name.endswith("tokens"):  # so many candidates that keys and values are made
        target = normal(USERS, 30, WIDTH)
    return mk.dot_target_attention, {"target": target, "history": history, **options, "offsets": offsets}


def slots(arguments: dict[str, Any]) -> Iterator[tuple[str, int | None, Any]]:
    """Every argument, and every entry of lists: name, place in the list, value."""
    for name, value in arguments.items():
        if isinstance(value, (list, tuple)):
            yield from ((name, i, entry) for i, entry in enumerate(value))
        else:
            yield name, None, value


def floats(arguments: dict[str, Any]) -> dict[tuple[str, int | None], Tensor]:
    """The differentiable inputs: `sign` has no gradient by definition, and a bias does not look at the target."""
    without = {"sign"} | ({"target"} if arguments.get("fusion") == "bias" else set())
    return {
        (name, i): value
        for name, i, value in slots(arguments)
        if isinstance(value, Tensor) and value.is_floating_point() and name not in without
    }


def replaced(arguments: dict[str, Any], values: dict[tuple[str, int | None], Any]) -> dict[str, Any]:
    """The arguments with other values in some slots."""
    given = {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in arguments.items()}
    for (name, i), value in values.items():
        if i is None:
            given[name] = value
        else:
            given[name][i] = value
    return given


def outputs(found: Any) -> list[Tensor]:
    """The differentiable results of a call."""
    every = found if isinstance(found, tuple) else (found,)
    return [t for t in every if isinstance(t, Tensor) and t.is_floating_point()]
