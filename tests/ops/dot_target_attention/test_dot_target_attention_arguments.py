"""`dot_target_attention`: wrong arguments. Messages name the argument, what it was and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dot_cases import Config, make
from torch import Tensor

import mixpol_kernels

JAGGED = Config(counts=(3, 0, 4, 2), width=6, attention=8, heads=2)
Change = Callable[[dict[str, Any]], dict[str, Any]]


def on(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda arguments: {name: change(arguments[name])}


def poke(name: str, at: int, value: int) -> Change:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        tensor = arguments[name].clone()
        tensor[at] = value
        return {name: tensor}

    return change


BAD: dict[str, tuple[Change, type[Exception], str]] = {
    "target 1-D": (on("target", lambda t: t[0]), ValueError, r"target.*\[6\].*\[B, D\].*\[B, M, D\]"),
    "target 4-D": (on("target", lambda t: t[None, None]), ValueError, r"target.*\[1, 1, 4, 6\]"),
    "integer target": (on("target", lambda t: t.int()), TypeError, r"target.*int32.*float32"),
    "double history": (on("history", lambda t: t.double()), TypeError, r"history.*float64.*float32"),
    "history elsewhere": (on("history", lambda t: t.to("meta")), ValueError, r"history.*meta.*cpu"),
    "narrow history": (on("history", lambda t: t[:, 1:]), ValueError, r"history.*5.*target.*6"),
    "history 1-D": (on("history", lambda t: t[:, 0]), ValueError, r"history.*\[9\].*\[N, D\]"),
    "no heads": (lambda a: {"num_heads": 0}, ValueError, r"num_heads was 0; expected at least 1"),
    "heads that do not divide": (lambda a: {"num_heads": 3}, ValueError, r"queries and keys are 8.*num_heads=3"),
    "values that heads do not divide": (
        lambda a: {"w_v": a["w_v"][:7], "w_o": None}, ValueError, r"values are 7 wide.*num_heads=2",
    ),
    "top_k 0": (lambda a: {"top_k": 0}, ValueError, r"top_k was 0; expected at least 1"),
    "no rows": (
        lambda a: {"w_q": a["w_q"][:0], "w_k": a["w_k"][:0]}, ValueError, r"queries and keys are 0 wide.*num_heads=2",
    ),
    "w_q inputs": (on("w_q", lambda t: t[:, 1:]), ValueError, r"w_q.*\[8, 5\].*\[outputs, 6\]"),
    "w_k inputs": (on("w_k", lambda t: t[:, 1:]), ValueError, r"w_k.*\[8, 5\].*\[outputs, 6\]"),
    "w_v 1-D": (on("w_v", lambda t: t[0]), ValueError, r"w_v.*\[6\].*\[outputs, 6\]"),
    "w_o inputs": (on("w_o", lambda t: t[:, 1:]), ValueError, r"w_o.*\[9, 7\].*\[outputs, 8\]"),
    "w_o 3-D": (on("w_o", lambda t: t[None]), ValueError, r"w_o.*\[1, 9, 8\].*\[outputs, 8\]"),
    "queries and keys apart": (on("w_q", lambda t: t[:4]), ValueError, r"queries are 4 wide and keys 8.*same A"),
    "queries without projection": (lambda a: {"w_q": None}, ValueError, r"queries are 6 wide and keys 8"),
    "keys without values": (lambda a: {"w_v": None, "w_o": None}, ValueError, r"w_k came without w_v.*num_heads=2"),
    "values without keys": (lambda a: {"w_k": None}, ValueError, r"w_v came without w_k.*num_heads=2"),
    "weight dtype": (on("w_k", lambda t: t.half()), TypeError, r"w_k.*float16.*float32"),
    "weight elsewhere": (on("w_o", lambda t: t.to("meta")), ValueError, r"w_o.*meta.*cpu"),
    "offsets too short": (on("offsets", lambda t: t[:-1]), ValueError, r"offsets.*\[4\].*\[5\]"),
    "offsets float": (on("offsets", lambda t: t.float()), TypeError, r"offsets.*float32.*int64"),
    "two layouts": (lambda a: {"lengths": torch.ones(4).long()}, ValueError, r"offsets and lengths.*at most one"),
    "no offsets": (lambda a: {"offsets": None}, ValueError, r"history.*\[9, 6\].*offsets"),
    "offsets end late": (poke("offsets", 4, 13), RuntimeError, r"offsets.*13.*9"),
    "offsets fall": (poke("offsets", 2, 1), RuntimeError, r"offsets\[2\].*1.*offsets\[1\].*3"),
    "unknown backend": (lambda a: {"backend": "gpu"}, ValueError, r"backend was 'gpu'.*'cpu'.*'reference'"),
}  # fmt: skip


@pytest.mark.parametrize("label", BAD)
def test_bad_arguments(label: str, backend: str, generator: torch.Generator) -> None:
    change, error, pattern = BAD[label]
    case = make(JAGGED, generator)
    arguments = case.arguments(case.place(generator))
    with pytest.raises(error, match=f"(?s){pattern}"):
        mixpol_kernels.dot_target_attention(**{"backend": backend, **arguments, **change(arguments)})


@pytest.mark.parametrize(("at", "value"), [(1, -1), (2, 5)])
def test_lengths_out_of_range(at: int, value: int, backend: str, generator: torch.Generator) -> None:
    case = make(Config(counts=(3, 0, 4, 2), layout="lengths"), generator)
    arguments = case.arguments(case.place(generator))
    with pytest.raises(RuntimeError, match=rf"lengths\[{at}\] is {value}; expected 0 ... 4"):
        case.call(arguments | poke("lengths", at, value)(arguments), backend)


@pytest.mark.parametrize(
    ("queries", "sliced", "pattern"),
    [
        (torch.randn(2, 3, 4), False, r"queries has 3 dimensions; expected \[B, M, H, D\]"),
        (torch.randn(2, 1, 2, 4), False, r"history has shape \[2, 5, 8\]; expected rows of 4"),
        (torch.randn(2, 1, 3, 4), True, r"history has shape \[2, 5, 8\]; expected rows of 12"),
        (torch.randn(3, 1, 1, 8), False, r"leading dimensions do not match 3 users"),
        (torch.randn(2, 1, 1, 8).double(), False, r"queries is not float32"),
    ],
)
def test_the_op_checks_for_itself(queries: Tensor, sliced: bool, pattern: str) -> None:
    history = torch.randn(2, 5, 8)
    with pytest.raises(RuntimeError, match=pattern):
        torch.ops.mixpol.dot_attention_fwd(queries, history, None, None, None, sliced, 0, False)


def test_the_op_checks_top_k() -> None:
    with pytest.raises(RuntimeError, match="top_k was -1; expected at least 1, or 0"):
        torch.ops.mixpol.dot_attention_fwd(
            torch.randn(2, 1, 1, 8), torch.randn(2, 5, 8), None, None, None, False, -1, False
        )


@pytest.mark.parametrize(
    ("queries", "w_k", "w_v", "pattern"),
    [
        (torch.randn(2, 2, 4), torch.randn(8, 6), torch.randn(8, 6), r"queries has 3 dimensions"),
        (torch.randn(2, 1, 2, 4), torch.randn(7, 6), torch.randn(8, 6), r"w_k has shape \[7, 6\]; expected \[8, 6\]"),
        (torch.randn(2, 1, 2, 4), torch.randn(8, 6), torch.randn(8, 5), r"w_v has shape \[8, 5\]; expected \[-1, 6\]"),
        (torch.randn(2, 1, 2, 4), torch.randn(8, 6), torch.randn(7, 6), r"w_v has 7 rows; expected a multiple of 2"),
        (torch.randn(3, 1, 2, 4), torch.randn(8, 6), torch.randn(8, 6), r"leading dimensions do not match 3 users"),
    ],
)
def test_the_projecting_op_checks_for_itself(queries: Tensor, w_k: Tensor, w_v: Tensor, pattern: str) -> None:
    with pytest.raises(RuntimeError, match=pattern):
        torch.ops.mixpol.dot_attention_projected_fwd(queries, torch.randn(2, 5, 6), None, None, None, w_k, w_v)


def test_the_projecting_backward_checks_what_was_saved() -> None:
    inputs = torch.randn(2, 3, 2, 4), torch.randn(2, 5, 6), None, None, None, torch.randn(8, 6), torch.randn(10, 6)
    pooled, stats = torch.ops.mixpol.dot_attention_projected_fwd(*inputs)
    op = torch.ops.mixpol.dot_attention_projected_bwd
    with pytest.raises(RuntimeError, match=r"stats has shape \[2, 3, 2, 1\]; expected \[2, 3, 2, 2\]"):
        op(pooled, stats[..., :1], *inputs)
    with pytest.raises(RuntimeError, match=r"grad_pooled has shape \[2, 3, 2, 4\]; expected \[2, 3, 2, 5\]"):
        op(inputs[0], stats, *inputs)


def test_the_backward_op_checks_what_was_saved() -> None:
    queries, history = torch.randn(2, 1, 2, 8), torch.randn(2, 5, 8)
    op = torch.ops.mixpol.dot_attention_bwd
    with pytest.raises(RuntimeError, match=r"stats has shape \[2, 1, 2\]; expected \[2, 1, 2, 4\]"):
        op(queries, torch.randn(2, 1, 2), queries, history, None, None, None, False, 0)
    with pytest.raises(RuntimeError, match=r"grad_pooled has shape \[2, 8\]; expected \[2, 1, 2, 8\]"):
        op(torch.randn(2, 8), torch.randn(2, 1, 2, 4), queries, history, None, None, None, False, 0)
