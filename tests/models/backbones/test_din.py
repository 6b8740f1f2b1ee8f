"""DIN on jagged batches."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch

from mixpol_models.backbones import DIN, build_backbone, din
from mixpol_models.data import Batch
from mixpol_models.training.optimizer import build_optimizer

FUSIONS = ("none", "bias", "tapf")
LENGTHS = (3, 0, 5, 1, 0, 7)
SIZES = {"n_items": 12, "n_users": 7, "n_contexts": 3}


def batch_of(lengths: tuple[int, ...] = LENGTHS) -> Batch:
    n, events = len(lengths), sum(lengths)
    return Batch(
        user=torch.arange(n) % 7,
        target_item=torch.randint(12, (n,)),
        context=torch.arange(n) % 3,
        label=(torch.arange(n) % 2).float(),
        item_ids=torch.randint(12, (events,)),
        polarity=torch.randint(2, (events,), dtype=torch.uint8),
        offsets=torch.tensor([0, *lengths]).cumsum(0),
    )


def awake(model: DIN) -> DIN:
    """W_t starts at zero, which would hide the gate."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def loss_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(model(batch), batch.label)


def test_docstring_example() -> None:
    assert doctest.testmod(din).failed == 0


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_parameter_learns(fusion: str) -> None:
    model, batch = awake(DIN(**SIZES, fusion=fusion)), batch_of()
    loss_of(model, batch).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        assert grad.isfinite().all(), name
        assert grad.abs().sum() > 0, name


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_example_does_not_depend_on_its_batch(fusion: str) -> None:
    """Each history is the right slice of the jagged values, the empty ones included."""
    model, batch = awake(DIN(**SIZES, fusion=fusion)), batch_of()
    together = model(batch)
    for i, length in enumerate(LENGTHS):
        start = int(batch.offsets[i])
        one = slice(i, i + 1)
        alone = Batch(
            batch.user[one], batch.target_item[one], batch.context[one], batch.label[one],
            batch.item_ids[start : start + length], batch.polarity[start : start + length],
            torch.tensor([0, length]),
        )  # fmt: skip
        torch.testing.assert_close(model(alone), together[one])


def test_only_empty_histories() -> None:
    model = awake(DIN(**SIZES, fusion="tapf"))
    logits = model(batch_of((0, 0, 0)))
    logits.sum().backward()
    assert logits.isfinite().all()


def test_polarity_matters_only_with_a_fusion() -> None:
    batch = batch_of()
    flipped = copy.copy(batch)
    object.__setattr__(flipped, "polarity", 1 - batch.polarity)
    for fusion in FUSIONS:
        model = awake(DIN(**SIZES, fusion=fusion))
        same = torch.equal(model(batch), model(flipped))
        assert same == (fusion == "none")


def test_history_and_target_gradients_of_the_shared_table_add_up() -> None:
    """The table is read by two paths, both sparse; a dense table is the standard."""
    sparse = awake(DIN(**SIZES, fusion="tapf", sparse=True))
    dense = DIN(**SIZES, fusion="tapf", sparse=False)
    dense.load_state_dict(sparse.state_dict())
    batch = batch_of()
    for model in (sparse, dense):
        loss_of(model, batch).backward()
    for name in ("attention.item_embedding.weight", "user_embedding.weight"):
        first, second = sparse.get_parameter(name).grad, dense.get_parameter(name).grad
        assert first.is_sparse
        assert not second.is_sparse
        torch.testing.assert_close(first.to_dense(), second)


@pytest.mark.parametrize(("kind", "tolerance"), [("sgd", 1e-12), ("adam", 1e-6)])
def test_sparse_and_dense_training_agree(kind: str, tolerance: float) -> None:
    """With every row in every batch, training on sparse gradients walks where training on dense ones does.

    SparseAdam adds eps before the bias correction and Adam behind it, which for the tiniest gradients is a step of
    another size: a small eps takes that apart from what is tested. In float64, so that rounding plays no part.
    """
    sparse = awake(DIN(**SIZES, fusion="tapf", sparse=True, backend="reference").double())
    dense = DIN(**SIZES, fusion="tapf", sparse=False, backend="reference").double()
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
        object.__setattr__(batch, "target_item", torch.arange(24) % 12)
        object.__setattr__(batch, "label", batch.label.double())
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    for (name, first), second in zip(sparse.named_parameters(), dense.parameters(), strict=True):
        assert not torch.equal(first, start[name]), name
        torch.testing.assert_close(first, second, rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


def test_attention_stays_float32_under_autocast() -> None:
    model, batch = awake(DIN(**SIZES, fusion="tapf")), batch_of()
    seen = []
    model.attention.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    plain = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(batch)
    assert seen == [(torch.float32, torch.float32)] * 2
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, rtol=0.05, atol=0.05)


def test_without_users() -> None:
    model, batch = DIN(**SIZES, user_embedding=False), batch_of()
    assert model.user_embedding is None
    assert model(batch).shape == (len(LENGTHS),)


def test_unknown_backbone() -> None:
    with pytest.raises(ValueError, match=r"backbone is 'dim', expected one of \('din', "):
        build_backbone("dim")
