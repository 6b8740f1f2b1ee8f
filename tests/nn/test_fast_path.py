"""Forwards that go straight to the kernel: the bits and the errors of the long way, where nothing else is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mixpol_kernels
from mixpol_kernels import nn as layers
from mixpol_kernels.nn import fast_path

USERS, LENGTH, WIDTH, ITEMS = 5, 9, 12, 40


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each direct call was answered."""
    made: list[bool] = []

    def counted(op: Any, *inputs: Any, _pooled: Callable[..., Tensor | None] = fast_path.pooled) -> Tensor | None:
        found = _pooled(op, *inputs)
        made.append(found is not None)
        return found

    monkeypatch.setattr(fast_path, "pooled", counted)
    return made


def layouts(generator: torch.Generator) -> dict[str, dict[str, Tensor]]:
    lengths = torch.tensor([LENGTH, 0, 3, 1, 7])
    mask = torch.rand(USERS, LENGTH, generator=generator) < 0.6
    return {
        "full": {},
        "lengths": {"lengths": lengths},
        "int32 lengths": {"lengths": lengths.int()},
        "mask": {"mask": mask},
        "float mask": {"mask": mask.float()},
        "offsets": {"offsets": torch.tensor([0, 9, 9, 20, 21, USERS * LENGTH])},
    }


def tokens_of(layout: str, generator: torch.Generator) -> Tensor:
    shape = (USERS * LENGTH,) if layout == "offsets" else (USERS, LENGTH)
    return torch.randn(*shape, WIDTH, generator=generator)


def both_ways(call: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """By the kernel at once, and by the long way, which a gradient asks for."""
    with torch.no_grad():
        found = call()
    return found, call().detach()


@pytest.mark.parametrize("layout", ["full", "lengths", "int32 lengths", "mask", "float mask", "offsets"])
@pytest.mark.parametrize("candidates", [(), (3,)], ids=["one", "several"])
@pytest.mark.parametrize("activation", ["relu", "prelu", "sigmoid"])
def test_target_attention(
    activation: str, candidates: tuple[int, ...], layout: str, calls: list[bool], generator: torch.Generator
) -> None:
    layer = layers.TargetAttention(WIDTH, [16, 8], activation, normalize="softmax")
    target, history = torch.randn(USERS, *candidates, WIDTH, generator=generator), tokens_of(layout, generator)
    where = layouts(generator)[layout]
    got, expected = both_ways(lambda: layer(target, history, **where))
    assert torch.equal(got, expected)
    assert calls == [True]


@pytest.mark.parametrize("layout", ["lengths", "offsets"])
@pytest.mark.parametrize("num_extra", [0, 4])
@pytest.mark.parametrize("fusion", ["none", "bias", "tapf"])
def test_mixed_polarity_attention(
    fusion: str, num_extra: int, layout: str, calls: list[bool], generator: torch.Generator
) -> None:
    extra = num_extra if fusion != "none" else 0
    layer = layers.MixedPolarityAttention(ITEMS, WIDTH, [16], fusion, num_extra=extra)
    shape = tokens_of(layout, generator).shape[:-1]
    ids, polarity = (torch.randint(n, shape, generator=generator) for n in (ITEMS, 2))
    more = {"extra_ids": torch.randint(4, shape, generator=generator)} if extra else {}
    for target in (torch.randn(USERS, WIDTH, generator=generator), torch.arange(USERS)):
        got, expected = both_ways(lambda t=target: layer(t, ids, polarity, **more, **layouts(generator)[layout]))  # type: ignore[misc]
        assert torch.equal(got, expected)
    assert calls == [True, True]


@pytest.mark.parametrize("layout", ["full", "int32 lengths", "float mask", "offsets"])
@pytest.mark.parametrize("candidates", [(), (3,)], ids=["one", "several"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_heads": 3}, {"use_projections": False, "num_heads": 2}, {"top_k": 2, "use_scale": False}],
    ids=str,
)
def test_multi_head_target_attention(
    options: dict[str, Any], candidates: tuple[int, ...], layout: str, calls: list[bool], generator: torch.Generator
) -> None:
    """Its projections are PyTorch's where a gradient is asked for, so that last bits differ."""
    layer = layers.MultiHeadTargetAttention(WIDTH, **options)
    target, history = torch.randn(USERS, *candidates, WIDTH, generator=generator), tokens_of(layout, generator)
    where = layouts(generator)[layout]
    got, expected = both_ways(lambda: layer(target, history, **where))
    torch.testing.assert_close(got, expected)
    assert got.shape == target.shape
    assert calls == [True]


def test_many_candidates_of_several_heads_take_the_long_way(calls: list[bool], generator: torch.Generator) -> None:
    layer = layers.MultiHeadTargetAttention(WIDTH, num_heads=4)
    target, history = torch.randn(USERS, 60, WIDTH, generator=generator), tokens_of("full", generator)
    got, expected = both_ways(lambda: layer(target, history))
    torch.testing.assert_close(got, expected)
    assert not calls


BAD: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "width": lambda a: {"history": a["history"][..., :-1]},
    "dtype": lambda a: {"history": a["history"].double()},
    "users": lambda a: {"history": a["history"][1:]},
    "two layouts": lambda a: {"mask": torch.ones(USERS, LENGTH)},
    "layout without tokens": lambda a: {"history": a["history"][0]},
    "lengths' shape": lambda a: {"lengths": a["lengths"][1:]},
    "lengths' dtype": lambda a: {"lengths": a["lengths"].float()},
    "lengths' values": lambda a: {"lengths": a["lengths"] + LENGTH},
    "target's dimensions": lambda a: {"target": a["target"][0]},
    "no tensor": lambda a: {"history": a["history"].tolist()},
}


def refusal(layer: nn.Module, given: dict[str, Any], with_grad: bool) -> tuple[type[BaseException], str]:
    with torch.set_grad_enabled(with_grad), pytest.raises(Exception) as raised:  # noqa: PT011 - two are compared
        layer(**given)
    return raised.type, str(raised.value)


@pytest.mark.parametrize("heads", [None, 3])
@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_what_is_refused_is_refused_in_the_same_words(
    change: Callable[[dict[str, Any]], dict[str, Any]], heads: int | None, generator: torch.Generator
) -> None:
    layer: nn.Module = layers.TargetAttention(WIDTH, [16])
    if heads:
        layer = layers.MultiHeadTargetAttention(WIDTH, num_heads=heads)
    given = {
        "target": torch.randn(USERS, WIDTH, generator=generator),
        "history": torch.randn(USERS, LENGTH, WIDTH, generator=generator),
        "lengths": torch.tensor([LENGTH, 0, 3, 1, 7]),
    }
    assert refusal(layer, given | change(given), False) == refusal(layer, given | change(given), True)


BAD_IDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "ids out of range": lambda a: {"item_ids": a["item_ids"] + ITEMS},
    "ids' shape": lambda a: {"item_ids": a["item_ids"][:, 1:]},
    "ids' dtype": lambda a: {"item_ids": a["item_ids"].bool()},
    "polarity out of range": lambda a: {"polarity": a["polarity"] + 2},
    "polarity's dtype": lambda a: {"polarity": a["polarity"].float()},
    "polarity's shape": lambda a: {"polarity": a["polarity"][:, 1:]},
    "no polarity": lambda a: {"polarity": None},
    "no extra ids": lambda a: {"extra_ids": None},
    "extra ids out of range": lambda a: {"extra_ids": a["extra_ids"] - 1},
    "extra ids' dtype": lambda a: {"extra_ids": a["extra_ids"].double()},
    "target's width": lambda a: {"target": a["target"][:, 1:]},
    "two layouts": lambda a: {"mask": torch.ones(USERS, LENGTH)},
}


@pytest.mark.parametrize("change", BAD_IDS.values(), ids=BAD_IDS)
def test_so_is_what_ids_can_be_wrong_about(
    change: Callable[[dict[str, Any]], dict[str, Any]], generator: torch.Generator
) -> None:
    layer = layers.MixedPolarityAttention(ITEMS, WIDTH, [16], num_extra=3)
    given = {
        "target": torch.randn(USERS, WIDTH, generator=generator),
        "item_ids": torch.randint(ITEMS, (USERS, LENGTH), generator=generator),
        "polarity": torch.randint(2, (USERS, LENGTH), generator=generator),
        "extra_ids": torch.zeros(USERS, LENGTH, dtype=torch.int64),
        "lengths": torch.full((USERS,), LENGTH),
    }
    assert refusal(layer, given | change(given), False) == refusal(layer, given | change(given), True)


@pytest.mark.parametrize(
    "options",
    [{"activation": "dice"}, {"activation": "leaky_relu"}, {"scale": 0.5},
     {"blocks": ("x", "t*x")}, {"batch_norm": True}, {"dropout": 0.5}, {"backend": "reference"}],
    ids=str,
)  # fmt: skip
def test_other_units_take_the_long_way(options: dict[str, Any], calls: list[bool], generator: torch.Generator) -> None:
    layer = layers.TargetAttention(WIDTH, [16], **options)
    with torch.no_grad():
        layer(torch.randn(USERS, WIDTH, generator=generator), tokens_of("full", generator))
    assert not calls


def test_layers_that_are_no_plain_linear(calls: list[bool], generator: torch.Generator) -> None:
    """A parametrised weight is computed when it is read; a layer without a bias has zeros for it."""
    target, history = torch.randn(USERS, WIDTH, generator=generator), tokens_of("full", generator)
    for change in (nn.utils.parametrizations.weight_norm, lambda linear: linear.register_parameter("bias", None)):
        layer = layers.TargetAttention(WIDTH, [16])
        change(layer.layers[0])
        got, expected = both_ways(lambda layer=layer: layer(target, history))  # type: ignore[misc]
        assert torch.equal(got, expected)
    assert calls == [True, True]


@pytest.mark.parametrize("options", [{"activation": "dice"}, {"activation": "dice_row"}, {"batch_norm": True}], ids=str)
def test_normalised_units_in_evaluation(options: dict[str, Any], calls: list[bool], generator: torch.Generator) -> None:
    """Their parameters are made for the call, from the running statistics."""
    layer = layers.TargetAttention(WIDTH, [16, 8], **options).eval()
    target, history = torch.randn(USERS, WIDTH, generator=generator), tokens_of("full", generator)
    got, expected = both_ways(lambda: layer(target, history))
    assert torch.equal(got, expected)
    assert calls == [True]


def test_what_else_is_asked_for_goes_first(
    calls: list[bool], monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    layer = layers.TargetAttention(WIDTH, [16])
    target, history = torch.randn(USERS, WIDTH, generator=generator), tokens_of("full", generator)
    with torch.no_grad():
        assert mixpol_kernels.explain(layer, target, history).backend == "cpu"
        assert layer(target, history, return_weights=True)[1].shape == (USERS, LENGTH)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(target.bfloat16(), history).dtype == torch.bfloat16
        with pytest.raises(RuntimeError, match=r"no rules for torch\.vmap"):
            torch.vmap(lambda x: layer(target, x))(history.expand(2, -1, -1, -1))
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(target, history), layer(target, history))
        assert calls == [True]  # of the last
        monkeypatch.setenv("MIXPOL_BACKEND", "reference")
        layer(target, history)
    assert calls == [True]
