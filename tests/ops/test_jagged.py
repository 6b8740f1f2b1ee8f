"""Jagged tensors of torch.nested and TorchRec in place of values and offsets: functions and modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from public_calls import COUNTS, DIFFERENTIABLE, TOKENS, USERS, call, outputs
from torch import Tensor, nn

import mixpol_kernels as mk

# Arguments with a row a token.
JAGGED = ("history", "tokens", "item_ids", "item_rows", "polarity", "extra_ids")
OFFSETS = torch.tensor([0, 2, 2, 6])


def nested(values: Tensor, offsets: Tensor) -> Tensor:
    return torch.nested.nested_tensor_from_jagged(values, offsets)


def with_holes(values: Tensor, offsets: Tensor) -> Tensor:
    """A view of padded rows, each from another position on: what `torch.nested.narrow` makes."""
    lengths, starts = offsets.diff(), torch.tensor([1, 0, 2])
    padded = values.new_zeros((USERS, 7, *values.shape[1:]))
    for user, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        padded[user, start : start + length] = values[offsets[user] : offsets[user + 1]]
    return torch.nested.narrow(padded, 1, starts, lengths, layout=torch.jagged)


def torchrec(values: Tensor, offsets: Tensor) -> Any:
    return pytest.importorskip("torchrec.sparse.jagged_tensor").JaggedTensor(values, offsets=offsets)


def of_lengths(values: Tensor, offsets: Tensor) -> Any:
    module = pytest.importorskip("torchrec.sparse.jagged_tensor")
    return module.KeyedJaggedTensor(keys=["clicks"], values=values, lengths=offsets.diff().int())


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "nested": nested, "holes": with_holes, "torchrec": torchrec, "one feature": of_lengths,
}  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_is_the_call_with_offsets(name: str, form: str, backend: str, generator: torch.Generator) -> None:
    """All arguments jagged, and only the first one."""
    function, arguments = call(name, generator)
    expected = outputs(function(**arguments, backend=backend))
    offsets = arguments.pop("offsets")
    every = [key for key in JAGGED if arguments.get(key) is not None]
    for keys in (every, every[:1]):
        given = arguments | {key: FORMS[form](arguments[key], offsets) for key in keys}
        found = outputs(function(**given, backend=backend))
        for got, want in zip(found, expected, strict=True):
            assert torch.equal(got.values() if got.is_nested else got, want)
        tokens = name.startswith(("polarity_fusion", "polarity_embedding"))
        assert found[0].is_nested == (tokens and form in ("nested", "holes"))


def test_results_of_nested_tokens_fit_them(generator: torch.Generator) -> None:
    function, arguments = call("polarity_fusion", generator)
    tokens = nested(arguments["tokens"], arguments.pop("offsets"))
    fused = function(**(arguments | {"tokens": tokens}))
    assert (fused + tokens).shape == tokens.shape == fused.shape


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradients_flow_back(backend: str, generator: torch.Generator) -> None:
    layer = mk.nn.TargetAttention(4, [3], backend=backend)
    target, values = torch.randn(3, 4, generator=generator), torch.randn(TOKENS, 4, generator=generator)
    flat = values.clone().requires_grad_()
    layer(target, flat, offsets=OFFSETS).sum().backward()
    leaf = nested(values.clone(), OFFSETS).detach().requires_grad_()
    layer(target, leaf).sum().backward()
    rows = [part.clone().requires_grad_() for part in values.split(COUNTS)]
    layer(target, torch.nested.as_nested_tensor(rows, layout=torch.jagged)).sum().backward()
    padded = torch.randn(3, 7, 4, generator=generator, requires_grad=True)
    starts, lengths = torch.tensor([1, 0, 2]), torch.tensor([2, 0, 4])
    layer(target, torch.nested.narrow(padded, 1, starts, lengths, layout=torch.jagged)).sum().backward()
    position = torch.arange(7)
    mask = (position >= starts[:, None]) & (position < (starts + lengths)[:, None])
    (expected,) = torch.autograd.grad(layer(target, padded, mask=mask).sum(), padded)
    assert leaf.grad is not None
    assert flat.grad is not None
    assert torch.equal(leaf.grad.values(), flat.grad)
    assert torch.equal(torch.cat([row.grad for row in rows if row.grad is not None]), flat.grad)
    assert padded.grad is not None
    assert torch.equal(padded.grad, expected)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "target attention": lambda: mk.nn.TargetAttention(4, [3]),
    "dice": lambda: mk.nn.TargetAttention(4, [3], activation="dice"),
    "batch norm": lambda: mk.nn.TargetAttention(4, [3, 2], batch_norm=True),
    "dot": lambda: mk.nn.MultiHeadTargetAttention(4, num_heads=2),
    "mixed": lambda: mk.nn.MixedPolarityAttention(9, 4, [3]),
    "mixed, dice": lambda: mk.nn.MixedPolarityAttention(9, 4, [3], activation="dice"),
    "embedding": lambda: mk.nn.PolarityEmbedding(9, 4),
    "fusion": lambda: mk.nn.PolarityFusion(4),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str, gradients: bool, form: str, generator: torch.Generator) -> None:
    layer = MODULES[name]().train(gradients)
    target, values = torch.randn(3, 4, generator=generator), torch.randn(TOKENS, 4, generator=generator)
    ids, polarity = torch.randint(9, (TOKENS,), generator=generator), torch.randint(2, (TOKENS,), generator=generator)
    flat: dict[str, tuple[Tensor, ...]] = {
        "mixed": (ids, polarity),
        "embedding": (ids, polarity),
        "fusion": (values, polarity),
    }
    history = flat.get(name.split(",")[0], (values,))
    start = () if name == "embedding" else (target,)
    with torch.set_grad_enabled(gradients):
        expected = layer(*start, *history, offsets=OFFSETS)
        got = layer(*start, *(FORMS[form](part, OFFSETS) for part in history))
    assert torch.equal(got.values() if got.is_nested else got, expected)


def test_compiles(generator: torch.Generator) -> None:
    layer = mk.nn.TargetAttention(4, [3])
    target, values = torch.randn(3, 4, generator=generator), torch.randn(TOKENS, 4, generator=generator)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(target, nested(values, OFFSETS)), layer(target, values, offsets=OFFSETS))


def test_refused(generator: torch.Generator) -> None:
    target, values = torch.randn(3, 4, generator=generator), torch.randn(TOKENS, 4, generator=generator)
    history, polarity = nested(values, OFFSETS), torch.zeros(TOKENS, dtype=torch.int64)
    other = nested(polarity, torch.tensor([0, 1, 2, 6]))
    attention, fusion = mk.nn.TargetAttention(4, [3]), mk.nn.PolarityFusion(4)
    two = pytest.importorskip("torchrec.sparse.jagged_tensor").KeyedJaggedTensor(
        keys=["clicks", "skips"], values=polarity, lengths=torch.tensor([2, 0, 0, 1, 0, 3])
    )
    weighted = pytest.importorskip("torchrec.sparse.jagged_tensor").JaggedTensor(
        values, offsets=OFFSETS, weights=torch.ones(TOKENS)
    )
    strided = torch.nested.as_nested_tensor(list(values.split(COUNTS)), layout=torch.strided)
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (TypeError, "history was a nested tensor of layout torch.strided; expected layout=torch.jagged",
         lambda: attention(target, strided)),
        (ValueError, "history was a nested tensor with ragged dimension 2",
         lambda: attention(target, history.transpose(1, 2))),
        (ValueError, "offsets was given and history is jagged", lambda: attention(target, history, offsets=OFFSETS)),
        (ValueError, "mask was given and history is jagged", lambda: attention(target, history, mask=OFFSETS)),
        (ValueError, "history has 3 users and target has 2", lambda: attention(target[:2], history)),
        (TypeError, "history was a list; expected a tensor", lambda: attention(target, [1])),
        (TypeError, "target was a nested tensor; expected a dense one",
         lambda: mk.dot_target_attention(history, values, offsets=OFFSETS)),
        (ValueError, "polarity and tokens have other offsets", lambda: fusion(target, history, other)),
        (ValueError, r"polarity has the features \['clicks', 'skips'\]; expected one of them, say polarity\['clicks'\]",
         lambda: fusion(target, history, two)),
        (ValueError, "history has weights, which no op reads", lambda: attention(target, weighted)),
    ]  # fmt: skip
    for error, words, attempt in cases:
        with pytest.raises(error, match=words):
            attempt()


@pytest.mark.parametrize("gradients", [False, True])
def test_unseen_ids(gradients: bool) -> None:
    """An id outside the item table is refused by its name in the call, the target's too."""
    layer = mk.nn.MixedPolarityAttention(9, 4, [3])
    trained = mk.nn.MixedPolarityAttention(9, 4, [3], activation="dice").train()
    ids, polarity, target = torch.tensor([1, 2, 3]), torch.tensor([0, 1, 0]), torch.tensor([4, 5])
    offsets = torch.tensor([0, 1, 3])
    with torch.set_grad_enabled(gradients):
        for each in (layer, trained):
            for value in (9, -1):
                wrong = torch.tensor([4, value])
                with pytest.raises(RuntimeError, match=rf"target has {value} at position 1; expected 0 \.\.\. 8"):
                    each(wrong, ids, polarity, offsets=offsets)
            with pytest.raises(RuntimeError, match=r"item_ids has 9 at position 2; expected 0 \.\.\. 8"):
                each(target, torch.tensor([1, 2, 9]), polarity, offsets=offsets)
