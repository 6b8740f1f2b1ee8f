"""Every GPU kernel is within the error budget of the CPU kernels (contract 1), on the GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dot_cases
import pytest
import torch
from on_gpu import check, moved, there

import mixpol_kernels
from mixpol_kernels.ops.triton import parts
from mixpol_kernels.testing.configurations import grid, label
from mixpol_kernels.testing.inputs import OPS, Config, make

KERNELS = [(op, backend) for op in OPS for backend in ("triton", "cuda") if (op, backend) != (OPS[0], "triton")]
# What the Triton kernels have room for, by the number of hidden layers.
FITS = {1: (64,), 2: (64, 32), 3: (64, 32, 16)}


def fitted(config: Config, backend: str) -> Config:
    """For Triton: the sizes cut to what it takes. Sparse gradients have a test of their own."""
    config = replace(config, sparse=False)
    if backend != "triton":
        return config
    hidden = tuple(min(units, most) for units, most in zip(config.hidden, FITS[len(config.hidden)], strict=True))
    return replace(config, width=min(config.width, 64), hidden=hidden)


# Without a fusion `polarity_fusion` returns its input, on any device. CUDA C++ has no row-wise Dice and no dropout.
GRID = [
    pytest.param(backend, fitted(config, backend), id=f"{backend}-{op}-{label(fitted(config, backend))}-{i}")
    for op, backend in KERNELS
    for i, config in enumerate(grid(op))
    if not (op == "polarity_fusion" and config.fusion == "none")
    and not (backend == "cuda" and config.has_unit and (config.activation == "dice_row" or config.dropout))
]
HALVES = [torch.bfloat16, torch.float16]
EDGES: dict[str, dict[str, Any]] = {
    "no users": {"counts": ()},
    "one token": {"counts": (1,)},
    "all empty": {"counts": (0, 0, 0)},
    "rows around a tile": {"counts": (15, 16, 17, 31, 33, 63, 64, 65)},
    "one very long row": {"counts": (2, 1500, 0, 1)},
    "many short rows": {"batch": 700, "length": 3},
    "all sizes one": {"width": 1, "hidden": (1,), "counts": (1, 2)},
    "three layers": {"hidden": (36, 20, 12)},
    "largest": {"width": 64, "hidden": (64,), "counts": (5, 180)},
    "many candidates": {"candidates": 9, "counts": (3, 18)},
    "no candidates": {"candidates": 0},
}
DOT = dot_cases.Config(counts=(35, 0, 7, 132), heads=2)
DOT_FORMS: dict[str, dict[str, Any]] = {
    "one head, no projections": {"heads": 1, "attention": None},
    "heads": {"width": 24, "attention": 40},
    "heads, no projections": {"width": 20, "heads": 4, "attention": None, "candidates": 3},
    "blocks of rows": {"candidates": 17, "attention": None},
    "wide": {"width": 128, "attention": None, "heads": 4},
    "peaked": {"attention": None, "spread": 30.0, "layout": "mask_holes"},
}


@pytest.mark.parametrize(("backend", "config"), GRID)
def test_every_pair_of_options(backend: str, config: Config, generator: torch.Generator) -> None:
    check(make(config, generator), backend, generator)


@pytest.mark.parametrize("change", [{"activation": "dice_row"}, {"dropout": 0.3}, {"width": 600}], ids=str)
def test_refusals(change: dict[str, Any], generator: torch.Generator) -> None:
    case = moved(make(Config(op="target_attention", **change), generator))
    with torch.no_grad(), pytest.raises(ValueError, match="backend='cuda' was requested, but it"):
        case.call(case.arguments(case.place(generator)), "cuda")


STAGED: dict[str, dict[str, Any]] = {
    "[80, 40]": {"hidden": (80, 40), "width": 64, "normalize": "softmax", "activation": "dice"},
    "[200, 80]": {"hidden": (200, 80), "width": 64, "activation": "dice_row"},
    "[256, 256, 256]": {"hidden": (256, 256, 256), "width": 32, "candidates": 2},
    "wide": {"hidden": (36,), "width": 256, "normalize": "sigmoid", "dropout": 0.2},
}


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("unit", STAGED)
def test_units_of_any_size(unit: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    config = Config(op="target_attention", counts=(35, 0, 7, 132), **STAGED[unit])
    check(make(config, generator, dtype), "triton", generator, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("hidden", [(24,), (24, 17, 5)], ids=len)
@pytest.mark.parametrize("normalize", ["none", "softmax"])
@pytest.mark.parametrize("op", ["target_attention", "mixed_polarity_attention"])
def test_low_precision(
    op: str, normalize: str, hidden: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> None:
    config = Config(op=op, counts=(35, 0, 7, 132), hidden=hidden, activation="silu", normalize=normalize)
    case = make(config, generator, dtype)
    check(case, "triton", generator, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("gate_inputs", ["product", "full"])
def test_low_precision_of_tokens(gate_inputs: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    config = Config(op="polarity_fusion", counts=(35, 0, 7, 132), n_extra=3, gate_inputs=gate_inputs)
    check(make(config, generator, dtype), "triton", generator, dtype)


@pytest.mark.parametrize(("op", "backend"), [("polarity_embedding", "cuda"), ("mixed_polarity_attention", "triton")])
def test_sparse_gradient(op: str, backend: str, generator: torch.Generator) -> None:
    """The rows that occur, once each, with the bits of the dense gradient."""
    case = make(Config(op=op, counts=(35, 0, 7, 132), items=90, activation="silu"), generator)
    where = case.place(generator)
    grads = []
    for sparse in (False, True):
        arguments = there(case.arguments(where)) | {"sparse": sparse}
        arguments["item_table"].requires_grad_()
        out = case.call(arguments, backend)
        out.backward(torch.ones_like(out))
        grads.append(arguments["item_table"].grad)
    assert grads[1].is_sparse
    assert torch.equal(grads[1].coalesce().indices()[0].cpu(), case.ids.unique())
    assert torch.equal(grads[1].to_dense(), grads[0])


@pytest.mark.parametrize("normalize", ["none", "softmax"])
@pytest.mark.parametrize("hidden", [(64,), (48, 30), (24, 17, 5)], ids=len)
def test_float32_in_three_products(hidden: tuple[int, ...], normalize: str, generator: torch.Generator) -> None:
    config = Config(op="target_attention", width=64, counts=(35, 0, 7, 132), hidden=hidden, activation="silu")
    check(make(replace(config, normalize=normalize), generator), "triton", generator, split=True)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(("op", "backend"), KERNELS)
def test_edge_shapes(op: str, backend: str, edge: str, generator: torch.Generator) -> None:
    config = Config(op=op, layout="lengths", normalize="softmax", gate_inputs="full", n_extra=3, activation="silu")
    check(make(replace(config, **EDGES[edge]), generator), backend, generator)


@pytest.mark.parametrize(("op", "backend"), KERNELS)
@pytest.mark.parametrize("layout", ["lengths", "mask_left"])
def test_padded_longer_than_any_row(op: str, backend: str, layout: str, generator: torch.Generator) -> None:
    check(make(Config(op=op, layout=layout), generator), backend, generator, length=143)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("shift", [-200.0, 200.0])
def test_softmax_of_large_scores(shift: float, backend: str, generator: torch.Generator) -> None:
    config = Config(op="target_attention", activation="sigmoid", normalize="softmax", counts=(100, 3, 40))
    case = make(config, generator)
    case.floats["weights[1]"].mul_(20)
    case.floats["biases[1]"].add_(shift)
    check(case, backend, generator)


@pytest.mark.parametrize("form", DOT_FORMS)
def test_dot_target_attention(form: str, generator: torch.Generator) -> None:
    check(dot_cases.make(replace(DOT, **DOT_FORMS[form]), generator), "triton", generator)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        Config(op="target_attention", normalize="softmax", counts=(0, 1, 32, 33, 95), hidden=(5,), activation="silu"),
        Config(op="target_attention", layout="mask_holes", candidates=2, counts=(70, 0, 33), activation="silu"),
        replace(DOT, counts=(0, 1, 32, 33, 95), attention=None),
        replace(DOT, counts=(40, 3), candidates=18, layout="mask_holes", attention=None),  # PyTorch projects
    ],
    ids=lambda config: f"{config.op}-{config.layout}",
)
def test_histories_in_parts(
    config: Any, split: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART", 32)
    case = make(config, generator) if isinstance(config, Config) else dot_cases.make(config, generator)
    check(case, "triton", generator, split=split)


def test_longer_than_a_part(generator: torch.Generator) -> None:
    """As it is shipped."""
    config = Config(op="target_attention", normalize="softmax", counts=(5000, 7, 2048, 0), activation="silu")
    check(make(config, generator), "triton", generator)


@pytest.mark.parametrize("budget", [None, 0, 7, 100])
def test_interleave(budget: int | None) -> None:
    generator = torch.Generator().manual_seed(7)
    lists: list[torch.Tensor] = []
    for most in (40, 300):
        counts = torch.randint(0, most, (65,), generator=generator)
        times = [torch.randint(0, 50, (n,), generator=generator).sort().values for n in counts.tolist()]
        lists += [torch.cat(times), torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])]
    for share in [None] if budget is None else [None, 0.4]:
        want = mixpol_kernels.interleave(*lists, budget=budget, negative_share=share, backend="reference")
        got = mixpol_kernels.interleave(*there(lists), budget=budget, negative_share=share, backend="cuda")
        for name in ("source", "polarity", "offsets"):
            assert torch.equal(getattr(got, name).cpu(), getattr(want, name)), name
