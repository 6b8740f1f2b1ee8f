"""Contract 9 and poisoned memory: what is kept for the backward, what is written, and where."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from poison import poisoned
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import mixpol_kernels
from mixpol_kernels.testing.configurations import CHOICES, config, pairwise
from mixpol_kernels.testing.inputs import OPS, Config, make

UNITS = ("target_attention", "mixed_polarity_attention")


def kept_bytes(case: Any, arguments: dict[str, Any]) -> int:
    """Bytes saved for the backward in storages that belong to no input and to no output."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = case.call(arguments, "cpu")
    flat = [v for value in arguments.values() for v in (value if isinstance(value, list) else [value])]
    known = {t.untyped_storage().data_ptr() for t in [out, *flat] if isinstance(t, Tensor)}
    return sum(size for pointer, size in saved.items() if pointer not in known)


@pytest.mark.parametrize("candidates", [None, 3])
@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_holes"])
@pytest.mark.parametrize(
    ("activation", "hidden"),
    [("relu", (64,)), ("relu", (36,)), ("relu", (80,)), ("relu", (64, 32)), ("silu", (64,)), ("prelu", (130, 8))],
)
@pytest.mark.parametrize("op", UNITS)
def test_at_most_12_bytes_a_token(
    op: str,
    activation: str,
    hidden: tuple[int, ...],
    layout: str,
    candidates: int | None,
    generator: torch.Generator,
) -> None:
    """Per token and candidate."""
    for normalize in ("none", "softmax"):
        base = Config(
            op=op, layout=layout, batch=9, length=50, hidden=hidden, activation=activation,
            candidates=candidates, normalize=normalize, n_extra=0 if normalize == "none" else 3,
            gate_inputs="product" if normalize == "none" else "full",
        )  # fmt: skip
        case = make(base, generator)
        where = case.place(generator)
        arguments = case.arguments(where, requires_grad=True)
        pairs = candidates or 1
        for size in where.shape:
            pairs *= size
        kept = kept_bytes(case, arguments)
        assert kept <= 12 * pairs
        said = mixpol_kernels.explain(getattr(mixpol_kernels, op), **arguments, backend="cpu").saved_bytes
        assert said == kept


@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_holes"])
@pytest.mark.parametrize("op", ["polarity_embedding", "polarity_fusion"])
def test_only_inputs_are_kept(op: str, layout: str, generator: torch.Generator) -> None:
    case = make(Config(op=op, layout=layout, gate_inputs="full", n_extra=3), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    assert kept_bytes(case, arguments) == 0
    assert mixpol_kernels.explain(getattr(mixpol_kernels, op), **arguments, backend="cpu").saved_bytes == 0


@pytest.mark.parametrize("op", UNITS)
def test_nothing_is_kept_without_gradient(op: str, generator: torch.Generator) -> None:
    case = make(Config(op=op), generator)
    assert kept_bytes(case, case.arguments(case.place(generator))) == 0
    with torch.no_grad():
        assert kept_bytes(case, case.arguments(case.place(generator), requires_grad=True)) == 0


def test_no_token_sized_tensor_in_the_fused_forward(generator: torch.Generator) -> None:
    more = {"gate_inputs": "full", "n_extra": 3}
    case = make(Config(batch=20, length=100, width=64, hidden=(36,), activation="silu", **more), generator)
    arguments = case.arguments(case.place(generator))
    case.call(arguments, "cpu")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        case.call(arguments, "cpu")
    allocated = sum(max(0, e.self_cpu_memory_usage) for e in record.events())
    assert allocated < sum(case.counts) * 64 * 4 / 2


@pytest.mark.parametrize("op", OPS)
def test_every_output_element_is_written(op: str, generator: torch.Generator) -> None:
    for choice in pairwise(CHOICES[op])[::3]:
        case = make(config(op, choice), generator)
        where = case.place(generator)
        expected = case.run("cpu", where)
        with poisoned():
            got = case.run("cpu", where)
        for name, value in expected.items():
            assert torch.equal(got[name], value), f"{name} at {case.config}"


@pytest.mark.parametrize("layout", ["lengths", "mask_holes"])
@pytest.mark.parametrize("width", [64, 37])
@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        ("target_attention", torch.float32),
        ("target_attention", torch.bfloat16),
        ("polarity_fusion", torch.float32),
    ],
)
def test_pads_of_large_tensors_are_zero(
    op: str, width: int, layout: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Zeros for tensors of 2 MiB and more go past the caches, whatever the rows' alignment."""
    case = make(Config(op=op, layout=layout, batch=130, length=230, width=width), generator)
    where = case.place(generator)
    arguments = case.arguments(where, dtype, requires_grad=True)
    history = arguments["history" if op == "target_attention" else "tokens"]
    assert history.nbytes > 2 << 20
    with poisoned():
        case.call(arguments, "cpu").sum().backward()
    pads = where.pads(history.grad)
    assert pads.numel() > 0
    assert (pads == 0).all()


@pytest.mark.parametrize("layout", ["jagged", "lengths", "mask_holes"])
@pytest.mark.parametrize("normalize", ["none", "softmax"])
@pytest.mark.parametrize("op", UNITS)
def test_attention_weights_are_written(op: str, normalize: str, layout: str, generator: torch.Generator) -> None:
    case = make(Config(op=op, layout=layout, normalize=normalize), generator)
    arguments = case.arguments(case.place(generator))
    with poisoned():
        _, weights = case.call(arguments, "cpu", return_weights=True)
    assert weights.isfinite().all()


@pytest.mark.parametrize("op", OPS)
def test_poison_reaches_the_library(op: str, generator: torch.Generator) -> None:
    """What the kernels return comes from PyTorch's allocator, whose memory glibc fills when told to."""
    case = make(Config(op=op), generator)
    arguments = case.arguments(case.place(generator))
    case.call(arguments, "cpu")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        case.call(arguments, "cpu")
    (call,) = [e for e in record.events() if e.name == f"mixpol::{op}_fwd"]
    assert call.cpu_memory_usage > 0
    with poisoned():
        torch.utils.deterministic.fill_uninitialized_memory = False
        # Up to 1 KiB may come from a thread's own list, which is handed out as it is. AddressSanitizer fills by itself.
        filled = 0xFF if "asan" in os.environ.get("LD_PRELOAD", "") else 0x7F
        assert (torch.empty(4096, dtype=torch.uint8) == filled).all()


def test_scratch_memory_is_written() -> None:
    """glibc fills fresh heap memory with two different bytes: the results are the same, bitwise."""
    digests = set()
    for perturb in ("1", "129"):
        run = subprocess.run(
            [sys.executable, "-m", "mixpol_kernels.testing.selfcheck", "--seed", "5", "--cases", "6"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_PERTURB_": perturb},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        digests.add(re.search(r"digest (\w+)", run.stdout)[1])  # type: ignore[index]
    assert len(digests) == 1


@pytest.mark.parametrize("op", OPS)
def test_inputs_are_not_written(op: str, backend: str, generator: torch.Generator) -> None:
    case = make(Config(op=op, layout="mask_holes"), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    flat = [v for value in arguments.values() for v in (value if isinstance(value, list) else [value])]
    versions = [(t, t._version, t.detach().clone()) for t in flat if isinstance(t, Tensor)]
    case.call(arguments, backend).sum().backward()
    for tensor, version, old in versions:
        assert tensor._version == version
        assert torch.equal(tensor.detach().nan_to_num(), old.nan_to_num())
