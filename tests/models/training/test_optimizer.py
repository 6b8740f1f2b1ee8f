"""The combined optimizer and sparse-aware clipping."""

from __future__ import annotations

import copy

import torch
from torch import nn

from mixpol_models.training.clipping import clip_gradients
from mixpol_models.training.optimizer import build_optimizer


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 3, sparse=True)
        self.head = nn.Linear(3, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids)).square().mean()


def step(model: Model, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(ids).backward()
    optimizer.step()


def test_it_is_the_two_stock_optimizers() -> None:
    model = Model()
    twin = copy.deepcopy(model)
    combined = build_optimizer(model, lr=0.01, table_lr=0.02, weight_decay=0.1)
    dense = torch.optim.AdamW(twin.head.parameters(), lr=0.01, weight_decay=0.1)
    sparse = torch.optim.SparseAdam(twin.table.parameters(), lr=0.02)
    for ids in (torch.tensor([0, 1, 1]), torch.tensor([1, 4])):
        step(model, combined, ids)
        dense.zero_grad()
        sparse.zero_grad()
        twin(ids).backward()
        dense.step()
        sparse.step()
    for first, second in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(first, second)


def test_rows_outside_the_batch_do_not_move() -> None:
    model = Model()
    before = model.table.weight.detach().clone()
    optimizer = build_optimizer(model, lr=0.1, weight_decay=0.1)
    step(model, optimizer, torch.tensor([0, 1]))
    step(model, optimizer, torch.tensor([1, 2]))
    moved = (model.table.weight != before).any(dim=1)
    assert moved.tolist() == [True, True, True, False, False, False]


def test_state_goes_on_after_loading() -> None:
    model = Model()
    optimizer = build_optimizer(model, lr=0.01)
    step(model, optimizer, torch.tensor([0, 1, 1]))
    twin = copy.deepcopy(model)
    resumed = build_optimizer(twin, lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for ids in (torch.tensor([1, 2]), torch.tensor([0, 5])):
        step(model, optimizer, ids)
        step(twin, resumed, ids)
    for first, second in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(first, second)


def test_a_scheduler_reaches_both_parts() -> None:
    model = Model()
    optimizer = build_optimizer(model, lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    before = [p.detach().clone() for p in model.parameters()]
    step(model, optimizer, torch.tensor([0, 1]))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_closure_runs_with_gradients() -> None:
    model = Model()
    optimizer = build_optimizer(model, lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.tensor([0, 3]))
        loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad


def test_clipping_is_that_of_dense_gradients() -> None:
    model = Model()
    twin = copy.deepcopy(model)
    twin.table.sparse = False
    ids = torch.tensor([0, 1, 1, 5])
    for limit in (1e-2, 1e3):
        for m in (model, twin):
            m.zero_grad()
            (10 * m(ids)).backward()
        norm = clip_gradients(model.parameters(), limit)
        expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), limit)
        torch.testing.assert_close(norm, expected)
        torch.testing.assert_close(model.table.weight.grad.to_dense(), twin.table.weight.grad)
        torch.testing.assert_close(model.head.weight.grad, twin.head.weight.grad)


def test_clipping_without_gradients() -> None:
    assert clip_gradients(Model().parameters(), 1.0) == 0
