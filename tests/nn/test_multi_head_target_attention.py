"""`mixpol_kernels.nn.MultiHeadTargetAttention`."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

import mixpol_kernels
from mixpol_kernels.nn import MultiHeadTargetAttention


def test_state_dict() -> None:
    """Names and shapes of FuxiCTR's layer."""
    state = {n: tuple(t.shape) for n, t in MultiHeadTargetAttention(6, 8, 2).state_dict().items()}
    assert state == {"W_q.weight": (8, 6), "W_k.weight": (8, 6), "W_v.weight": (8, 6), "W_o.weight": (6, 8)}
    assert list(MultiHeadTargetAttention(6).state_dict()) == ["W_q.weight", "W_k.weight", "W_v.weight", "W_o.weight"]
    assert not MultiHeadTargetAttention(6, num_heads=2, use_projections=False).state_dict()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("use_projections", [True, False])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_is_multi_head_attention(heads: int, use_projections: bool, use_scale: bool, backend: str) -> None:
    """What projections and PyTorch's own scaled dot-product attention give."""
    layer = MultiHeadTargetAttention(8, None, heads, use_scale, use_projections, backend=backend)
    target, history = torch.randn(3, 5, 8), torch.randn(3, 60, 8)
    mask = torch.rand(3, 60) < 0.7

    def split(projection: torch.nn.Linear | None, rows: torch.Tensor) -> torch.Tensor:
        rows = rows if projection is None else projection(rows)
        return rows.unflatten(-1, (heads, 8 // heads)).transpose(1, 2)

    attended = F.scaled_dot_product_attention(
        split(layer.W_q, target), split(layer.W_k, history), split(layer.W_v, history), mask[:, None, None],
        scale=None if use_scale else 1.0,
    )  # fmt: skip
    expected = attended.transpose(1, 2).flatten(2)
    expected = expected if layer.W_o is None else layer.W_o(expected)
    torch.testing.assert_close(layer(target, history, mask=mask), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(target[:, 0], history, mask=mask), expected[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_is_the_function(top_k: int | None, backend: str) -> None:
    layer = MultiHeadTargetAttention(6, 8, 2, top_k=top_k, backend=backend)
    target, history, lengths = torch.randn(3, 6), torch.randn(3, 4, 6), torch.tensor([4, 0, 2])
    got = layer(target, history, lengths=lengths, return_weights=True)
    expected = mixpol_kernels.dot_target_attention(
        target, history, num_heads=2, w_q=layer.W_q.weight, w_k=layer.W_k.weight, w_v=layer.W_v.weight,
        w_o=layer.W_o.weight, top_k=top_k, lengths=lengths, return_weights=True, backend=backend,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    mask = torch.arange(4) < lengths[:, None]
    torch.testing.assert_close(layer(target, history, mask=mask), got[0])
    torch.testing.assert_close(layer(target, history[mask], offsets=torch.tensor([0, 4, 4, 6])), got[0])
    assert not got[0][1].any()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_parameter_gets_a_gradient(backend: str) -> None:
    layer = MultiHeadTargetAttention(6, 8, 2, backend=backend)
    layer(torch.randn(7, 6), torch.randn(7, 9, 6)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_copies_and_functional_call() -> None:
    layer = MultiHeadTargetAttention(6, 8, 2, backend="cpu")
    target, history = torch.randn(3, 6), torch.randn(3, 4, 6)
    expected = layer(target, history)
    assert torch.equal(copy.deepcopy(layer)(target, history), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(target, history), expected)
    other = MultiHeadTargetAttention(6, 8, 2, backend="cpu")
    got = torch.func.functional_call(other, dict(layer.named_parameters()), (target, history))
    assert torch.equal(got, expected)


def test_explain_and_double() -> None:
    layer = MultiHeadTargetAttention(6, 8, 2)
    target, history = torch.randn(3, 6), torch.randn(3, 4, 6)
    assert mixpol_kernels.explain(layer, target, history).backend == "cpu"
    layer = layer.double()
    assert "float64" in mixpol_kernels.explain(layer, target.double(), history.double()).rejected["cpu"]
    assert layer(target.double(), history.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 4}, "num_heads was 4; expected a divisor of attention_dim=6"),
        ({"num_heads": 0}, "num_heads was 0"),
        ({"top_k": 0}, "top_k was 0; expected at least 1"),
        ({"attention_dim": 8, "num_heads": 3}, "num_heads was 3; expected a divisor of attention_dim=8"),
        ({"attention_dim": 8, "use_projections": False}, "attention_dim was 8.*expected embedding_dim=6"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiHeadTargetAttention(6, **arguments)  # type: ignore[arg-type]


def test_repr() -> None:
    text = repr(MultiHeadTargetAttention(6, 8, 2, use_scale=False, top_k=5, backend="cpu"))
    for word in ("top_k=5", "num_heads=2", "use_scale=False", "backend='cpu'", "out_features=8, bias=False"):
        assert word in text
