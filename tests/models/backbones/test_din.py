"""What DIN alone has: one table for target and history, read through two paths, and an attention in float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from backbone_cases import batch_of, loss_of, model_of

from mixpol_models.training.optimizer import build_optimizer


def test_state_names_of_checkpoints() -> None:
    """Checkpoints of DIN go on loading."""
    assert {name.split(".")[0] for name in model_of("din").state_dict()} == {
        "attention", "context_embedding", "user_embedding", "tower"
    }  # fmt: skip


def test_no_user_table_without_users() -> None:
    assert model_of("din", user_embedding=False).user_embedding is None


@pytest.mark.parametrize(("kind", "tolerance"), [("sgd", 1e-12), ("adam", 1e-6)])
def test_sparse_and_dense_training_agree(kind: str, tolerance: float) -> None:
    """With every row in every batch, training on sparse gradients walks where training on dense ones does.

    SparseAdam adds eps before the bias correction and Adam behind it, which for the tiniest gradients is a step of
    another size: a small eps takes that apart from what is tested. In float64, so that rounding plays no part.
    """
    sparse, dense = (model_of("din", sparse=sparse, backend="reference").double() for sparse in (True, False))
    dense.load_state_dict(sparse.state_dict())
    start = {name: p.detach().clone() for name, p in sparse.named_parameters()}
    models, optimizers = (sparse, dense), []
    for model in models:
        sgd = kind == "sgd"
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05) if sgd else build_optimizer(model, lr=1e-3)
        for group in optimizer.param_groups if not sgd else ():
            group["eps"] = 1e-12
        optimizers.append(optimizer)
    for _ in range(20):
        batch = batch_of((3, 0, 5, 1, 0, 7) * 4)
        batch = replace(batch, target_item=torch.arange(24) % 12, label=batch.label.double())
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    for (name, first), second in zip(sparse.named_parameters(), dense.parameters(), strict=True):
        assert not torch.equal(first, start[name]), name
        torch.testing.assert_close(first, second, rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


def test_attention_stays_float32_under_autocast() -> None:
    model, batch = model_of("din"), batch_of()
    seen = []
    model.attention.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    plain = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(batch)
    assert seen == [(torch.float32, torch.float32)] * 2
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, rtol=0.05, atol=0.05)
