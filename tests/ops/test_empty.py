"""Contract 5: an empty history gives zeros and zero gradients, never NaN."""

from __future__ import annotations

import pytest
import torch

import mixpol_kernels
from mixpol_kernels.testing.inputs import OPS, Config, make

UNITS = ("target_attention", "mixed_polarity_attention")
NORMALIZERS = [(op, n) for op in OPS for n in (("none", "softmax") if op in UNITS else ("none",))]


@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_left", "mask_holes", "full"])
@pytest.mark.parametrize(("op", "normalize"), NORMALIZERS)
def test_every_history_empty(op: str, normalize: str, layout: str, backend: str, generator: torch.Generator) -> None:
    config = Config(
        op=op, counts=(0, 0, 0), normalize=normalize, layout=layout, gate_inputs="full", n_extra=3
    )  # fmt: skip
    case = make(config, generator)
    lengths = (None, 4) if layout in ("lengths", "mask_left", "mask_holes") else (None,)
    for length in lengths:
        for name, value in case.run(backend, case.place(generator, length=length)).items():
            assert not value.count_nonzero(), name


@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_left", "full"])
@pytest.mark.parametrize(("op", "normalize"), NORMALIZERS)
def test_no_users(op: str, normalize: str, layout: str, backend: str, generator: torch.Generator) -> None:
    for candidates in (None, 3) if op in UNITS else (None,):
        config = Config(op=op, batch=0, normalize=normalize, layout=layout, candidates=candidates)
        case = make(config, generator)
        results = case.run(backend, case.place(generator))
        assert results["out"].shape == case.grad_out.shape
        for name, value in results.items():
            assert not value.count_nonzero(), name


@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_left"])
@pytest.mark.parametrize("normalize", ["none", "softmax"])
@pytest.mark.parametrize("op", UNITS)
def test_one_empty_user_among_others(
    op: str, normalize: str, layout: str, backend: str, generator: torch.Generator
) -> None:
    case = make(Config(op=op, counts=(3, 0, 2, 0), normalize=normalize, layout=layout), generator)
    where = case.place(generator)
    results = case.run(backend, where)
    assert all(value.isfinite().all() for value in results.values())
    for name in ("out", "grad target"):
        assert not results[name][[1, 3]].count_nonzero(), name
        assert results[name][[0, 2]].all(), name
    out, weights = case.call(case.arguments(where), backend, return_weights=True)
    assert weights.isfinite().all()
    assert not out[[1, 3]].any()


@pytest.mark.parametrize("op", OPS)
def test_no_tokens_and_no_items(op: str, backend: str, generator: torch.Generator) -> None:
    """A table without rows is fine as long as nothing is looked up."""
    case = make(Config(op=op, counts=(0, 0), items=1, n_polarity=1, n_extra=1), generator)
    arguments = case.arguments(case.place(generator))
    tables = [t for t in ("item_table", "polarity_table", "extra_table") if arguments.get(t) is not None]
    for table in tables:
        arguments[table] = arguments[table][:0].requires_grad_()
    if "sign" in arguments:
        arguments["sign"] = arguments["sign"][:0]
    out = case.call(arguments, backend)
    assert not out.count_nonzero()
    if tables:
        out.sum().backward()
        assert all(arguments[table].grad.shape == (0, 16) for table in tables)


def test_flat_ids_without_a_layout(backend: str) -> None:
    """`polarity_embedding` alone needs no users: [N] ids may come without offsets."""
    items, polarities = torch.randn(5, 3), torch.randn(2, 3)
    ids, polarity = torch.tensor([4, 0, 4]), torch.tensor([1, 1, 0])
    expected = items[ids] + polarities[polarity]
    got = mixpol_kernels.polarity_embedding(ids, polarity, items, polarities, backend=backend)
    assert torch.equal(got, expected)
    none = mixpol_kernels.polarity_embedding(ids[:0], polarity[:0], items, polarities, backend=backend)
    assert none.shape == (0, 3)
