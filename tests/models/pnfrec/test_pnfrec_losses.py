"""Losses against their formulas in float64, and the chunked head."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from pnfrec_helpers import model_and_batches
from torch import Tensor

from mixpol_models.pnfrec import linear_cross_entropy as lce
from mixpol_models.pnfrec.config import PNFRecConfig
from mixpol_models.pnfrec.contrast import contrast, infonce
from mixpol_models.pnfrec.events import Events
from mixpol_models.pnfrec.linear_cross_entropy import choose_head, chunked_cross_entropy, mean_cross_entropy
from mixpol_models.pnfrec.objective import Objective
from mixpol_models.pnfrec.streams import Stream, Tokens
from mixpol_models.pnfrec.variants import VARIANTS, variant

EVERYONE = torch.arange(5)
CPU, GPU = torch.device("cpu"), torch.device("cuda")
V, D = 31, 6


def batch(events: Events) -> tuple[Tokens, Tensor]:
    positive, negative = (Stream.of(events, kind, 4).batch(EVERYONE) for kind in ("positive", "negative"))
    return positive, negative.pad(negative.item)


def direct(states: Tensor, tokens: Tokens, table: Tensor, negatives: Tensor, cosine: bool) -> list[Tensor]:
    """The formula, position by position."""
    user = torch.repeat_interleave(EVERYONE, tokens.lengths)

    def f(h: Tensor, e: Tensor) -> Tensor:
        return F.cosine_similarity(h, e, dim=0) if cosine else h @ e

    losses = []
    for t, h in enumerate(states):
        gold = f(h, table[tokens.label[t]])
        others = [f(h, table[j]) for j in negatives[user[t]].tolist() if j != 0]
        losses.append(torch.stack([gold, *others]).logsumexp(0) - gold)
    return losses


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_contrast(similarity: str, reduction: str, scale: float, events: Events) -> None:
    tokens, negatives = batch(events)
    states, table = (torch.randn(n, D, dtype=torch.float64) * scale for n in (len(tokens.item), V))
    losses = torch.stack(direct(states, tokens, table, negatives, similarity == "cosine"))
    expected = losses.mean() if reduction == "mean" else losses.sum()
    options = {"similarity": similarity, "reduction": reduction}
    torch.testing.assert_close(contrast(states, tokens, table, negatives, **options), expected)
    # Dot products of 200² overflow exp in float32, and the rounded inputs of bfloat16 are another point.
    found = contrast(states.float(), tokens, table.float(), negatives, **options)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    low, low_table = states.bfloat16(), table.bfloat16()
    of_low = torch.stack(direct(low.double(), tokens, low_table.double(), negatives, similarity == "cosine"))
    of_low = of_low.mean() if reduction == "mean" else of_low.sum()
    found = contrast(low, tokens, low_table.float(), negatives, **options)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), of_low, rtol=1e-4, atol=1e-5)


def test_contrast_without_negatives_is_zero(events: Events) -> None:
    tokens, negatives = batch(events)
    states, table = torch.randn(len(tokens.item), D, requires_grad=True), torch.randn(V, D)
    loss = contrast(states, tokens, table, torch.zeros_like(negatives))
    loss.backward()
    assert loss.item() == 0
    assert not states.grad.any()


def test_contrast_refuses_other_forms(events: Events) -> None:
    tokens, negatives = batch(events)
    with pytest.raises(ValueError, match="similarity is 'euclid'"):
        contrast(torch.randn(len(tokens.item), D), tokens, torch.randn(V, D), negatives, similarity="euclid")


@pytest.mark.parametrize("pairing", ["published", "fixed"])
def test_infonce(pairing: str, events: Events) -> None:
    tokens = Stream.of(events, "all", 6).batch(EVERYONE)
    states, table = (torch.randn(n, D, dtype=torch.float64) for n in (len(tokens.item), V))
    users, length = len(tokens.lengths), tokens.length
    padded = {name: tokens.pad(getattr(tokens, name)) for name in ("item", "label", "label_positive")}
    skipped = tokens.pad(1 - tokens.polarity).bool()
    h = tokens.pad(states)
    losses = []
    for row in range(users * length):
        b, t = divmod(row, length)
        if pairing == "fixed":
            if not padded["label_positive"][b, t]:
                continue
            others = [table[i] for i, skip in zip(padded["item"][b], skipped[b], strict=True) if skip]
            query, key = h[b, t], table[padded["label"][b, t]]
        else:
            other = row % users
            others = [table[i] * skip for i, skip in zip(padded["item"][other], skipped[other], strict=True)]
            on = padded["label_positive"][b, t]
            query, key = h[b, t] * on, table[padded["label"][b, t]] * on
        scores = torch.stack([F.cosine_similarity(query, e, dim=0) for e in (key, *others)]) / 0.1
        losses.append(scores.logsumexp(0) - scores[0])
    torch.testing.assert_close(infonce(states, tokens, table, pairing=pairing), torch.stack(losses).mean())


def test_published_pairing_takes_other_users_negatives(events: Events) -> None:
    """The fault: a user's skipped items move the others' loss, and with the right pairing they do not."""
    tokens = Stream.of(events, "all", 6).batch(EVERYONE)
    table = torch.randn(V, D)
    states = torch.randn(len(tokens.item), D, requires_grad=True)
    changed = table.clone()
    changed[tokens.item[tokens.slot < tokens.length][tokens.polarity[tokens.slot < tokens.length] == 0]] *= -1
    changed[tokens.label] = table[tokens.label]
    others = tokens.slot >= tokens.length
    lonely = ~torch.isin(tokens.item, (changed != table).any(1).nonzero()[:, 0])
    assert (lonely | ~others).any()

    def gradient(of: Tensor, pairing: str) -> Tensor:
        return torch.autograd.grad(infonce(states, tokens, of, pairing=pairing), states)[0]

    users = {int(s) // tokens.length for s in tokens.slot[~lonely & (tokens.polarity == 0)]}
    outside = torch.tensor([int(s) // tokens.length not in users for s in tokens.slot])
    assert outside.any()
    assert torch.equal(gradient(table, "fixed")[outside], gradient(changed, "fixed")[outside])
    assert not torch.equal(gradient(table, "published")[outside], gradient(changed, "published")[outside])


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_chunked_values_and_gradients(rows: int) -> None:
    hidden = torch.randn(7, D, dtype=torch.float64, requires_grad=True)
    table = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    label = torch.randint(V, (7,))
    found, expected = chunked_cross_entropy(hidden, table, label, rows), F.cross_entropy(hidden @ table.T, label)
    torch.testing.assert_close(found, expected)
    pairs = (torch.autograd.grad(3 * loss, (hidden, table)) for loss in (found, expected))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(lambda h, e: chunked_cross_entropy(h, e, label, rows), (hidden, table))


def test_chunked_with_large_logits() -> None:
    hidden = (torch.randn(9, D) * 100).requires_grad_()
    table = (torch.randn(V, D) * 100).requires_grad_()
    label = torch.randint(V, (9,))
    loss = chunked_cross_entropy(hidden, table, label, 4)
    exact = F.cross_entropy(hidden.double() @ table.double().T, label)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(*(torch.autograd.grad(x, (hidden, table)) for x in (loss, exact)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_chunked_in_bfloat16() -> None:
    hidden = torch.randn(50, D).bfloat16().requires_grad_()
    table = torch.randn(V, D, requires_grad=True)
    label = torch.randint(V, (50,))
    loss = chunked_cross_entropy(hidden, table, label)
    exact = F.cross_entropy(hidden.float() @ table.T, label)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0.02)
    ours, theirs = (torch.autograd.grad(x, table)[0] for x in (loss, exact))
    assert ours.dtype == torch.float32
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_chunked_for_one_side_only() -> None:
    hidden, table, label = torch.randn(5, D), torch.randn(V, D, requires_grad=True), torch.randint(V, (5,))
    chunked_cross_entropy(hidden, table, label).backward()
    torch.testing.assert_close(
        table.grad, torch.autograd.grad(F.cross_entropy(hidden @ table.T, label), table)[0], rtol=1e-4, atol=1e-6
    )


def test_chunked_without_tokens() -> None:
    hidden, table = torch.zeros(0, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    loss = chunked_cross_entropy(hidden, table, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert not table.grad.any()


def test_chunked_keeps_no_logits() -> None:
    hidden, table = torch.randn(400, D, requires_grad=True), torch.randn(1000, D, requires_grad=True)
    largest = 0

    def pack(saved: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        chunked_cross_entropy(hidden, table, torch.randint(1000, (400,)))
    assert largest <= table.numel()


def test_chunked_refuses_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"hidden is \(5, 6\), table \(31, 7\)"):
        chunked_cross_entropy(torch.randn(5, 6), torch.randn(31, 7), torch.zeros(5, dtype=torch.int64))


def test_chunked_refuses_second_derivatives() -> None:
    hidden = torch.randn(3, D, requires_grad=True)
    loss = chunked_cross_entropy(hidden, torch.randn(V, D), torch.randint(V, (3,)))
    (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad.sum().backward()


@pytest.mark.parametrize("name", list(VARIANTS))
def test_loss_terms(name: str, config: PNFRecConfig, events: Events) -> None:
    expected = {
        "pnfrec": {"CE_p": 1.0, "CE_n": 0.45, "L_c": 0.25},
        "pnfrec_pn": {"CE_p": 1.0, "CE_n": 0.45},
        "pnfrec_pc": {"CE_p": 1.0, "L_c": 0.25},
        "sasrec_p": {"CE_p": 1.0},
        "sasrec": {"CE_p": 1.0},
        "sasrec_c": {"CE_p": 1.0, "InfoNCE": 0.25},
        "mixed_bias": {"CE_p": 1.0},
        "mixed_bias_c": {"CE_p": 1.0, "L_c": 0.25},
    }[name]
    model, batches = model_and_batches(name, config, events)
    loss, terms = Objective(config, variant(name), CPU)(model, batches.of(EVERYONE))
    assert terms.keys() == expected.keys()
    torch.testing.assert_close(loss, sum(weight * terms[term] for term, weight in expected.items()))
    loss.backward()
    # One encoder is one encoder, and the second is trained.
    assert set(model.encoders) == ({"positive", "negative"} if "CE_n" in expected else {"positive"})
    assert all(p.grad is not None for p in model.encoders.parameters())


def fake(name: str, monkeypatch: pytest.MonkeyPatch, **members: object) -> None:
    """An installed package, as far as `find_spec` and `import_module` can tell."""
    module = ModuleType(name)
    module.__dict__.update(members, __spec__=object())
    monkeypatch.setitem(sys.modules, name, module)


def test_heads_on_a_cpu() -> None:
    assert choose_head("auto", CPU, torch.float32)[0] == "chunked"
    assert "'cpu'" in lce.explain_head("auto", CPU, torch.float32)
    with pytest.raises(ValueError, match="head is 'liger' on 'cpu', expected a GPU"):
        choose_head("liger", CPU, torch.float32)
    with pytest.raises(ValueError, match="head is 'best'"):
        choose_head("best", CPU, torch.float32)


def test_heads_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lce, "find_spec", lambda name: None)
    assert choose_head("auto", GPU, torch.float32)[0] == "chunked"
    with pytest.raises(ValueError, match="cut_cross_entropy is not installed"):
        choose_head("cut_cross_entropy", GPU, torch.float32)
    monkeypatch.setattr(lce, "find_spec", lambda name: object())
    assert choose_head("auto", GPU, torch.float32)[0] == "liger"
    assert choose_head("auto", GPU, torch.bfloat16)[0] == "cut_cross_entropy"
    monkeypatch.setattr(lce, "find_spec", lambda name: object() if name == "liger_kernel" else None)
    assert choose_head("auto", GPU, torch.bfloat16)[0] == "liger"


def test_the_packages_are_called_as_they_want(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(e: Tensor, c: Tensor, targets: Tensor, *, reduction: str, impl: str) -> Tensor:
        assert (reduction, impl) == ("mean", "cce_exact")
        assert e.dtype == c.dtype
        return F.cross_entropy((e @ c.T).float(), targets)

    class Liger:
        def __init__(self, reduction: str) -> None:
            assert reduction == "mean"

        def __call__(self, lin_weight: Tensor, _input: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy((_input @ lin_weight.T).float(), target)

    fake("cut_cross_entropy", monkeypatch, linear_cross_entropy=cut)
    fake("liger_kernel", monkeypatch)
    fake("liger_kernel.transformers", monkeypatch, LigerFusedLinearCrossEntropyLoss=Liger)
    hidden, table, label = torch.randn(5, D), torch.randn(V, D), torch.randint(V, (5,))
    expected = F.cross_entropy(hidden @ table.T, label)
    for name in ("cut_cross_entropy", "liger"):
        torch.testing.assert_close(mean_cross_entropy(name)(hidden, table, label), expected)
        assert mean_cross_entropy(name)(hidden[:0], table, label[:0]).item() == 0


def test_an_untrained_model_knows_nothing(events: Events) -> None:
    """Small weights give all items nearly the same probability: the loss is log of the catalogue."""
    from mixpol_models.pnfrec.model import PNFRec
    from mixpol_models.pnfrec.objective import Batches

    config = PNFRecConfig(width=16)
    model = PNFRec(30, config, variant("sasrec_p"), 0)
    loss, _ = Objective(config, variant("sasrec_p"), CPU)(
        model, Batches(events, config, variant("sasrec_p")).of(EVERYONE)
    )
    assert loss.item() == pytest.approx(math.log(31), rel=0.05)
