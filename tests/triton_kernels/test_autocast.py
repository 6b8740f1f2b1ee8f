"""Contract 10 by interpreted kernels: the half kernels under autocast, masters and their gradients as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mixpol_kernels as mk
from mixpol_kernels import explain
from mixpol_kernels.testing.inputs import Case, Config, make

LOW = (torch.bfloat16, torch.float16)
every_low = pytest.mark.parametrize("dtype", LOW, ids=str)
BASE: dict[str, Any] = {"counts": (20, 0, 7), "items": 12, "activation": "silu"}


def leaves(value: Any, dtype: torch.dtype | None = None) -> Any:
    """Fresh leaves: float32 masters of numbers that `dtype` holds, or in `dtype`."""
    if isinstance(value, dict):
        return {name: leaves(v, dtype) for name, v in value.items()}
    if isinstance(value, list):
        return [leaves(v, dtype) for v in value]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return (value.detach().clone() if dtype is None else value.detach().to(dtype)).requires_grad_()


def gradients(arguments: dict[str, Any]) -> list[Tensor]:
    flat = [v for value in arguments.values() for v in (value if isinstance(value, list) else [value])]
    return [t.grad for t in flat if isinstance(t, Tensor) and t.grad is not None]


def drawn(op: str, dtype: torch.dtype, generator: torch.Generator, **more: Any) -> tuple[Case, dict[str, Any]]:
    """A case of numbers that `dtype` holds, so that masters and their rounded copies are the same."""
    case = make(Config(op=op, **BASE | more), generator, dtype)
    arguments = case.arguments(case.place(generator))
    arguments.pop("sign", None)
    return case, arguments


@every_low
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("layout", ["jagged", "mask_holes"])
def test_masters(sparse: bool, layout: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    """As the same call on low copies of everything, with gradients in the masters' dtype."""
    case, arguments = drawn("mixed_polarity_attention", dtype, generator, sparse=sparse, layout=layout)
    masters, low = leaves(arguments), leaves(arguments, dtype)
    want = case.call(low, "triton")
    with torch.autocast("cpu", dtype):
        got = case.call(masters, "triton")
    assert got.dtype == dtype
    assert torch.equal(got, want)
    for out in (got, want):
        out.float().square().sum().backward()
    grads, expected = gradients(masters), gradients(low)
    assert {grad.dtype for grad in grads} == {torch.float32}
    for grad, other in zip(grads, expected, strict=True):
        assert grad.is_sparse == other.is_sparse
        # The table's is summed in float32 and never rounded.
        torch.testing.assert_close(grad.to_dense().to(dtype), other.to_dense(), rtol=0, atol=0)
    assert masters["item_table"].grad.is_sparse == sparse
    with torch.no_grad(), torch.autocast("cpu", dtype):
        assert torch.equal(case.call(masters, "triton"), want)


def test_no_rows_of_a_master_table_are_kept(generator: torch.Generator) -> None:
    case, arguments = drawn("mixed_polarity_attention", torch.bfloat16, generator, counts=(500, 700), width=32)
    masters = leaves(arguments)
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    given = {t.untyped_storage().data_ptr() for t in tensors(masters)}
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        case.call(masters, "triton")
    beyond = sum(size for where, size in kept.items() if where not in given)
    parameters = sum(
        t.numel() for name, value in masters.items() for t in tensors({name: value}) if name != "item_table"
    )
    assert beyond <= 12 * 1200 + 4 * parameters


def tensors(arguments: dict[str, Any]) -> list[Tensor]:
    flat = [v for value in arguments.values() for v in (value if isinstance(value, list) else [value])]
    return [t for t in flat if isinstance(t, Tensor)]


def test_a_wrong_id_is_named(generator: torch.Generator) -> None:
    case, arguments = drawn("mixed_polarity_attention", torch.bfloat16, generator)
    arguments["item_ids"] = arguments["item_ids"].clone()
    arguments["item_ids"][3] = 99
    for backend in ("triton", "reference"):
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match=r"item_ids has 99 at position 3"):
            case.call(leaves(arguments), backend)


class Model(nn.Module):
    """A layer in front of each fused one and one behind, as in a network."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.before, self.behind = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(24, 1)
        self.unit = mk.nn.TargetAttention(8, [16], "silu", backend="triton")
        self.heads = mk.nn.MultiHeadTargetAttention(8, 8, 2, backend="triton")
        self.ids = mk.nn.MixedPolarityAttention(12, 8, [16], activation="silu", backend="triton")

    def pooled(self, ids: Tensor, polarity: Tensor, offsets: Tensor) -> Tensor:
        rows = self.before(self.table(ids))
        target = rows[:2]
        parts = [layer(target, rows, offsets=offsets) for layer in (self.unit, self.heads)]
        parts.append(self.ids(target, ids, polarity, offsets=offsets))
        return torch.cat(parts, dim=1)

    def forward(self, again: bool, *inputs: Tensor) -> Tensor:
        pooled = checkpoint(self.pooled, *inputs, use_reentrant=False) if again else self.pooled(*inputs)
        return self.behind(pooled).float().square().mean()


def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(12, (9,), generator=generator)
    return ids, torch.randint(2, (9,), generator=generator), torch.tensor([0, 4, 9])


@every_low
def test_trains(dtype: torch.dtype, generator: torch.Generator) -> None:
    """float16 with a GradScaler; a checkpoint computes the same again. Masters stay float32."""
    torch.manual_seed(int(torch.randint(1000, (), generator=generator)))
    model, batch = Model(), inputs(generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=dtype == torch.float16)
    losses = []
    for _ in range(3):
        found = []
        for again in (True, False):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype):
                loss = model(again, *batch)
            scaler.scale(loss).backward()
            found.append([parameter.grad.clone() for parameter in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in found[0])
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert scaler.get_scale() == (2.0**10 if dtype == torch.float16 else 1.0)


def test_compiled(generator: torch.Generator) -> None:
    model, batch = Model(), inputs(generator)
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(False, *batch)
        got = run(False, *batch)
    torch.testing.assert_close(got, expected, rtol=2**-7, atol=1e-6)
    got.backward()
    assert model.ids.item_embedding.weight.grad.dtype == torch.float32


def test_explained(generator: torch.Generator) -> None:
    model, (ids, polarity, offsets) = Model(), inputs(generator)
    target, rows = torch.randn(2, 8), torch.randn(9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        for layer in (model.unit, model.heads):
            found = explain(layer, target, rows, offsets=offsets)
            assert found.products == "bfloat16 operands, summed in float32"
            assert found.autocast == "to bfloat16: computed in bfloat16, since the triton kernels multiply in it"
        found = explain(model.ids, target, ids, polarity, offsets=offsets)
    assert "rows of the item table are rounded as they are looked up" in found.autocast
