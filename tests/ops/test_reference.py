"""The references are the spec: they agree with the formulas as loops, in every dtype, with exact gradients."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import mixpol_kernels
from mixpol_kernels.testing import oracle
from mixpol_kernels.testing.configurations import grid, label
from mixpol_kernels.testing.inputs import OPS, Config, make

GRID = [config for op in OPS for config in grid(op)]
SMALL = {"batch": 3, "length": 3, "width": 3, "hidden": (4, 2), "items": 4}


@pytest.mark.parametrize("config", GRID, ids=[f"{c.op}-{label(c)}" for c in GRID])
def test_reference_is_the_formula(config: Config, generator: torch.Generator) -> None:
    case = make(config, generator)
    where = case.place(generator)
    expected, weights = oracle.outputs(case)
    arguments = case.arguments(where, torch.float64)
    if weights is None:
        out = case.call(arguments, "reference")
        torch.testing.assert_close(where.gather(out), expected, rtol=1e-12, atol=1e-12)
        return
    out, got = case.call(arguments, "reference", return_weights=True)
    got = got if config.candidates else got[..., None]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(where.gather(got), weights, rtol=1e-12, atol=1e-12)
    assert not where.pads(got).any()


@pytest.mark.parametrize("layout", ["jagged", "mask_holes"])
@pytest.mark.parametrize("normalize", ["none", "softmax"])
@pytest.mark.parametrize("op", OPS)
def test_gradcheck(op: str, normalize: str, layout: str, generator: torch.Generator) -> None:
    if normalize == "softmax" and op in ("polarity_embedding", "polarity_fusion"):
        normalize = "none"
    more = {} if layout == "jagged" else {"gate_inputs": "full", "n_extra": 2}
    config = Config(op=op, layout=layout, normalize=normalize, activation="prelu", candidates=None, **SMALL, **more)
    case = make(config, generator)
    arguments = case.arguments(case.place(generator), torch.float64, requires_grad=True)
    flat: list[tuple[str, int | None]] = []
    for name, value in arguments.items():
        if isinstance(value, list):
            flat += [(name, i) for i in range(len(value))]
        elif isinstance(value, Tensor) and value.requires_grad:
            flat.append((name, None))

    def function(*inputs: Tensor) -> Tensor:
        changed = {k: list(v) if isinstance(v, list) else v for k, v in arguments.items()}
        for (name, i), tensor in zip(flat, inputs, strict=True):
            if i is None:
                # gradcheck differentiates numerically: no NaN in the pads here.
                changed[name] = tensor
            else:
                changed[name][i] = tensor
        out = case.call(changed, "reference")
        assert isinstance(out, Tensor)
        return out

    inputs = [arguments[name] if i is None else arguments[name][i] for name, i in flat]
    inputs = [t.detach().nan_to_num().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS)
def test_low_precision(op: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    more = {"gate_inputs": "full", "n_extra": 3}
    case = make(Config(op=op, layout="lengths", normalize="softmax", activation="silu", **more), generator)
    where = case.place(generator)
    got, truth = case.run("reference", where, dtype), case.run("reference", where, torch.float64)
    for name, value in got.items():
        assert value.dtype == dtype
        scale = float(truth[name].abs().max()) + 1
        assert float((value - truth[name]).abs().max()) < 64 * torch.finfo(dtype).eps * scale, name


@pytest.mark.parametrize("op", OPS)
def test_no_warning(op: str, generator: torch.Generator) -> None:
    case = make(Config(op=op, normalize="softmax"), generator)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            case.run("reference", case.place(generator))
    finally:
        torch.set_warn_always(False)


def test_sign_has_no_gradient(backend: str, generator: torch.Generator) -> None:
    """As the docstrings say, on every backend."""
    for op in ("polarity_fusion", "mixed_polarity_attention"):
        case = make(Config(op=op), generator)
        arguments = case.arguments(case.place(generator), requires_grad=True)
        arguments["sign"] = arguments["sign"].requires_grad_()
        case.call(arguments, backend).sum().backward()
        assert arguments["sign"].grad is None


def test_default_sign(backend: str, generator: torch.Generator) -> None:
    """-1 for row 0, +1 for every other row."""
    for op in ("polarity_fusion", "mixed_polarity_attention"):
        case = make(Config(op=op, n_polarity=3), generator)
        arguments = case.arguments(case.place(generator))
        given = case.call({**arguments, "sign": torch.tensor([-1.0, 1.0, 1.0])}, backend)
        assert torch.equal(case.call({**arguments, "sign": None}, backend), given)


def test_signs_scale_the_residual(backend: str, generator: torch.Generator) -> None:
    """Any number of rows: -1 pushes, 0 leaves the bias alone, +1 pulls, 0.5 pulls half as far."""
    for gate_inputs in ("product", "full"):
        config = Config(op="polarity_fusion", n_polarity=4, gate_inputs=gate_inputs)
        case = make(config, generator)
        arguments = case.arguments(case.place(generator))
        arguments["sign"] = torch.tensor([-1.0, 0.0, 1.0, 0.5])
        moved = []
        for row in range(4):
            arguments["polarity"] = torch.full_like(case.polarity, row)
            fused = case.call(arguments, backend)
            moved.append(fused - arguments["tokens"] - arguments["polarity_table"][row])
        assert moved[2].abs().max() > 0.01
        for row, factor in enumerate(arguments["sign"].tolist()):
            torch.testing.assert_close(moved[row], factor * moved[2], rtol=1e-4, atol=1e-5)


def test_full_gate_with_the_product_block_alone(backend: str, generator: torch.Generator) -> None:
    """[0 ; 0 ; W_g] is the [D, D] form."""
    for op in ("polarity_fusion", "mixed_polarity_attention"):
        case = make(Config(op=op), generator)
        arguments = case.arguments(case.place(generator))
        expected = case.call(arguments, backend)
        zero = torch.zeros(16, 32)
        arguments["gate"] = [torch.cat([zero, arguments["gate"][0]], 1), *arguments["gate"][1:]]
        torch.testing.assert_close(case.call(arguments, backend), expected)


def test_fusion_none_is_the_identity(backend: str) -> None:
    target, tokens = torch.randn(2, 4), torch.randn(2, 3, 4)
    assert mixpol_kernels.polarity_fusion(target, tokens, fusion="none", backend=backend) is tokens


def test_tapf_with_zero_projection_is_bias(backend: str, generator: torch.Generator) -> None:
    case = make(Config(op="polarity_fusion"), generator)
    arguments = case.arguments(case.place(generator))
    bias = case.call({**arguments, "fusion": "bias", "gate": [], "sign": None}, backend)
    arguments["gate"][2].zero_()
    assert torch.equal(case.call(arguments, backend), bias)
