"""`mixpol_kernels.nn.MixedPolarityAttention`."""

from __future__ import annotations

import copy

import pytest
import torch

from mixpol_kernels.nn import MixedPolarityAttention

IDS, POLARITY = torch.tensor([3, 1, 2, 9, 1]), torch.tensor([1, 0, 0, 1, 1])
OFFSETS = torch.tensor([0, 2, 2, 5])


def test_state_dict() -> None:
    layer = MixedPolarityAttention(10, 4, [8], activation="prelu")
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == {
        "item_embedding.weight": (10, 4),
        "fusion.sign": (2,),
        "fusion.polarity_table": (2, 4),
        "fusion.gate.weight": (4, 4),
        "fusion.gate.bias": (4,),
        "fusion.target_projection.weight": (4, 4),
        "attention.layers.0.weight": (8, 16),
        "attention.layers.0.bias": (8,),
        "attention.layers.1.weight": (1, 8),
        "attention.layers.1.bias": (1,),
        "attention.slopes.0": (8,),
    }


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("fusion", ["none", "bias", "tapf"])
def test_is_its_parts(fusion: str, backend: str) -> None:
    """The parts, called one after the other, give the same."""
    layer = MixedPolarityAttention(10, 4, [8], fusion, "silu", "softmax", backend=backend)
    if fusion == "tapf":
        torch.nn.init.normal_(layer.fusion.target_projection.weight)  # type: ignore[union-attr]
    target = torch.randn(3, 4)
    tokens = layer.fusion(target, layer.item_embedding(IDS), POLARITY, offsets=OFFSETS)
    expected, weights = layer.attention(target, tokens, offsets=OFFSETS, return_weights=True)
    got, got_weights = layer(target, IDS, POLARITY, offsets=OFFSETS, return_weights=True)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got_weights, weights)
    assert not got[1].any()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_extra_table_and_full_gate(backend: str) -> None:
    layer = MixedPolarityAttention(10, 4, [8], activation="silu", gate_inputs="full", num_extra=3, backend=backend)
    torch.nn.init.normal_(layer.fusion.target_projection.weight)  # type: ignore[union-attr]
    target, extra = torch.randn(3, 4), torch.tensor([0, 1, 2, 1, 0])
    tokens = layer.fusion(target, layer.item_embedding(IDS), POLARITY, offsets=OFFSETS, extra_ids=extra)
    expected = layer.attention(target, tokens, offsets=OFFSETS)
    got = layer(target, IDS, POLARITY, offsets=OFFSETS, extra_ids=extra)
    torch.testing.assert_close(got, expected)
    got.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_target_ids_are_looked_up(backend: str) -> None:
    layer = MixedPolarityAttention(10, 4, [8], backend=backend)
    ids = torch.tensor([7, 9, 0])
    expected = layer(layer.item_embedding(ids), IDS, POLARITY, offsets=OFFSETS)
    assert torch.equal(layer(ids, IDS, POLARITY, offsets=OFFSETS), expected)
    many = torch.tensor([[7, 1], [9, 2], [0, 3]])
    out, weights = layer(many, IDS, POLARITY, offsets=OFFSETS, return_weights=True)
    assert out.shape == (3, 2, 4)
    assert weights.shape == (5, 2)
    torch.testing.assert_close(out[:, 0], expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_from_history_and_target(sparse: bool, backend: str) -> None:
    layer = MixedPolarityAttention(10, 4, [8], activation="sigmoid", sparse=sparse, backend=backend)
    layer(torch.tensor([7, 9, 0]), IDS, POLARITY, offsets=OFFSETS).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
    grad = layer.item_embedding.weight.grad
    assert grad is not None
    assert grad.is_sparse == sparse
    moved = grad.to_dense().any(1).nonzero()[:, 0].tolist()
    assert moved == [0, 1, 2, 3, 7, 9]  # item 9 is read by a history: its user as a target has none


def test_layouts_agree() -> None:
    layer = MixedPolarityAttention(10, 4, [8], backend="cpu")
    target, ids, polarity = torch.randn(3, 4), torch.randint(10, (3, 4)), torch.randint(2, (3, 4))
    lengths = torch.tensor([4, 0, 2])
    mask = torch.arange(4) < lengths[:, None]
    padded = layer(target, ids, polarity, lengths=lengths)
    assert torch.equal(layer(target, ids, polarity, mask=mask), padded)
    jagged = layer(target, ids[mask], polarity[mask], offsets=torch.tensor([0, 4, 4, 6]))
    assert torch.equal(jagged, padded)


def test_no_polarity_without_fusion() -> None:
    layer = MixedPolarityAttention(10, 4, [8], fusion="none")
    assert layer(torch.randn(3, 4), IDS, offsets=OFFSETS).shape == (3, 4)
    with pytest.raises(ValueError, match="polarity was None"):
        MixedPolarityAttention(10, 4, [8])(torch.randn(3, 4), IDS, offsets=OFFSETS)


def test_learns() -> None:
    """Adam fits a small target: forward, backward and the parameters belong together."""
    torch.manual_seed(1)
    layer = MixedPolarityAttention(10, 4, [8], activation="prelu", backend="cpu")
    goal, target = torch.randn(3, 4), torch.tensor([7, 9, 0])
    goal[1] = 0  # the user without a history
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = (layer(target, IDS, POLARITY, offsets=OFFSETS) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_copy_and_double() -> None:
    layer = MixedPolarityAttention(10, 4, [8])
    target = torch.tensor([7, 9, 0])
    expected = layer(target, IDS, POLARITY, offsets=OFFSETS)
    assert torch.equal(copy.deepcopy(layer)(target, IDS, POLARITY, offsets=OFFSETS), expected)
    assert layer.double()(target, IDS, POLARITY, offsets=OFFSETS).dtype == torch.float64


@pytest.mark.parametrize("activation", ["relu", "dice", "dice_row"])
def test_dropout_in_training_only(activation: str, generator: torch.Generator) -> None:
    """Fused from ids, or with "dice" token by token: the same seed gives the same step."""
    layer = MixedPolarityAttention(9, 6, [8, 5], activation=activation, dropout=0.5)
    ids, polarity = torch.randint(9, (3, 5), generator=generator), torch.randint(2, (3, 5), generator=generator)
    target = torch.randn(3, 6, generator=generator)
    draws = []
    for seed in (2, 2, 3):
        torch.manual_seed(seed)
        draws.append(layer(target, ids, polarity))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    layer.eval()
    assert torch.equal(layer(target, ids, polarity), layer(target, ids, polarity))


@pytest.mark.parametrize("activation", ["silu", "dice"])
@pytest.mark.parametrize("layout", ["offsets", "lengths", "mask"])
def test_rows_in_place_of_ids(layout: str, activation: str) -> None:
    """With batch statistics too; without a table there is nothing to look ids up in."""
    layer = MixedPolarityAttention(10, 4, [8], activation=activation)
    torch.nn.init.normal_(layer.fusion.target_projection.weight)  # type: ignore[union-attr]
    bare = MixedPolarityAttention(None, 4, [8], activation=activation)
    bare.load_state_dict({n: t for n, t in layer.state_dict().items() if n != "item_embedding.weight"})
    target = torch.randn(3, 4)
    if layout == "offsets":
        ids, polarity, where = IDS, POLARITY, {"offsets": OFFSETS}
    else:
        ids, polarity = torch.randint(10, (3, 5)), torch.randint(2, (3, 5))
        kept = torch.tensor([2, 0, 5])
        where = {"lengths": kept} if layout == "lengths" else {"mask": torch.arange(5) < kept[:, None]}
    rows = layer.item_embedding(ids).detach().requires_grad_()
    got = bare(target, rows, polarity, **where)
    torch.testing.assert_close(got, layer(target, ids, polarity, **where))
    got.square().sum().backward()
    assert rows.grad is not None
    assert rows.grad.any()
    for given in ((torch.tensor([1, 2, 3]), rows), (target, ids)):
        with pytest.raises(ValueError, match="num_items=None and has no table"):
            bare(*given, polarity, **where)
    with pytest.raises(ValueError, match="sparse was True with num_items=None"):
        MixedPolarityAttention(None, 4, sparse=True)
