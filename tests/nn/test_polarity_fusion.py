"""`mixpol_kernels.nn.PolarityFusion`."""

from __future__ import annotations

import copy

import pytest
import torch

import mixpol_kernels
from mixpol_kernels.nn import PolarityFusion

STATE = {
    "none": {},
    "bias": {"polarity_table": (2, 6)},
    "tapf": {
        "polarity_table": (2, 6),
        "gate.weight": (6, 6),
        "gate.bias": (6,),
        "target_projection.weight": (6, 6),
    },
}


@pytest.mark.parametrize("fusion", STATE)
def test_state_dict(fusion: str) -> None:
    """The signs are in it, and are no parameters."""
    layer = PolarityFusion(6, fusion)
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == {**STATE[fusion], "sign": (2,)}
    assert {name for name, _ in layer.named_parameters()} == set(STATE[fusion])
    assert [name for name, _ in layer.named_buffers()] == ["sign"]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("fusion", STATE)
def test_is_the_function(fusion: str, backend: str) -> None:
    layer = PolarityFusion(6, fusion, backend=backend)
    if layer.target_projection is not None:
        torch.nn.init.normal_(layer.target_projection.weight)
    target, tokens, polarity = torch.randn(3, 6), torch.randn(3, 4, 6), torch.randint(2, (3, 4))
    expected = mixpol_kernels.polarity_fusion(
        target, tokens, polarity, layer.polarity_table, fusion=fusion, gate=layer.gate_tensors(), backend=backend
    )
    assert torch.equal(layer(target, tokens, polarity), expected)


def test_state_dict_of_the_full_form() -> None:
    layer = PolarityFusion(6, gate_inputs="full", num_extra=5)
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == {
        **STATE["tapf"], "sign": (2,), "gate.weight": (6, 18), "extra_table": (5, 6),
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("gate_inputs", ["product", "full"])
def test_extra_table_and_gate_inputs(gate_inputs: str, backend: str) -> None:
    layer = PolarityFusion(6, gate_inputs=gate_inputs, num_extra=5, backend=backend)
    torch.nn.init.normal_(layer.target_projection.weight)  # type: ignore[union-attr]
    target, tokens, polarity = torch.randn(3, 6), torch.randn(3, 4, 6), torch.randint(2, (3, 4))
    extra_ids = torch.randint(5, (3, 4))
    expected = mixpol_kernels.polarity_fusion(
        target, tokens, polarity, layer.polarity_table, gate=layer.gate_tensors(), extra_ids=extra_ids,
        extra_table=layer.extra_table, backend=backend,
    )  # fmt: skip
    got = layer(target, tokens, polarity, extra_ids=extra_ids)
    assert torch.equal(got, expected)
    got.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters())
    with pytest.raises(ValueError, match="extra_ids was None and extra_table was not"):
        layer(target, tokens, polarity)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_starts_as_bias(backend: str) -> None:
    """W_t starts at zero; its gradient is not zero, so it can leave."""
    layer = PolarityFusion(6, backend=backend)
    target, tokens, polarity = torch.randn(3, 6), torch.randn(3, 4, 6), torch.randint(2, (3, 4))
    assert layer.polarity_table is not None
    assert layer.target_projection is not None
    fused = layer(target, tokens, polarity)
    torch.testing.assert_close(fused, tokens + layer.polarity_table[polarity])
    fused.square().sum().backward()
    assert layer.target_projection.weight.grad is not None
    assert layer.target_projection.weight.grad.any()


def test_positives_pull_and_negatives_push() -> None:
    """With W_t = 1 and no bias, a positive token moves along the target, a negative one against it."""
    layer = PolarityFusion(6, backend="cpu")
    assert layer.polarity_table is not None
    assert layer.target_projection is not None
    with torch.no_grad():
        layer.polarity_table.zero_()
        layer.target_projection.weight.copy_(torch.eye(6))
    target, tokens = torch.randn(1, 6), torch.randn(1, 2, 6)
    moved = (layer(target, tokens, torch.tensor([[0, 1]])) - tokens) / target
    assert (moved[0, 0] < 0).all()
    assert (moved[0, 1] > 0).all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_signs(backend: str) -> None:
    """One per row; five kinds of feedback here."""
    layer = PolarityFusion(6, n_polarity=5, signs=[-1, -1, 1, 1, 0.5], backend=backend)
    torch.nn.init.normal_(layer.target_projection.weight)  # type: ignore[union-attr]
    assert layer.sign.tolist() == [-1, -1, 1, 1, 0.5]
    target, tokens, polarity = torch.randn(3, 6), torch.randn(3, 4, 6), torch.randint(5, (3, 4))
    expected = mixpol_kernels.polarity_fusion(
        target, tokens, polarity, layer.polarity_table, gate=layer.gate_tensors(),
        sign=torch.tensor([-1, -1, 1, 1, 0.5]), backend=backend,
    )  # fmt: skip
    assert torch.equal(layer(target, tokens, polarity), expected)
    assert PolarityFusion(6, n_polarity=4).sign.tolist() == [-1, 1, 1, 1]


def test_moves_as_a_whole() -> None:
    layer = PolarityFusion(6).double()
    assert layer.sign.dtype == torch.float64
    out = layer(torch.randn(2, 6).double(), torch.randn(2, 3, 6).double(), torch.ones(2, 3).long())
    assert out.dtype == torch.float64
    assert copy.deepcopy(layer).sign.dtype == torch.float64


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="fusion was 'sum'"):
        PolarityFusion(6, "sum")
    with pytest.raises(ValueError, match="signs has 3 entries; expected 2"):
        PolarityFusion(6, signs=[1, 1, 1])
    with pytest.raises(ValueError, match=r"gate_inputs was 'all'.*'product', 'full'"):
        PolarityFusion(6, gate_inputs="all")
    with pytest.raises(ValueError, match=r"num_extra was 3 with fusion='none'.*'bias' or 'tapf'"):
        PolarityFusion(6, "none", num_extra=3)
    with pytest.raises(ValueError, match="num_extra was -1"):
        PolarityFusion(6, num_extra=-1)


def test_repr() -> None:
    assert "fusion='tapf', signs=[-1.0, 1.0], backend='cpu'" in repr(PolarityFusion(6, backend="cpu"))
    assert "gate_inputs='full', num_extra=3" in repr(PolarityFusion(6, gate_inputs="full", num_extra=3))
