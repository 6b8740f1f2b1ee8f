"""The encoders against the plain form, and what the published architecture promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pnfrec_helpers import N_ITEMS, model_and_batches

from mixpol_models.pnfrec.config import PNFRecConfig
from mixpol_models.pnfrec.events import Events
from mixpol_models.pnfrec.model import PNFRec, _causal
from mixpol_models.pnfrec.objective import Objective
from mixpol_models.pnfrec.reference import PlainPNFRec
from mixpol_models.pnfrec.variants import VARIANTS, variant

EVERYONE = torch.arange(5)
OVER_POSITIVES = [name for name, found in VARIANTS.items() if found.sequence == "positive"]


@pytest.mark.parametrize("name", OVER_POSITIVES)
@pytest.mark.parametrize("own_positions", [False, True])
def test_loss_and_gradients_are_those_of_the_plain_form(
    name: str, own_positions: bool, config: PNFRecConfig, events: Events
) -> None:
    config = config.model_copy(update={"own_positions": own_positions})
    model, batches = model_and_batches(name, config, events)
    model = model.double()
    plain = PlainPNFRec(model.float(), config, variant(name)).double()
    model = model.double()
    batch = batches.of(EVERYONE)
    loss, terms = Objective(config, variant(name), torch.device("cpu"))(model, batch)
    expected, expected_terms = plain.loss(batch)
    assert terms.keys() == expected_terms.keys()
    for term, value in terms.items():
        torch.testing.assert_close(value, expected_terms[term])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    # Row 0: padding is no input, so the tied output alone moves it, here and there.
    torch.testing.assert_close(model.item_table.grad, plain.items.weight.grad)
    assert model.item_table.grad[0].abs().max() > 0
    for ours, theirs in zip(model.positions, plain.positions, strict=True):
        torch.testing.assert_close(ours.grad, theirs.weight.grad[: len(ours)])
    for encoder in model.names:
        for ours, theirs in zip(model.encoders[encoder], plain.encoders[encoder], strict=True):
            torch.testing.assert_close(ours.feed_in.weight.grad, theirs.feed_in.weight.grad[:, :, 0])
            torch.testing.assert_close(ours.attention.in_proj_weight.grad, theirs.attention.in_proj_weight.grad)
            torch.testing.assert_close(ours.query_norm.weight.grad, theirs.query_norm.weight.grad)


@pytest.mark.parametrize("name", ["sasrec_p", "sasrec", "mixed_bias"])
def test_causal(name: str, config: PNFRecConfig, events: Events) -> None:
    model, batches = model_and_batches(name, config, events)
    tokens = batches.of(torch.tensor([3])).main
    before = model(tokens)
    tokens.item[-1] = tokens.item[-1] % N_ITEMS + 1
    after = model(tokens)
    assert torch.equal(before[:-1], after[:-1])
    assert not torch.allclose(before[-1], after[-1])


@pytest.mark.parametrize("name", list(VARIANTS))
def test_neighbours_do_not_matter(name: str, config: PNFRecConfig, events: Events) -> None:
    """Alone or in a batch that pads: the same states."""
    model, batches = model_and_batches(name, config, events)
    together = batches.of(EVERYONE).main
    alone = torch.cat([model(batches.of(user).main) for user in EVERYONE.split(1)])
    torch.testing.assert_close(model(together), alone)


def test_a_block_keeps_the_published_residuals(config: PNFRecConfig, events: Events) -> None:
    """Both residuals carry normalised values: with zero attention and feed-forward output, LN₂(LN₁(x)) is left."""
    model, batches = model_and_batches("sasrec_p", config, events)
    block, tokens = model.encoders["positive"][0], batches.of(EVERYONE).main
    with torch.no_grad():
        for layer in (block.attention.out_proj, block.feed_out):
            layer.weight.zero_()
            layer.bias.zero_()
        x = torch.randn(len(tokens.item), config.width) * 5
        torch.testing.assert_close(block(x, tokens), block.feed_norm(block.query_norm(x)))


def test_keys_and_values_are_not_normalised(config: PNFRecConfig, events: Events) -> None:
    model, batches = model_and_batches("sasrec_p", config, events)
    block, tokens = model.encoders["positive"][0], batches.of(EVERYONE).main
    x = torch.randn(len(tokens.item), config.width)
    # A normalised value would not change with the scale of its token.
    assert not torch.allclose(block(x, tokens), block(3 * x, tokens), atol=1e-3)


def test_what_is_shared(config: PNFRecConfig) -> None:
    shared = PNFRec(N_ITEMS, config, variant("pnfrec"), 0)
    own = PNFRec(N_ITEMS, config.model_copy(update={"own_positions": True}), variant("pnfrec"), 0)
    single = PNFRec(N_ITEMS, config, variant("sasrec_p"), 0)
    size = {model: sum(p.numel() for p in model.parameters()) for model in (shared, own, single)}
    encoder = sum(p.numel() for p in shared.encoders["negative"].parameters())
    assert size[shared] - size[single] == encoder
    assert size[own] - size[shared] == config.max_length * config.width


def test_the_head_is_tied(config: PNFRecConfig, events: Events) -> None:
    model, batches = model_and_batches("sasrec_p", config, events)
    batch = batches.of(EVERYONE)
    loss, _ = Objective(config, variant("sasrec_p"), torch.device("cpu"))(model, batch)
    logits = model(batch.main) @ model.item_table.T
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, batch.main.label))


def test_twin_initialisation(config: PNFRecConfig) -> None:
    def weights(twins: bool) -> list[torch.Tensor]:
        model = PNFRec(N_ITEMS, config.model_copy(update={"twin_init": twins}), variant("pnfrec"), 42)
        assert not model.item_table[0].any()
        return [block.feed_in.weight for encoder in model.encoders.values() for block in encoder]

    first, *others = weights(True)
    assert all(torch.equal(first, other) for other in others)
    assert first.std().item() == pytest.approx(0.02, rel=0.4)
    first, *others = weights(False)
    assert not any(torch.equal(first, other) for other in others)


def test_last_states(config: PNFRecConfig, events: Events) -> None:
    model, batches = model_and_batches("sasrec_p", config, events)
    tokens = batches.of(EVERYONE).main
    states = model(tokens)
    torch.testing.assert_close(model.last_states(tokens), states[tokens.lengths.cumsum(0) - 1])


def test_polarity_marks_matter(config: PNFRecConfig, events: Events) -> None:
    model, batches = model_and_batches("mixed_bias", config, events)
    tokens = batches.of(EVERYONE).main
    scale = config.width**0.5
    expected = scale * model.item_table[tokens.item] + model.polarity_table[tokens.polarity]
    torch.testing.assert_close(model._embed(tokens, "positive"), expected + model.positions[0][tokens.position])


def test_tapf_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="target item, which next-item prediction does not have"):
        variant("mixed_tapf")


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="heads is 3 with width 8"):
        PNFRec(N_ITEMS, PNFRecConfig(width=8, heads=3), variant("sasrec_p"), 0)


def test_bfloat16(config: PNFRecConfig, events: Events) -> None:
    model, batches = model_and_batches("pnfrec", config, events)
    exact, _ = Objective(config, variant("pnfrec"), torch.device("cpu"))(model, batches.of(EVERYONE))
    low = config.model_copy(update={"precision": "bf16"})
    model, batches = model_and_batches("pnfrec", low, events)
    loss, _ = Objective(low, variant("pnfrec"), torch.device("cpu"))(model, batches.of(EVERYONE))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.03)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_attention_with_dropout_is_causal_attention(generator: torch.Generator) -> None:
    """A rate that rounds to 0 takes the same way as any other."""
    query, key, value = (torch.randn(3, 2, 7, 5, generator=generator).requires_grad_() for _ in range(3))
    want = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    got = _causal(query, key, value, p=1e-9)
    torch.testing.assert_close(got, want)
    weight = torch.randn(got.shape, generator=generator)
    for ours, theirs in zip(
        torch.autograd.grad(got, (query, key, value), weight),
        torch.autograd.grad(want, (query, key, value), weight),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    dropped = _causal(query, key, torch.ones_like(value), p=0.5).detach()
    assert float((dropped - 1).abs().max()) > 0.1
