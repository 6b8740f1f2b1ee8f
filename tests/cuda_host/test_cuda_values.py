"""The CUDA kernels, run on the CPU, stay within the error budget of the CPU kernels (contract 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from emulation import Emulation
from torch import Tensor
from torch.nn import functional as F

from mixpol_kernels.testing import budget
from mixpol_kernels.testing.configurations import grid, label
from mixpol_kernels.testing.inputs import OPS, Case, Config, make
from mixpol_kernels.testing.layouts import Placement
from mixpol_kernels.testing.oracle import outputs

UNITS = ("target_attention", "mixed_polarity_attention")
# Without a fusion `polarity_fusion` returns its input, on any device.
GRID = [
    c
    for op in OPS
    for c in grid(op)
    if not (op == "polarity_fusion" and c.fusion == "none") and c.activation != "dice_row" and not c.dropout
]
EDGES: dict[str, dict[str, Any]] = {
    "no users": {"batch": 0},
    "one token": {"counts": (1,)},
    "all empty": {"counts": (0, 0, 0)},
    "one very long row": {"counts": (2, 700, 0, 1)},
    "many short rows": {"batch": 40, "length": 3},
    "one item": {"items": 1},
    "one polarity": {"n_polarity": 1},
    "many extra rows": {"n_extra": 200, "id_dtype": torch.int16},
    "all sizes one": {"width": 1, "hidden": (1,), "counts": (1, 2)},
    "three layers of one": {"hidden": (1, 1, 1)},
    "wide": {"width": 200, "hidden": (260,), "batch": 2},
    "wide and deep": {"width": 72, "hidden": (130, 70, 34), "batch": 2},
    "many candidates": {"candidates": 7, "batch": 2},
    "no candidates": {"candidates": 0},
    "rows around a chunk": {"counts": (31, 32, 33, 63, 64, 65, 8, 9)},
}


@dataclass(frozen=True)
class Forward:
    """The forward of a case, with the emulated kernels as one of its backends."""

    case: Case
    cuda: Emulation

    @property
    def config(self) -> Config:
        return self.case.config

    def run(self, backend: str, where: Placement, dtype: torch.dtype) -> dict[str, Tensor]:
        if backend == "cuda":
            return self.cuda.outputs(self.case, where, dtype)
        with torch.no_grad():
            out = self.case.call(self.case.arguments(where, dtype), backend)
        return {"out": out if self.config.has_unit else where.gather(out)}

    def jitter(self, generator: torch.Generator, dtype: torch.dtype) -> Forward:
        return replace(self, case=self.case.jitter(generator, dtype))

    def rounded_once(self, generator: torch.Generator) -> Forward:
        return replace(self, case=self.case.rounded_once(generator))


def check(case: Case, cuda: Emulation, generator: torch.Generator, **options: Any) -> None:
    __tracebackhide__ = True
    forward: Any = Forward(case, cuda)
    lines = budget.over_budget(forward, case.place(generator, **options), generator, backend="cuda")
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("config", GRID, ids=[f"{c.op}-{label(c)}" for c in GRID])
def test_every_pair_of_options(config: Config, cuda: Emulation, generator: torch.Generator) -> None:
    check(make(config, generator), cuda, generator)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("op", OPS)
def test_edge_shapes(op: str, edge: str, cuda: Emulation, generator: torch.Generator) -> None:
    config = Config(op=op, layout="lengths", normalize="softmax", gate_inputs="full", n_extra=3)
    check(make(replace(config, **EDGES[edge]), generator), cuda, generator)


@pytest.mark.parametrize("op", OPS)
def test_padded_longer_than_any_row(op: str, cuda: Emulation, generator: torch.Generator) -> None:
    check(make(Config(op=op, layout="lengths"), generator), cuda, generator, length=43)


@pytest.mark.parametrize("shift", [-200.0, 0.0, 200.0])
def test_softmax_of_large_scores(shift: float, cuda: Emulation, generator: torch.Generator) -> None:
    """Scores beyond the range of exp: the largest score of the row is subtracted first."""
    config = Config(op="target_attention", activation="sigmoid", normalize="softmax", counts=(100, 3, 40))
    case = make(config, generator)
    case.floats["weights[1]"].mul_(20)
    case.floats["biases[1]"].add_(shift)
    check(case, cuda, generator)


def wide_tokens(case: Case, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Target and tokens of every padded position and candidate in float64, with zeros at the pads."""
    tokens = arguments["history"].double()
    keep = ~tokens.isnan().any(-1, keepdim=True)
    target = arguments["target"].double()
    target = target if target.dim() == 3 else target[:, None]
    tokens = torch.where(keep, tokens, 0.0)[:, :, None]
    shape = (*tokens.shape[:2], target.shape[1], tokens.shape[-1])
    return target[:, None].expand(shape), tokens.expand(shape)


@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_holes"])
@pytest.mark.parametrize("normalize", ["none", "softmax", "sigmoid"])
@pytest.mark.parametrize("candidates", [None, 3])
@pytest.mark.parametrize("op", UNITS)
def test_attention_weights(
    op: str, candidates: int | None, normalize: str, layout: str, cuda: Emulation, generator: torch.Generator
) -> None:
    """They are what pooled was made of, pads are zero, and asking for them changes nothing else."""
    config = Config(op=op, layout=layout, candidates=candidates, normalize=normalize, counts=(40, 0, 3))
    case = make(config, generator)
    where = case.place(generator)
    truth = outputs(case)[1]
    assert truth is not None
    arguments = case.arguments(where)
    got = cuda.attention(case, arguments, save_attention=True)
    assert not where.pads(got["attention"]).any()
    plain = case.call(arguments, "reference", return_weights=True)[1]
    plain = plain if candidates else plain[..., None]
    limit = 2 * float((where.gather(plain) - truth).abs().max())
    limit += 4 * torch.finfo(torch.float32).eps * float(truth.abs().max())
    assert float((where.gather(got["attention"]) - truth).abs().max()) <= limit
    assert torch.equal(got["pooled"], cuda.attention(case, arguments)["pooled"])


@pytest.mark.parametrize("units", [1, 8, 36, 64])
@pytest.mark.parametrize("candidates", [None, 3])
def test_bits(units: int, candidates: int | None, cuda: Emulation, generator: torch.Generator) -> None:
    """A bit for every hidden unit that is above zero; zeros at the pads."""
    config = Config(
        op="target_attention", layout="mask_left", hidden=(units,), candidates=candidates, counts=(35, 0, 9)
    )
    case = make(config, generator)
    where = case.place(generator)
    arguments = case.arguments(where)
    bits = cuda.attention(case, arguments, save_bits=True)["bits"]
    assert not where.pads(bits).any()
    t, x = wide_tokens(case, arguments)
    weight, bias = arguments["weights"][0].double(), arguments["biases"][0].double()
    on = F.linear(torch.cat([t, x, t - x, t * x], -1), weight, bias) > 0
    got = torch.stack([bits >> i & 1 for i in range(8)], -1).flatten(-2)[..., :units]
    assert torch.equal(where.gather(got).bool(), where.gather(on))
