"""Numbers that modules are made with: a slip says which argument it was, and what would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mixpol_kernels.nn import (
    MixedPolarityAttention,
    MultiHeadTargetAttention,
    PolarityEmbedding,
    PolarityFusion,
    TargetAttention,
)

WIDTHS: list[tuple[Any, type[Exception], str]] = [
    (8, TypeError, r"hidden_units was 8; expected a sequence of widths such as \[8\]"),
    (0, TypeError, "hidden_units was 0; expected a sequence"),
    (-4, TypeError, "hidden_units was -4; expected a sequence"),
    (True, TypeError, "hidden_units was True; expected a sequence"),
    (8.0, TypeError, r"hidden_units was 8\.0; expected a sequence"),
    (None, TypeError, "hidden_units was None; expected a sequence"),
    ("88", TypeError, "hidden_units was '88'; expected a sequence"),
    ({8}, TypeError, r"hidden_units was \{8\}; expected a sequence"),
    (torch.tensor(8), TypeError, r"hidden_units was a tensor of shape \[\]"),
    (torch.tensor([8, 4]), TypeError, r"hidden_units was a tensor of shape \[2\]"),
    (np.int64(8), TypeError, r"hidden_units was 8; expected a sequence of widths such as \[8\]"),
    ([], ValueError, r"hidden_units was \[\]; expected one to three"),
    ([8, 8, 8, 8], ValueError, r"hidden_units was \[8, 8, 8, 8\]; expected one to three"),
    ([8, 0], ValueError, r"hidden_units\[1\] was 0; expected at least 1"),
    ([-8], ValueError, r"hidden_units\[0\] was -8; expected at least 1"),
    ([True], TypeError, r"hidden_units\[0\] was True; expected an integer"),
    ([8.0], TypeError, r"hidden_units\[0\] was 8\.0; expected an integer"),
    ([torch.tensor(8)], TypeError, r"hidden_units\[0\] was a tensor of shape \[\]"),
    ([[8]], TypeError, r"hidden_units\[0\] was \[8\]; expected an integer"),
]


@pytest.mark.parametrize(("value", "error", "words"), WIDTHS, ids=[repr(w[0]) for w in WIDTHS])
def test_hidden_units(value: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        TargetAttention(4, value)
    with pytest.raises(error, match=words):
        MixedPolarityAttention(9, 4, value)


@pytest.mark.parametrize("value", [[8, 4], (8, 4), range(4, 6), np.array([8, 4]), [np.int32(8)]], ids=str)
def test_sequences_of_any_kind(value: Any) -> None:
    layer = TargetAttention(4, value)
    assert [linear.out_features for linear in layer.layers] == [*(int(width) for width in value), 1]


MAKES: dict[str, Callable[[Any], Any]] = {
    "embedding_dim, TargetAttention": lambda n: TargetAttention(n, [3]),
    "embedding_dim, PolarityFusion": lambda n: PolarityFusion(n),
    "n_polarity, PolarityFusion": lambda n: PolarityFusion(4, n_polarity=n),
    "num_items, PolarityEmbedding": lambda n: PolarityEmbedding(n, 4),
    "embedding_dim, PolarityEmbedding": lambda n: PolarityEmbedding(4, n),
    "n_polarity, PolarityEmbedding": lambda n: PolarityEmbedding(4, 4, n),
    "embedding_dim, MultiHeadTargetAttention": lambda n: MultiHeadTargetAttention(n),
    "attention_dim, MultiHeadTargetAttention": lambda n: MultiHeadTargetAttention(4, n),
    "num_heads, MultiHeadTargetAttention": lambda n: MultiHeadTargetAttention(4, num_heads=n),
    "top_k, MultiHeadTargetAttention": lambda n: MultiHeadTargetAttention(4, top_k=n),
    "num_items, MixedPolarityAttention": lambda n: MixedPolarityAttention(n, 4, [3]),
    "embedding_dim, MixedPolarityAttention": lambda n: MixedPolarityAttention(4, n, [3]),
}


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4", torch.tensor(4)], ids=repr)
@pytest.mark.parametrize("name", MAKES)
def test_sizes(name: str, value: Any) -> None:
    with pytest.raises(ValueError if type(value) is int else TypeError, match=rf"^{name.partition(',')[0]} was "):
        MAKES[name](value)


@pytest.mark.parametrize(
    "make", [lambda n: PolarityFusion(4, num_extra=n), lambda n: PolarityEmbedding(4, 4, num_extra=n)]
)
def test_rows_of_the_extra_table(make: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match="num_extra was -1; expected at least 0"):
        make(-1)
    with pytest.raises(TypeError, match="num_extra was False; expected an integer"):
        make(False)
    assert make(0).extra_table is None
