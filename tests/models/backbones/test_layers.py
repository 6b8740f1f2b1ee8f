"""What defines each backbone, layer by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from backbone_cases import SIZES, batch_of, model_of, other_targets
from torch import Tensor, nn

from mixpol_kernels.nn import TargetAttention
from mixpol_models.backbones import BACKBONES, build_backbone
from mixpol_models.backbones.attend import Watch, attend
from mixpol_models.backbones.head_mix import head_mix
from mixpol_models.backbones.onetrans import MixedLayer, pyramid_lengths
from mixpol_models.backbones.padding import Padding
from mixpol_models.backbones.token_linear import TokenLinear


def outputs_of(layers: nn.ModuleList) -> list[Any]:
    """A list that fills with what the layers put out."""
    seen: list[Any] = []
    for layer in layers:
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    return seen


def test_padding_there_and_back() -> None:
    batch = batch_of()
    padding, tokens = Padding.of(batch.offsets), torch.randn(len(batch.item_ids), 4)
    padded = padding.pad(tokens)
    assert torch.equal(padding.unpad(padded), tokens)
    assert torch.equal(padding.keep.sum(1), batch.offsets.diff())
    assert padded[~padding.keep].abs().sum() == 0
    torch.testing.assert_close(padding.mean(padded + ~padding.keep[..., None])[2], tokens[3:8].mean(0))
    assert padding.mean(padded)[1].abs().sum() == 0
    assert Padding.of(torch.tensor([0])).shape == (0, 1)


def test_attend_is_softmax_over_the_kept_keys() -> None:
    query, key, value = torch.randn(3, 2, 4, 8), torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 8)
    keep = torch.rand(3, 1, 4, 5) < 0.5
    keep[0, 0, 1] = False
    watch = Watch()
    out = attend(query, key, value, keep, watch)
    torch.testing.assert_close(watch[0] @ value, out)
    assert out[0, :, 1].abs().sum() == 0
    assert watch[0].masked_select(~keep).abs().sum() == 0
    kept = keep[2, 0, 0]
    expected = (query[2, 0, 0] @ key[2, 0][kept].T / 8**0.5).softmax(-1) @ value[2, 0][kept]
    if kept.any():
        torch.testing.assert_close(out[2, 0, 0], expected)


def test_token_linear_has_a_matrix_a_token() -> None:
    layer, x = TokenLinear(3, 4, 5), torch.randn(2, 3, 4)
    expected = torch.stack([x[:, n] @ layer.weight[n] + layer.bias[n] for n in range(3)], dim=1)
    torch.testing.assert_close(layer(x), expected)


def test_head_mix_is_its_own_inverse_and_mixes_all() -> None:
    x = torch.randn(2, 4, 8)
    assert torch.equal(head_mix(head_mix(x)), x)
    assert not torch.equal(head_mix(x), x)
    assert torch.equal(head_mix(x)[:, 1], x[:, :, 2:4].flatten(1))


@pytest.mark.parametrize("form", ["transformer", "transformer-query"])
def test_transformer_positions_count_from_the_target(form: str) -> None:
    """Order matters through positions only; the newest event has the same position in any history."""
    batch = batch_of((4,))
    order = torch.tensor([2, 0, 3, 1])
    turned = replace(batch, item_ids=batch.item_ids[order], polarity=batch.polarity[order])
    batch = replace(batch, item_ids=torch.tensor([1, 2, 3, 4]))
    turned = replace(turned, item_ids=batch.item_ids[order], polarity=batch.polarity[order])
    placed, blind = model_of(form), model_of(form, positions="none")
    assert not torch.allclose(placed(batch), placed(turned), atol=1e-6)
    torch.testing.assert_close(blind(batch), blind(turned), rtol=1e-4, atol=1e-5)
    table = placed.positions.table
    assert torch.equal(placed.positions(3)[-1], table[0])


def test_transformer_target_sees_itself() -> None:
    model, watch = model_of("transformer"), Watch()
    batch = batch_of((0, 3))
    model._encode(batch, watch)
    assert [tuple(w.shape[-2:]) for w in watch] == [(4, 4), (1, 4)]
    torch.testing.assert_close(watch[1][0, :, 0, -1], torch.ones(2))


def test_the_last_layer_cut_to_the_target_is_the_whole_layer() -> None:
    layer = model_of("transformer").layers[0]
    x, keep = torch.randn(3, 6, 16), torch.rand(3, 6) < 0.7
    torch.testing.assert_close(layer(x, keep, newest=2), layer(x, keep)[:, -2:])


@pytest.mark.parametrize("fusion", ["bias", "tapf"])
def test_onetrans_history_never_sees_features(fusion: str) -> None:
    """But by TAPF, which puts the target into the history tokens themselves."""
    model, batch = model_of("onetrans-groups", fusion, layers=3), batch_of()
    seen = outputs_of(model.layers)
    model(batch)
    model(replace(other_targets(batch), user=(batch.user + 1) % 7))
    before, after = seen[:3], seen[3:]
    for (s, ns, keep), (other_s, other_ns, _) in zip(before[:-1], after[:-1], strict=True):
        assert torch.equal(s[keep], other_s[keep]) == (fusion == "bias")
        assert not torch.allclose(ns, other_ns)


def test_onetrans_is_causal() -> None:
    """A layer's state depends on itself and what came before; NS tokens see all of S."""
    layer = MixedLayer(8, 2, 3, 2, history_queries=6, dropout=0.0)
    s, ns, keep = torch.randn(1, 6, 8), torch.randn(1, 3, 8), torch.ones(1, 6, dtype=torch.bool)
    x = torch.cat([s, ns], dim=1).requires_grad_()
    out_s, out_ns, _ = layer(x[:, :6], x[:, 6:], keep, None)
    out = torch.cat([out_s, out_ns], dim=1)
    for i in range(9):
        (grad,) = torch.autograd.grad(out[0, i].sum(), x, retain_graph=True)
        reached = grad[0].abs().sum(-1) > 0
        assert reached.tolist() == [j <= i for j in range(9)], i


def test_onetrans_features_have_own_weights_and_history_shares() -> None:
    layer = MixedLayer(8, 2, 3, 2, history_queries=4, dropout=0.0)
    token, keep = torch.randn(1, 1, 8), torch.zeros(1, 4, dtype=torch.bool)
    keep[0, -1] = True
    _, ns, _ = layer(token.expand(1, 4, 8), token.expand(1, 3, 8), keep, None)
    assert not torch.allclose(ns[0, 0], ns[0, 1])
    keep[:] = True
    s, _, _ = layer(token.expand(1, 4, 8), token.expand(1, 3, 8), keep, None)
    torch.testing.assert_close(s[0, 0], s[0, 3])


def test_pyramid_lengths_are_the_published_ones() -> None:
    assert pyramid_lengths(1190, 12, 6, 32) == [1190, 960, 704, 480, 256, 12]
    assert pyramid_lengths(1500, 16, 8, 32) == [1500, 1280, 1088, 864, 640, 448, 224, 16]
    assert pyramid_lengths(54, 4, 1) == [4]


def test_the_pyramid_keeps_the_newest() -> None:
    model = model_of("onetrans-pyramid")  # 8 events and 4 features: 12, 8 and 4 queries
    assert model.history_queries == [8, 4, 0]
    seen, watch, batch = outputs_of(model.layers), Watch(), batch_of()
    model._encode(batch, watch)
    assert [s.shape[1] for s, _, _ in seen] == [7, 4, 0]
    assert torch.equal(seen[1][2], Padding.of(batch.offsets).keep[:, -4:])
    assert [tuple(w.shape[-2:]) for w in watch] == [(11, 11), (8, 11), (4, 8)]


def test_hyformer_boosting_mixes_every_token_into_every_query() -> None:
    layer = model_of("hyformer").layers[0]
    x = torch.randn(1, 8, 16, requires_grad=True)
    for i in range(8):
        (grad,) = torch.autograd.grad(layer.boost(x)[0, i].sum(), x)
        assert (grad[0].abs().sum(-1) > 0).all()
    assert model_of("hyformer").layers[-1].boost(x).shape == (1, 4, 16)  # nothing reads the features there


def test_hyformer_reads_a_set_of_events() -> None:
    model, batch = model_of("hyformer"), batch_of((5,))
    order = torch.tensor([3, 0, 4, 2, 1])
    turned = replace(batch, item_ids=batch.item_ids[order], polarity=batch.polarity[order])
    torch.testing.assert_close(model(batch), model(turned), rtol=1e-4, atol=1e-5)
    weights = model.history_attention(batch)
    torch.testing.assert_close(model.history_attention(turned), weights[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", ["none", "bias", "tapf"])
def test_mixformer_decoupled_user_heads_never_see_the_target(fusion: str) -> None:
    """Unless the fusion puts the target into the history."""

    def heads(case: str) -> tuple[Tensor, Tensor]:
        model, batch = model_of(case, fusion, user_heads=2), batch_of((3, 2, 6))
        padding = Padding.of(batch.offsets)
        first, second = (model.last_heads(model.inputs(b), padding) for b in (batch, other_targets(batch)))
        return first, second

    first, second = heads("mixformer-decoupled")
    assert torch.equal(first[:, :2], second[:, :2]) == (fusion != "tapf")
    assert not torch.allclose(first[:, 2:], second[:, 2:])
    first, second = heads("mixformer")
    assert not torch.allclose(first[:, :2], second[:, :2])


@pytest.mark.parametrize("case", ["mixformer", "mixformer-full"])
def test_mixformer_attention_is_that_of_keys_and_values(case: str) -> None:
    """Worked out without keys and values of events; here with them."""
    layer = model_of(case).layers[0]
    heads, keep = torch.randn(2, 4, 16), torch.tensor([[True] * 5, [False, False, True, True, True]])
    events = torch.randn(2, 5, 64 if layer.full else 16)
    states = layer.sequence(events)
    query = layer.query(heads + head_mix(layer.mix_norm(heads)))
    slices = states.unflatten(-1, (4, 16)) if layer.full else states[:, :, None].expand(-1, -1, 4, -1)
    key = torch.einsum("blnd,nqd->blnq", slices, layer.key.weight)
    value = torch.einsum("blnd,ndv->blnv", slices, layer.value.weight)
    scores = torch.einsum("bnq,blnq->bnl", query, key) / 16**0.5
    weights = scores.masked_fill(~keep[:, None], -torch.inf).softmax(-1)
    expected = layer.out(query + torch.einsum("bnl,blnv->bnv", weights, value))
    got, _ = layer(heads, events, keep, torch.ones(4, 16), None)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_two_lists_are_din_over_each_polarity() -> None:
    model, batch = model_of("din_two_lists", "none"), batch_of()
    table, parts = model.inputs.item_embedding.weight, []
    for attention, polarity in ((model.positive, 1), (model.negative, 0)):
        assert isinstance(attention, TargetAttention)
        for i in range(len(batch)):
            events = slice(int(batch.offsets[i]), int(batch.offsets[i + 1]))
            ids = batch.item_ids[events][batch.polarity[events] == polarity]
            history, target = table[ids][None], table[batch.target_item[i]][None]
            parts.append(attention(target, history, lengths=torch.tensor([len(ids)])))
    positive, negative = torch.cat(parts).chunk(2)
    encoded = model._encode(batch, None)
    torch.testing.assert_close(encoded[:, :16], positive, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded[:, 16:32], negative, rtol=1e-4, atol=1e-5)


def test_action_field_is_beside_the_item() -> None:
    model, batch, seen = model_of("din_action", "none"), batch_of(), []
    model.attention.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs))
    model(batch)
    ((target, history),) = seen
    items, actions = model.inputs.item_embedding.weight, model.action_embedding.weight
    assert torch.equal(history, torch.cat([items[batch.item_ids], actions[batch.polarity.long()]], -1))
    assert torch.equal(target, torch.cat([items[batch.target_item], actions[2].expand(6, -1)], -1))


def test_transact_tokens_and_outputs() -> None:
    model, batch, seen = model_of("transact", "none"), batch_of((4, 2, 0)), []
    model.layers[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    states = outputs_of(model.layers)
    encoded = model._encode(batch, None)
    items, actions = model.inputs.item_embedding.weight, model.action_embedding.weight
    expected = [actions[batch.polarity[5].long()], items[batch.item_ids[5]], items[batch.target_item[1]]]
    assert torch.equal(seen[0][1, -1], torch.cat(expected))
    last, width = states[-1], 48
    assert torch.equal(encoded[0, : 3 * width], last[0, -3:].flatten())
    assert encoded[1, :width].abs().sum() == 0  # two events only
    torch.testing.assert_close(encoded[1, 3 * width : 4 * width], model.pool(last[1, -2:].amax(0)))
    torch.testing.assert_close(encoded[2, 3 * width : 4 * width], model.pool.bias)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("case", [name for name in BACKBONES if name != "din"])
def test_parameter_counts(case: str) -> None:
    d, c, i, u, k, h = 32, 8, 12, 7, 3, 64  # widths of embedding and context; items, users, contexts; units of din
    model = build_backbone(case, **SIZES, fusion="none", embedding_dim=d, context_dim=c, tower_units=())
    tables, features = i * d + u * d + k * c, 2 * d + c
    norm, linear = 2 * d, d * d + d

    def encoder(width: int, ffn: int) -> int:
        return 4 * (width * width + width) + 2 * width * ffn + ffn + width + 2 * 2 * width

    split = features * 4 * d + 4 * d + (4 * d) ** 2 + 4 * d
    own_ffn = 4 * d * d + 3 * d  # D -> 2 D -> D with biases
    mixed = d + d + (2 * d * d + 2 * d) + 4 * (3 * d * d + 3 * d) + linear + 4 * own_ffn
    layer = 2 * (d * d + d) + 2 * linear + 2 * norm  # of HyFormer, without encoder and FFNs
    swiglu = d + 6 * d * d  # RMS gain, gate and up D -> 2 (2 D), down; the gain is shared by heads
    expected = {
        "din_two_lists": 2 * (4 * d * h + h + h + 1) + 4 * d + features + 1,
        "din_action": 3 * d + (8 * d * h + h + h + 1) + 4 * d + d + features + 1,
        "transact": 2 * d + 2 * encoder(3 * d, d) + (9 * d * d + 3 * d) + 11 * 3 * d + features + 1,
        "transformer": 51 * d + 2 * encoder(d, d) + d + features + 1,
        "onetrans": 2 * linear + split + 2 * mixed + linear + own_ffn + d + 4 * d + 1,
        "hyformer": split + (5 * d * 4 * d + 4 * d + 4 * linear) + 2 * (layer + encoder(d, 2 * d)) + 12 * own_ffn
        + 4 * d + 1,
        "mixformer": features * d + 2 * (d + 2 * (swiglu + 18 * d * d) + swiglu + 8 * d * d) + 4 * d + 1,
    }  # fmt: skip
    assert count(model) == tables + expected[case]
