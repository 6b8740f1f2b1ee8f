"""`mixpol_kernels.nn.PolarityEmbedding`."""

from __future__ import annotations

import pytest
import torch

from mixpol_kernels.nn import PolarityEmbedding


def test_state_dict() -> None:
    state = PolarityEmbedding(10, 4, n_polarity=3).state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == {
        "item_table": (10, 4),
        "polarity_table": (3, 4),
    }


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_looks_up_both_tables(backend: str) -> None:
    layer = PolarityEmbedding(10, 4, backend=backend)
    ids, polarity = torch.randint(10, (3, 5)), torch.randint(2, (3, 5))
    expected = layer.item_table[ids] + layer.polarity_table[polarity]
    assert torch.equal(layer(ids, polarity), expected)
    assert torch.equal(layer(ids.flatten(), polarity.flatten()), expected.flatten(0, 1))
    lengths = torch.tensor([5, 0, 2])
    keep = torch.arange(5) < lengths[:, None]
    for arguments in ({"lengths": lengths}, {"mask": keep}):
        assert torch.equal(layer(ids, polarity, **arguments), expected * keep[:, :, None])
    jagged = layer(ids[keep], polarity[keep], offsets=torch.tensor([0, 5, 5, 7]))
    assert torch.equal(jagged, expected[keep])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("sparse", [False, True])
def test_gradients(sparse: bool, backend: str) -> None:
    layer = PolarityEmbedding(10, 4, sparse=sparse, backend=backend)
    ids, polarity = torch.tensor([7, 3, 7]), torch.tensor([1, 0, 1])
    layer(ids, polarity).sum().backward()
    assert layer.item_table.grad is not None
    assert layer.item_table.grad.is_sparse == sparse
    counts = torch.zeros(10, 4)
    counts[3], counts[7] = 1, 2
    assert torch.equal(layer.item_table.grad.to_dense(), counts)
    assert torch.equal(layer.polarity_table.grad, torch.tensor([[1.0] * 4, [2.0] * 4]))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_extra_table(backend: str) -> None:
    layer = PolarityEmbedding(10, 4, num_extra=3, backend=backend)
    ids, polarity, extra = torch.randint(10, (3, 5)), torch.randint(2, (3, 5)), torch.randint(3, (3, 5))
    assert layer.extra_table is not None
    expected = layer.item_table[ids] + layer.polarity_table[polarity] + layer.extra_table[extra]
    out = layer(ids, polarity, extra_ids=extra)
    assert torch.equal(out, expected)
    out.sum().backward()
    counts = torch.bincount(extra.flatten(), minlength=3).float()
    assert torch.equal(layer.extra_table.grad, counts[:, None].expand(3, 4))
    assert "num_extra=3" in repr(layer)
    with pytest.raises(ValueError, match="num_extra was -1"):
        PolarityEmbedding(10, 4, num_extra=-1)


def test_starting_scale() -> None:
    """N(0, 1 / D): a token's norm is about 1 whatever the width."""
    norms = PolarityEmbedding(2000, 64).item_table.norm(dim=1)
    assert 0.9 < float(norms.mean()) < 1.1


def test_repr() -> None:
    assert "10, 4, n_polarity=2, sparse=True" in repr(PolarityEmbedding(10, 4, sparse=True))
