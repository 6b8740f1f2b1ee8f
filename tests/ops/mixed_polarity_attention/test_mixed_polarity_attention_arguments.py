"""`mixed_polarity_attention`: its own arguments, and that it is the composition of the other ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mixpol_kernels
from mixpol_kernels.testing.inputs import Config, make

JAGGED = Config(counts=(3, 0, 4, 2), width=6, items=20)
BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "target 1-D": (lambda a: {"target": a["target"][0]}, ValueError, r"target.*\[6\].*\[B, D\].*\[B, M, D\]"),
    "integer target": (lambda a: {"target": a["target"].int()}, TypeError, r"target.*int32.*float32"),
    "double item table": (
        lambda a: {"item_table": a["item_table"].double()}, TypeError, r"item_table.*float64.*float32",
    ),
    "item table elsewhere": (
        lambda a: {"item_table": a["item_table"].to("meta")}, ValueError, r"item_table.*meta.*cpu",
    ),
    "flat item table": (lambda a: {"item_table": a["item_table"][0]}, ValueError, r"item_table.*\[6\].*\[V, 6\]"),
    "narrow item table": (
        lambda a: {"item_table": a["item_table"][:, 1:]}, ValueError, r"item_table.*\[20, 5\].*\[V, 6\]",
    ),
    "float ids": (lambda a: {"item_ids": a["item_ids"].float()}, TypeError, r"item_ids.*float32.*integer"),
    "ids elsewhere": (lambda a: {"item_ids": a["item_ids"].to("meta")}, ValueError, r"item_ids.*meta.*cpu"),
    "ids 2-D": (lambda a: {"item_ids": a["item_ids"][:, None]}, ValueError, r"item_ids.*\[9, 1\].*\[N\]"),
    "polarity shape": (lambda a: {"polarity": a["polarity"][1:]}, ValueError, r"polarity.*\[8\].*\[9\]"),
    "no polarity": (lambda a: {"polarity": None}, ValueError, r"polarity was None.*'tapf'"),
    "no polarity table": (lambda a: {"polarity_table": None}, ValueError, r"polarity_table was None.*'tapf'"),
    "table width": (
        lambda a: {"polarity_table": a["polarity_table"][:, :4]}, ValueError, r"polarity_table.*\[2, 4\].*\[P, 6\]",
    ),
    "unknown fusion": (lambda a: {"fusion": "sum"}, ValueError, r"fusion was 'sum'.*'none', 'bias', 'tapf'"),
    "unknown activation": (lambda a: {"activation": "mish"}, ValueError, r"activation was 'mish'.*'silu'"),
    "unknown normalize": (lambda a: {"normalize": "l1"}, ValueError, r"normalize was 'l1'.*'softmax'"),
    "no gate": (lambda a: {"gate": []}, ValueError, r"gate has 0.*3"),
    "sign shape": (lambda a: {"sign": torch.ones(3)}, ValueError, r"sign.*\[3\].*\[2\]"),
    "no layers": (lambda a: {"weights": [], "biases": []}, ValueError, r"weights has 0.*one to three"),
    "first layer inputs": (
        lambda a: {"weights": [a["weights"][0].detach()[:, :6], a["weights"][1]]},
        ValueError,
        r"weights\[0\].*\[8, 6\].*24.*4 D",
    ),
    "biases missing": (lambda a: {"biases": []}, ValueError, r"biases has 0.*weights 2"),
    "slopes with relu": (lambda a: {"slopes": [torch.ones(8)]}, ValueError, r"slopes has 1.*'relu'.*0"),
}  # fmt: skip


@pytest.mark.parametrize("label", BAD)
def test_bad_arguments(label: str, backend: str, refuses: Callable[..., None]) -> None:
    change, error, pattern = BAD[label]

    def detached(arguments: dict[str, Any]) -> None:
        changed = change(arguments)
        arguments.update({k: v.detach() if torch.is_tensor(v) else v for k, v in changed.items()})

    refuses(JAGGED, detached, error, pattern, backend)


@pytest.mark.parametrize("id_dtype", [torch.int8, torch.int32, torch.int64])
@pytest.mark.parametrize("value", [-3, 20, 127])
@pytest.mark.parametrize("name", ["item_ids", "polarity"])
@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_left"])
def test_ids_out_of_range(
    layout: str, name: str, value: int, id_dtype: torch.dtype, backend: str, generator: torch.Generator
) -> None:
    """The message names the argument, the position, pads included, and the value."""
    case = make(Config(layout=layout, counts=(3, 0, 4, 2), items=20, id_dtype=id_dtype), generator)
    where = case.place(generator)
    token = int(torch.randint(9, (), generator=generator))
    position = token if where.index is None else int(where.index[token])
    arguments = case.arguments(where)
    arguments[name].view(-1)[position] = value
    rows = 20 if name == "item_ids" else 2
    with pytest.raises(RuntimeError, match=rf"{name}.*{value}.*position {position}\b.*0 \.\.\. {rows - 1}"):
        case.call(arguments, backend)


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**62, -(2**63)])
@pytest.mark.parametrize("name", ["item_ids", "polarity"])
def test_ids_far_out_of_range(name: str, value: int, backend: str, refuses: Callable[..., None]) -> None:
    def poke(arguments: dict[str, Any]) -> None:
        arguments[name][8] = value

    refuses(JAGGED, poke, RuntimeError, rf"{name}.*{value}.*position 8", backend)


def test_a_bad_id_among_many_threads(generator: torch.Generator) -> None:
    """The error reaches the caller from whichever thread meets it, and the next call is fine."""
    torch.set_num_threads(2)
    case = make(Config(batch=300, length=20), generator)
    arguments = case.arguments(case.place(generator))
    expected = case.call(arguments, "cpu")
    for position in (0, sum(case.counts) // 2, sum(case.counts) - 1):
        ids = arguments["item_ids"].clone()
        ids[position] = 50
        with pytest.raises(RuntimeError, match=rf"item_ids.*50.*position {position}\b"):
            case.call({**arguments, "item_ids": ids}, "cpu")
    assert torch.equal(case.call(arguments, "cpu"), expected)


@pytest.mark.parametrize("fusion", ["none", "bias", "tapf"])
@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_holes"])
def test_is_the_composition_of_the_other_ops(
    layout: str, fusion: str, backend: str, generator: torch.Generator
) -> None:
    case = make(Config(layout=layout, fusion=fusion, activation="silu", normalize="softmax"), generator)
    where = case.place(generator)
    a = case.arguments(where)
    keep = {name: a.get(name) for name in where.arguments}
    rows = torch.where((a["item_ids"] >= 0) & (a["item_ids"] < 50), a["item_ids"], 0)
    tokens = mixpol_kernels.polarity_fusion(
        a["target"], a["item_table"][rows], a["polarity"], a["polarity_table"],
        fusion=fusion, gate=a["gate"], sign=a.get("sign"), backend=backend, **keep,
    )  # fmt: skip
    expected = mixpol_kernels.target_attention(
        a["target"], tokens, a["weights"], a["biases"],
        activation="silu", normalize="softmax", backend=backend, **keep,
    )  # fmt: skip
    torch.testing.assert_close(case.call(a, backend), expected, rtol=1e-4, atol=1e-5)


def test_unused_polarity_is_accepted_with_fusion_none(backend: str, generator: torch.Generator) -> None:
    """A model may switch the fusion without changing its call; the polarity is not even read."""
    case = make(Config(fusion="none"), generator)
    arguments = case.arguments(case.place(generator))
    expected = case.call(arguments, backend)
    arguments |= {"polarity": torch.full_like(arguments["item_ids"], 99), "polarity_table": torch.randn(2, 16)}
    assert torch.equal(case.call(arguments, backend), expected)
