"""Gradients of looked-up tables: dense and sparse, repeated ids, the optimizers that read them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mixpol_kernels.testing.inputs import Case, Config, make

OPS = ("polarity_embedding", "mixed_polarity_attention")


def table_grad(case: Case, generator: torch.Generator, backend: str) -> Tensor:
    where = case.place(generator)
    arguments = case.arguments(where, requires_grad=True)
    out = case.call(arguments, backend)
    grad_out = case.grad_out if case.config.has_unit else where.spread(case.grad_out)
    return torch.autograd.grad(out, arguments["item_table"], grad_out)[0]


@pytest.mark.parametrize("layout", ["jagged", "mask_holes"])
@pytest.mark.parametrize("op", OPS)
def test_sparse_is_dense_without_the_zeros(op: str, layout: str, generator: torch.Generator) -> None:
    """Coalesced, ids sorted and unique, values bitwise those of the dense gradient, ids of pads absent."""
    case = make(Config(op=op, layout=layout, batch=8, length=30, items=60), generator)
    state = generator.get_state()
    dense = table_grad(case, generator, "cpu")
    generator.set_state(state)
    sparse = table_grad(replace(case, config=replace(case.config, sparse=True)), generator, "cpu")
    assert not dense.is_sparse
    assert sparse.is_coalesced()
    assert sparse.indices().tolist() == [case.ids.unique().tolist()]
    assert torch.equal(sparse.to_dense(), dense)


@pytest.mark.parametrize("op", OPS)
def test_accumulated_sparse_gradient(op: str, generator: torch.Generator) -> None:
    """In .grad PyTorch (2.13) drops the coalesced flag; the rows are in order and unique all the same."""
    case = make(Config(op=op, sparse=True), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    case.call(arguments, "cpu").sum().backward()
    assert arguments["item_table"].grad._indices()[0].tolist() == case.ids.unique().tolist()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_one_item_for_all_tokens(op: str, sparse: bool, generator: torch.Generator) -> None:
    case = make(Config(op=op, batch=40, length=70, items=1, sparse=sparse), generator)
    got = table_grad(case, generator, "cpu").to_dense()
    truth = table_grad(case, generator, "reference").to_dense()
    torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()))


@pytest.mark.parametrize("op", OPS)
def test_sparse_without_tokens(op: str, generator: torch.Generator) -> None:
    grad = table_grad(make(Config(op=op, counts=(0, 0), sparse=True), generator), generator, "cpu")
    assert grad.is_sparse
    assert grad._nnz() == 0
    assert grad.shape == (50, 16)


@pytest.mark.parametrize("op", OPS)
def test_many_more_items_than_tokens(op: str, generator: torch.Generator) -> None:
    case = make(Config(op=op, items=300_000, width=4, batch=3), generator)
    grad = table_grad(case, generator, "cpu")
    used = torch.zeros(300_000, dtype=torch.bool)
    used[case.ids] = True
    assert grad[used].any()
    assert not grad[~used].any()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("op", OPS)
def test_sparse_adam(op: str, backend: str, generator: torch.Generator) -> None:
    """The optimizer for sparse gradients takes them; rows that were not looked up do not move."""
    case = make(Config(op=op, sparse=True, items=200), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    table = arguments["item_table"]
    before = table.detach().clone()
    optimizer = torch.optim.SparseAdam([table], lr=0.1)
    case.call(arguments, backend).square().sum().backward()
    optimizer.step()
    moved = (table.detach() != before).any(1)
    assert set(moved.nonzero()[:, 0].tolist()) == set(case.ids.tolist())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_table_shared_with_the_target(backend: str, generator: torch.Generator) -> None:
    """Gradients of history and target ids meet in one table."""
    case = make(Config(counts=(3, 4)), generator)
    where, targets = case.place(generator), torch.tensor([7, 9])

    def grad(name: str, dtype: torch.dtype) -> Tensor:
        arguments = case.arguments(where, dtype, requires_grad=True)
        arguments["target"] = arguments["item_table"][targets]
        case.call(arguments, name).square().sum().backward()
        result = arguments["item_table"].grad
        assert isinstance(result, Tensor)
        return result

    truth = grad("reference", torch.float64)
    torch.testing.assert_close(
        grad(backend, torch.float32).double(), truth, rtol=1e-4, atol=1e-5 * float(truth.abs().max())
    )
