"""Properties of every backbone."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from dataclasses import replace
from typing import get_args

import pytest
import torch
from backbone_cases import CASES, LENGTHS, SIZES, batch_of, crossed, loss_of, model_of, rows

from mixpol_models import backbones
from mixpol_models.backbones import BACKBONES, build_backbone, own_options
from mixpol_models.choices import BackboneName
from mixpol_models.data import Batch, InteractionLog, SequenceConfig, build_examples, synthetic_log
from mixpol_models.training.optimizer import build_optimizer

# Their polarity is in the tokens without a fusion.
OWN_POLARITY = ("din_two_lists", "din_action", "transact")
EACH = pytest.mark.parametrize("case", CASES)


def each_fusion(turn: int) -> pytest.MarkDecorator:
    """Four properties that a fusion can break: a case meets each fusion in one of them or more."""
    return pytest.mark.parametrize(("case", "fusion"), crossed(turn))


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(backbones.__path__)])
def test_docstring_examples(name: str) -> None:
    module = importlib.import_module(f"mixpol_models.backbones.{name}")
    assert module.__doc__
    assert doctest.testmod(module).failed == 0


def test_every_name_has_a_case_and_a_setting() -> None:
    assert {name for name, _ in CASES.values()} == set(BACKBONES)
    assert get_args(BackboneName) == tuple(BACKBONES)


@pytest.mark.parametrize("name", BACKBONES)
def test_docstrings_name_every_own_option(name: str) -> None:
    for option in own_options(name):
        assert f"{option}:" in (BACKBONES[name].__doc__ or "") or f"{option}," in (BACKBONES[name].__doc__ or ""), (
            option
        )


@each_fusion(0)
def test_every_parameter_gets_a_gradient(case: str, fusion: str) -> None:
    model = model_of(case, fusion)
    loss_of(model, batch_of()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        assert grad.isfinite().all(), name
        assert grad.abs().sum() > 0, name


@each_fusion(1)
def test_an_example_does_not_depend_on_its_batch(case: str, fusion: str) -> None:
    """Alone it has no pads, in the batch it has: neither they nor the neighbours change a logit or a weight."""
    model, batch = model_of(case, fusion), batch_of()
    together, weights = model(batch), model.history_attention(batch)
    for i in range(len(LENGTHS)):
        alone = rows(batch, [i])
        torch.testing.assert_close(model(alone), together[i : i + 1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            model.history_attention(alone), weights[batch.offsets[i] : batch.offsets[i + 1]], rtol=1e-4, atol=1e-5
        )


@EACH
def test_only_empty_histories(case: str) -> None:
    model, batch = model_of(case), batch_of((0, 0, 0))
    logits = model(batch)
    logits.sum().backward()
    assert logits.isfinite().all()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.is_sparse:
            assert parameter.grad.isfinite().all(), name
    assert model.history_attention(batch).shape == (0,)


@EACH
@pytest.mark.parametrize("fusion", ["none", "tapf"])
def test_polarity_matters_only_where_it_enters(case: str, fusion: str) -> None:
    model, batch = model_of(case, fusion), batch_of()
    flipped = replace(batch, polarity=1 - batch.polarity)
    assert torch.equal(model(batch), model(flipped)) == (fusion == "none" and CASES[case][0] not in OWN_POLARITY)


@each_fusion(3)
def test_history_and_user_matter(case: str, fusion: str) -> None:
    """One example with a history: another event, another user, another target or another context is another logit."""
    model, batch = model_of(case, fusion), rows(batch_of(), [2])
    logit = model(batch)
    for name, size in (("item_ids", 12), ("target_item", 12), ("user", 7), ("context", 3)):
        other = replace(batch, **{name: (getattr(batch, name) + 1) % size})
        assert not torch.equal(model(other), logit), name


@each_fusion(2)
def test_fused_and_reference_backends_agree(case: str, fusion: str) -> None:
    fused = model_of(case, fusion)
    plain = model_of(case, fusion, backend="reference")
    plain.load_state_dict(fused.state_dict())
    batch = batch_of()
    torch.testing.assert_close(fused(batch), plain(batch), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.history_attention(batch), plain.history_attention(batch), rtol=1e-4, atol=1e-5)


@EACH
def test_attention_of_the_history(case: str) -> None:
    """Softmax weights lie in 0 ... 1; dropout plays no part, and the mode of the model stays."""
    model, batch = model_of(case, dropout=0.5), batch_of()
    weights = model.history_attention(batch)
    assert weights.shape == batch.item_ids.shape
    assert weights.abs().sum() > 0
    assert not weights.requires_grad
    assert model.training
    torch.testing.assert_close(weights, model.history_attention(batch), rtol=0, atol=0)
    if CASES[case][0].startswith("din"):
        return
    assert weights.min() >= 0
    for i, length in enumerate(LENGTHS):
        total = float(weights[batch.offsets[i] : batch.offsets[i + 1]].sum())
        if case.startswith(("onetrans", "transformer")) and "query" not in case:
            assert total < 1
        else:
            assert total == pytest.approx(float(length > 0), abs=1e-5)


@EACH
def test_without_users(case: str) -> None:
    options = {"queries": 2} if case == "hyformer-groups" else {}
    model, batch = model_of(case, user_embedding=False, **options), batch_of()
    assert model(batch).shape == (len(LENGTHS),)
    assert torch.equal(model(batch), model(replace(batch, user=(batch.user + 1) % 7)))


@EACH
def test_sparse_and_dense_tables_have_one_gradient(case: str) -> None:
    sparse, dense = model_of(case, sparse=True), model_of(case, sparse=False)
    dense.load_state_dict(sparse.state_dict())
    batch = batch_of()
    for model in (sparse, dense):
        loss_of(model, batch).backward()
    tables = [name for name, p in sparse.named_parameters() if p.grad.is_sparse]
    assert len(tables) == 2
    for name in tables:
        expected = dense.get_parameter(name).grad
        assert not expected.is_sparse
        torch.testing.assert_close(sparse.get_parameter(name).grad.to_dense(), expected, rtol=1e-4, atol=1e-6)


@EACH
def test_bfloat16_is_near(case: str) -> None:
    model, batch = model_of(case), batch_of()
    plain = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(batch)
        loss_of(model, batch).backward()
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, rtol=0.1, atol=0.1)


@pytest.fixture(scope="module")
def log() -> InteractionLog:
    return synthetic_log(n_users=40, n_items=20, n_groups=4, mean_length=12.0)


@pytest.fixture(scope="module")
def examples(log: InteractionLog) -> Batch:
    train = build_examples(log, SequenceConfig(budget=8)).train
    return train[range(min(len(train), 200))]


@EACH
def test_learns(case: str, log: InteractionLog, examples: Batch) -> None:
    """The loss falls well below that of the base rate on a few examples of the synthetic log."""
    batch = examples
    name, options = CASES[case]
    torch.manual_seed(0)
    sizes = {key: getattr(log, key) for key in SIZES}
    model = build_backbone(name, **sizes, **{"embedding_dim": 16, "fusion": "tapf"} | options)
    optimizer = build_optimizer(model, lr=0.01)
    start = float(loss_of(model, batch).detach())
    for _ in range(25):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    rate = float(batch.label.mean())
    base = -(rate * torch.tensor(rate).log() + (1 - rate) * torch.tensor(1 - rate).log())
    assert float(loss_of(model, batch).detach()) < 0.8 * min(start, float(base))


@EACH
def test_lengths_beyond_the_positions_are_refused(case: str) -> None:
    name, _ = CASES[case]
    if "max_length" not in own_options(name):
        return
    model = model_of(case, max_length=6)
    with pytest.raises(ValueError, match=r"7.*expected at most 6|8 positions, expected at most 7.*max_length"):
        model(batch_of())


def test_own_options_are_those_beyond_the_shared_ones() -> None:
    assert own_options("transact") == ("layers", "heads", "action_dim", "ffn_dim", "first")
    assert own_options("din_action") == ("attention_units", "activation", "normalize", "action_dim")
    for function in (own_options, build_backbone):
        with pytest.raises(ValueError, match=r"backbone is 'dim', expected one of \('din', "):
            function("dim")


def test_table_sizes_may_be_given_by_place() -> None:
    assert BACKBONES["mixformer"](4, 3, 2).options == BACKBONES["mixformer"](n_items=4, n_users=3, n_contexts=2).options
    with pytest.raises(TypeError):
        BACKBONES["mixformer"](4, 3, 2, 16)
    with pytest.raises(TypeError, match="fusoin"):
        BACKBONES["din"](4, 3, 2, fusoin="none")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("transformer", {"heads": 3}, "heads is 3, expected a divisor of 32"),
        ("transformer", {"form": "both"}, "form"),
        ("transformer", {"layers": 0}, "layers is 0, expected at least 1"),
        ("onetrans", {"ns_form": "semantic"}, "ns_form"),
        ("hyformer", {"queries": 3}, "queries is 3, which with 4 feature tokens makes 7, expected a divisor of"),
        ("hyformer", {"encoder": "longer"}, "encoder"),
        ("mixformer", {"heads": 5}, "heads is 5, expected a divisor of embedding_dim=32"),
        ("mixformer", {"decoupled": True, "user_heads": 4}, "user_heads is 4, expected 1 ... 3"),
        ("transact", {"heads": 5}, "heads is 5, expected a divisor of 96"),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        build_backbone(name, **SIZES, **options)
