"""`mixpol_kernels.nn.TargetAttention`."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import mixpol_kernels
from mixpol_kernels.nn import TargetAttention
from mixpol_kernels.ops.unit import PUBLIC_ACTIVATIONS


def test_state_dict() -> None:
    """Ordinary nn.Linear layers in order: what a DIN checkpoint is mapped to."""
    state = {name: tuple(t.shape) for name, t in TargetAttention(6, [8, 5], activation="prelu").state_dict().items()}
    assert state == {
        "layers.0.weight": (8, 24),
        "layers.0.bias": (8,),
        "layers.1.weight": (5, 8),
        "layers.1.bias": (5,),
        "layers.2.weight": (1, 5),
        "layers.2.bias": (1,),
        "slopes.0": (8,),
        "slopes.1": (5,),
    }
    assert list(TargetAttention(6, [8]).state_dict()) == [
        "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias",
    ]  # fmt: skip


def test_dice_row_without_batch_norm(generator: torch.Generator) -> None:
    """One alpha a layer, statistics of one token's units: nothing depends on the batch, in training neither."""
    layer = TargetAttention(6, [20, 5], "dice_row", row_eps=0.25)
    assert [tuple(slope.shape) for slope in layer.slopes] == [(1,), (1,)]
    assert not layer.norms
    with torch.no_grad():
        layer.slopes[0].fill_(-0.3)
    target, history = torch.randn(2, 6, generator=generator), torch.randn(2, 3, 6, generator=generator)
    t = target[:, None].expand_as(history)
    h = torch.cat([t, history, t - history, t * history], dim=-1)
    for linear, alpha in zip(layer.layers[:-1], (-0.3, 0.0), strict=True):
        x = linear(h)
        root = torch.sqrt(20 * 0.25 + x.var(-1, correction=0) * 20 if alpha else 5 * 0.25 + x.var(-1, correction=0) * 5)
        p = torch.sigmoid((x - x.mean(-1, keepdim=True)) / root[..., None])
        h = x * (p + alpha * (1 - p))
    expected = (layer.layers[-1](h) * history).sum(1)
    torch.testing.assert_close(layer(target, history), expected)
    assert torch.equal(layer(target[:1], history[:1]), layer(target, history)[:1])


def test_slopes_start_at_a_quarter() -> None:
    assert all((slope == 0.25).all() for slope in TargetAttention(6, [8, 5], activation="prelu").slopes)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("activation", PUBLIC_ACTIVATIONS)
@pytest.mark.parametrize("hidden", [[8], [8, 5], [8, 5, 3]])
def test_is_the_function(hidden: list[int], activation: str, backend: str) -> None:
    layer = TargetAttention(6, hidden, activation, "softmax", backend).eval()
    weights, biases, slopes = layer.unit().by_running_statistics()
    target, history, lengths = torch.randn(3, 6), torch.randn(3, 4, 6), torch.tensor([4, 0, 2])
    options = {"lengths": lengths, "return_weights": True}
    got = layer(target, history, **options)
    expected = mixpol_kernels.target_attention(
        target, history, weights, biases, activation=activation, slopes=slopes, normalize="softmax",
        backend=backend, **options,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("hidden", [[8], [8, 5]])
def test_dropout_in_training_only(hidden: list[int], backend: str, generator: torch.Generator) -> None:
    layer = TargetAttention(6, hidden, backend=backend, dropout=0.5)
    target, history = torch.randn(3, 6, generator=generator), torch.randn(3, 4, 6, generator=generator)
    torch.manual_seed(2)
    first, second = layer(target, history), layer(target, history)
    torch.manual_seed(2)
    assert torch.equal(layer(target, history), first)
    assert not torch.equal(second, first)
    plain = TargetAttention(6, hidden, backend=backend)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(target, history), plain(target, history))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_parameter_gets_a_gradient(backend: str) -> None:
    layer = TargetAttention(6, [8, 5], "prelu", backend=backend)
    layer(torch.randn(7, 6), torch.randn(7, 9, 6)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_layouts_agree() -> None:
    layer = TargetAttention(6, [8], backend="cpu")
    target, history, lengths = torch.randn(3, 6), torch.randn(3, 4, 6), torch.tensor([4, 0, 2])
    mask = torch.arange(4) < lengths[:, None]
    padded = layer(target, history, lengths=lengths)
    assert torch.equal(layer(target, history, mask=mask), padded)
    assert torch.equal(layer(target, history[mask], offsets=torch.tensor([0, 4, 4, 6])), padded)


def test_copies() -> None:
    layer = TargetAttention(6, [8], activation="prelu")
    target, history = torch.randn(3, 6), torch.randn(3, 4, 6)
    expected = layer(target, history)
    assert torch.equal(copy.deepcopy(layer)(target, history), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(target, history), expected)
    other = TargetAttention(6, [8], activation="prelu")
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(target, history), expected)


def test_functional_call() -> None:
    layer = TargetAttention(6, [8], backend="cpu")
    target, history = torch.randn(3, 6), torch.randn(3, 4, 6)
    doubled = {name: 2 * p.detach() for name, p in layer.named_parameters()}
    got = torch.func.functional_call(layer, doubled, (target, history))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(2)
    assert torch.equal(got, layer(target, history))


def test_double() -> None:
    """float64 runs on the reference; a named compiled backend refuses it."""
    layer = TargetAttention(6, [8]).double()
    assert layer(torch.randn(3, 6).double(), torch.randn(3, 4, 6).double()).dtype == torch.float64
    layer.backend = "cpu"
    with pytest.raises(ValueError, match="float32"):
        layer(torch.randn(3, 6).double(), torch.randn(3, 4, 6).double())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "mish"}, "activation was 'mish'"),
        ({"normalize": "l2"}, "normalize was 'l2'"),
        ({"dropout": 1.0}, r"dropout was 1.0; expected 0 <= dropout < 1"),
        ({"hidden_units": []}, r"hidden_units was \[\]; expected one to three"),
        ({"hidden_units": [4, 4, 4, 4]}, r"hidden_units was \[4, 4, 4, 4\]; expected one to three"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TargetAttention(6, **arguments)  # type: ignore[arg-type]


def test_repr() -> None:
    text = repr(TargetAttention(6, [8], "silu", "softmax", "cpu"))
    for word in ("activation='silu'", "normalize='softmax'", "backend='cpu'", "in_features=24"):
        assert word in text
