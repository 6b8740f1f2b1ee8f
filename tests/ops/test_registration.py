"""The registered ops: schema, fake and real implementation agree (opcheck); double backward is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from mixpol_kernels.testing.inputs import OPS, Config, make
from mixpol_kernels.testing.recorder import recorded

UNITS = ("target_attention", "mixed_polarity_attention")
VARIANTS = [
    Config(op="polarity_embedding"),
    Config(op="polarity_embedding", layout="lengths", id_dtype=torch.int32, sparse=True),
    Config(op="polarity_fusion", fusion="bias", layout="mask_left"),
    Config(op="polarity_fusion", layout="lengths"),
    Config(op="target_attention"),
    Config(op="target_attention", layout="mask_holes", hidden=(36, 5), activation="prelu", candidates=3),
    Config(op="target_attention", batch=0, normalize="softmax"),
    Config(op="target_attention", dropout=0.3, activation="dice_row"),
    Config(normalize="softmax", activation="silu", id_dtype=torch.uint8, sparse=True),
    Config(fusion="none", layout="full", candidates=2),
    Config(fusion="bias", layout="lengths", counts=(0, 0)),
    Config(op="polarity_embedding", layout="lengths", n_extra=3),
    Config(op="polarity_fusion", gate_inputs="full", n_extra=3, id_dtype=torch.int16),
    Config(gate_inputs="full", n_extra=3, layout="mask_left", candidates=2),
    Config(fusion="bias", n_extra=3, counts=(0, 0)),
]
# tests/ops/dot_target_attention, interleave, target_attention/_dice, target_attention/_statistics
CHECKED_IN_THEIR_FOLDER = {
    "dot_attention_fwd",
    "dot_attention_bwd",
    "dot_attention_infer",
    "dot_attention_projected_fwd",
    "dot_attention_projected_bwd",
}
CHECKED_IN_THEIR_FOLDER |= {
    "dice_attention_fwd",
    "dice_attention_bwd",
    "interleave",
    "unit_statistics_fwd",
    "unit_statistics_bwd",
}
IDS = [f"{i}-{c.op}-{c.layout}" for i, c in enumerate(VARIANTS)]


def registered() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    return {n.removeprefix("mixpol::") for n in names if n.startswith("mixpol::")}


@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
def test_opcheck(config: Config, generator: torch.Generator) -> None:
    """Every call that a forward and backward of the public function makes."""
    for func, args in recorded(config, generator):
        results = torch.library.opcheck(func, args)
        assert set(results.values()) == {"SUCCESS"}, (func, results)


def test_every_op_is_checked(generator: torch.Generator) -> None:
    """A new op needs a variant above, or its own opcheck; `cpu_isa` takes no tensor."""
    calls = [call for config in VARIANTS for call in recorded(config, generator)]
    checked = {f._schema.name.removeprefix("mixpol::") for f, _ in calls}
    assert registered() - {"cpu_isa"} == checked | CHECKED_IN_THEIR_FOLDER


def test_every_op_has_a_kernel_and_a_fake() -> None:
    for name in registered() - {"cpu_isa"}:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"mixpol::{name}", "CPU"), name
        assert torch._library.simple_registry.singleton.find(f"mixpol::{name}").fake_impl.kernel, name


@pytest.mark.parametrize("op", OPS)
def test_double_backward_is_refused(op: str, generator: torch.Generator) -> None:
    case = make(Config(op=op, activation="silu"), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    out = case.call(arguments, "cpu")
    leaf = arguments["target" if case.config.has_target else "item_table"]
    (grad,) = torch.autograd.grad((out * out).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("op", OPS)
def test_backward_twice(op: str, generator: torch.Generator) -> None:
    """With retain_graph the second backward adds the same bits."""
    case = make(Config(op=op), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    out = case.call(arguments, "cpu")
    leaf = arguments["target" if case.config.has_target else "item_table"]
    grads = [torch.autograd.grad(out.sum(), leaf, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*grads)


@pytest.mark.parametrize("op", UNITS)
def test_changed_in_place_is_noticed(op: str, generator: torch.Generator) -> None:
    """An input that changes between forward and backward is an error, not a wrong gradient."""
    case = make(Config(op=op), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    out = case.call(arguments, "cpu")
    with torch.no_grad():
        arguments["weights"][0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_schemas_exist_without_the_library() -> None:
    """Names and fakes come from Python: a meta call works where nothing was compiled."""
    code = """
import torch, mixpol_kernels
from mixpol_kernels.library import library
assert not library.loaded
table, ids = torch.empty(5, 8, device="meta"), torch.empty(3, dtype=torch.long, device="meta")
out = torch.ops.mixpol.polarity_embedding_fwd(ids, ids, table, table[:2], *[None] * 5)
assert out.shape == (3, 8) and out.device.type == "meta", out
"""
    environment = {**os.environ, "MIXPOL_SKIP_EXT": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
