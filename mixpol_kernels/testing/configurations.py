"""Which configurations to try: every pair of choices at least once, instead of the full product."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mixpol_kernels.ops.unit import BLOCKS, NORMALIZERS, PUBLIC_ACTIVATIONS
from mixpol_kernels.testing.inputs import Config
from mixpol_kernels.testing.layouts import LAYOUTS

WIDTHS = (1, 7, 16, 24, 40, 64, 100)
UNITS = (1, 8, 36, 64, 80, 130)
# Second and third layers, off the tile sizes too; the first is drawn from UNITS.
DEEPER: tuple[tuple[int, ...], ...] = ((), (5,), (33, 12))
_COMMON: dict[str, Sequence[Any]] = {
    "layout": LAYOUTS,
    "width": WIDTHS,
    "id_dtype": (torch.int64, torch.int32, torch.uint8),
    "index_dtype": (torch.int64, torch.int32),
}
_UNIT: dict[str, Sequence[Any]] = {
    "units": UNITS,
    "deeper": DEEPER,
    "activation": PUBLIC_ACTIVATIONS,
    "normalize": NORMALIZERS,
    "scale": (1.0, 0.3),
    "dropout": (0.0, 0.3),
    "blocks": (BLOCKS, ("x", "t*x", "t"), ("t", "x", "t*x", "t-x")),
    "candidates": (None, 1, 3),
}
_FUSION: dict[str, Sequence[Any]] = {
    "fusion": ("none", "bias", "tapf"),
    "gate_inputs": ("product", "full"),
    "n_polarity": (2, 5),
    "n_extra": (0, 3),
}
CHOICES: dict[str, dict[str, Sequence[Any]]] = {
    "polarity_embedding": {**_COMMON, "n_polarity": (2, 5), "n_extra": (0, 3), "sparse": (False, True)},
    "polarity_fusion": {**_COMMON, **_FUSION},
    "target_attention": {**{k: v for k, v in _COMMON.items() if k != "id_dtype"}, **_UNIT},
    "mixed_polarity_attention": {**_COMMON, **_UNIT, **_FUSION, "sparse": (False, True)},
}


def pairwise(choices: Mapping[str, Sequence[Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Rows in which every pair of values of two keys occurs; the same rows for the same seed."""
    source = random.Random(seed)
    keys = list(choices)
    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(keys, 2)
        for i in range(len(choices[a]))
        for j in range(len(choices[b]))
    }

    def covered(row: Mapping[str, int]) -> set[tuple[str, int, str, int]]:
        return {(a, row[a], b, row[b]) for a, b in itertools.combinations(keys, 2)}

    rows = []
    while missing:
        first = min(missing, key=str)
        tries = []
        for _ in range(30):
            row = {k: source.randrange(len(choices[k])) for k in keys}
            row[first[0]], row[first[2]] = first[1], first[3]
            tries.append(row)
        best = max(tries, key=lambda row: len(covered(row) & missing))
        missing -= covered(best)
        rows.append({k: choices[k][i] for k, i in best.items()})
    return rows


def config(op: str, choice: Mapping[str, Any]) -> Config:
    """The configuration of one row of CHOICES[op]."""
    fields = dict(choice)
    if "units" in fields:
        fields["hidden"] = (fields.pop("units"), *fields.pop("deeper"))
    return Config(op=op, **fields)


def grid(op: str) -> list[Config]:
    """Configurations of `op` in which every pair of choices occurs."""
    return [config(op, choice) for choice in pairwise(CHOICES[op])]


def drawn(op: str, source: random.Random) -> Config:
    """One configuration at random, sizes included."""
    choice = {key: source.choice(values) for key, values in CHOICES[op].items()}
    choice |= {
        "batch": source.randint(1, 7),
        "length": source.randint(1, 40),
        "items": source.randint(1, 200),
    }
    return config(op, choice)


def label(config: Config) -> str:
    """A short name for test ids."""
    words = [config.layout, f"D{config.width}"]
    if config.has_unit:
        words += ["H" + "x".join(map(str, config.hidden)), config.activation, config.normalize]
        words.append("M-" if config.candidates is None else f"M{config.candidates}")
    if config.op in ("polarity_fusion", "mixed_polarity_attention"):
        words.append(f"{config.gate_inputs}-tapf" if config.has_gate else config.fusion)
    if config.has_unit and config.dropout:
        words.append("drop")
    if config.has_extra:
        words.append(f"R{config.n_extra}")
    return "-".join(words)
