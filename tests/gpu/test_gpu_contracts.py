"""Bits, streams, graphs, torch.compile and memory, on the GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dot_cases
import pytest
import torch
from on_gpu import DEVICE, moved, there
from torch import Tensor

import mixpol_kernels
from mixpol_kernels.nn import MixedPolarityAttention, MultiHeadTargetAttention, TargetAttention
from mixpol_kernels.testing.inputs import Config, make

COUNTS = (35, 0, 7, 132, 18, 3)
UNIT = Config(op="target_attention", counts=COUNTS, normalize="softmax", candidates=2, width=64, hidden=(64,))
MIXED = Config(op="mixed_polarity_attention", counts=COUNTS, width=64, hidden=(36,))
CASES: dict[str, Any] = {
    "unit": UNIT,
    "staged": replace(UNIT, hidden=(80, 40), activation="dice_row"),
    "mixed": MIXED,
    "fusion": Config(op="polarity_fusion", counts=COUNTS),
    "dot": dot_cases.Config(counts=COUNTS, heads=2, attention=None, width=32),
}


def drawn(name: str, generator: torch.Generator) -> Any:
    config = CASES[name]
    return make(config, generator) if isinstance(config, Config) else dot_cases.make(config, generator)


@pytest.mark.parametrize("name", CASES)
def test_same_bits_every_time_and_alone(name: str, generator: torch.Generator) -> None:
    case = moved(drawn(name, generator))
    where = case.place(generator)
    expected = case.run("triton", where)
    for _ in range(3):
        again = case.run("triton", where)
        assert all(torch.equal(again[key], expected[key]) for key in expected)
    ends = torch.tensor(case.counts).cumsum(0).tolist()
    for user in (0, 3, 4):
        alone = case.take([user])
        for layout in ("jagged", "lengths"):
            got = alone.run("triton", alone.place(generator, layout))
            rows = slice(ends[user] - case.counts[user], ends[user])
            assert torch.equal(got["out"], expected["out"][rows if name == "fusion" else slice(user, user + 1)])
            if "grad target" in got:
                assert torch.equal(got["grad target"][0], expected["grad target"][user])
            for key in ("grad tokens", "grad history"):
                if key in got:
                    assert torch.equal(got[key], expected[key][rows])


@pytest.mark.parametrize("name", ["unit", "mixed", "fusion"])
def test_same_bits_of_the_cuda_forward(name: str, generator: torch.Generator) -> None:
    case = drawn(name, generator)
    arguments = there(case.arguments(case.place(generator)))
    with torch.no_grad():
        expected = case.call(arguments, "cuda")
        assert all(torch.equal(case.call(arguments, "cuda"), expected) for _ in range(5))
        alone = case.take([3])
        got = alone.call(there(alone.arguments(alone.place(generator, "lengths"))), "cuda")
    start = sum(case.counts[:3])
    mine = slice(start, start + case.counts[3]) if name == "fusion" else slice(3, 4)
    assert torch.equal(got.flatten(0, 1) if name == "fusion" else got, expected[mine])


def leaves_of(arguments: dict[str, Any]) -> list[Tensor]:
    flat = [t for value in arguments.values() for t in (value if isinstance(value, list) else [value])]
    return [t for t in flat if isinstance(t, Tensor) and t.requires_grad]


def step(case: Any, arguments: dict[str, Any], backend: str) -> list[Tensor]:
    """Output and gradients."""
    out = case.call(arguments, backend)
    return [out, *torch.autograd.grad(out, leaves_of(arguments), torch.ones_like(out))]


def leaves_there(case: Any, where: Any) -> dict[str, Any]:
    """Arguments whose leaves lie on the GPU."""

    def leaf(value: Any) -> Any:
        if isinstance(value, list):
            return [leaf(item) for item in value]
        if isinstance(value, Tensor):
            return value.detach().to(DEVICE).requires_grad_(value.requires_grad)
        return value

    return {name: leaf(value) for name, value in case.arguments(where, requires_grad=True).items()}


@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_for_the_device(name: str, generator: torch.Generator) -> None:
    """Forward and backward in Triton: a training step is queued without a synchronisation."""
    case = drawn(name, generator)
    arguments = leaves_there(case, case.place(generator))
    step(case, arguments, "triton")  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(case, arguments, "triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", CASES)
def test_graph_of_forward_and_backward(name: str, generator: torch.Generator) -> None:
    case = drawn(name, generator)
    arguments = leaves_there(case, case.place(generator))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(case, arguments, "triton")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(case, arguments, "triton")
    with torch.no_grad():
        arguments["target"].copy_(torch.randn(arguments["target"].shape, generator=generator))
    graph.replay()
    for got, want in zip(captured, step(case, arguments, "triton"), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_side_stream(backend: str, generator: torch.Generator) -> None:
    """The kernels are launched on the current stream."""
    case = drawn("unit", generator)
    arguments = there(case.arguments(case.place(generator)))
    with torch.no_grad():
        want = case.call(arguments, backend)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)
            late = {**arguments, "target": arguments["target"] + 0}
            got = case.call(late, backend)
        side.synchronize()
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["unit", "mixed", "dot"])
def test_compile(name: str, generator: torch.Generator) -> None:
    """One graph, dynamic shapes, forward and backward, by inductor."""
    torch._dynamo.reset()
    case = drawn(name, generator)
    op = getattr(mixpol_kernels, case.config.op)
    compiled: Callable[..., Tensor] = torch.compile(op, fullgraph=True, dynamic=True)
    for counts in (COUNTS, (2, 18, 1, 4)):
        config = replace(case.config, counts=counts)
        fresh = make(config, generator) if isinstance(config, Config) else dot_cases.make(config, generator)
        arguments = leaves_there(fresh, fresh.place(generator))
        out = compiled(**arguments, backend="triton")
        out.backward(torch.ones_like(out))
        want, *grads = step(fresh, arguments, "triton")
        assert torch.equal(out, want)
        for leaf, grad in zip(leaves_of(arguments), grads, strict=True):
            assert torch.equal(leaf.grad, grad)


@pytest.mark.parametrize("normalize", ["none", "softmax"])
@pytest.mark.parametrize(("backend", "dtype"), [("triton", torch.float16), ("cuda", torch.float32)])
def test_history_beyond_32_bits(backend: str, dtype: torch.dtype, normalize: str) -> None:
    """Two users whose histories lie 2³¹ elements apart."""
    apart = 2**31 + 16
    room = torch.empty(apart + 200, dtype=dtype, device=DEVICE)
    history = room.as_strided((2, 3, 16), (apart, 16, 1))
    history.copy_(torch.randn(2, 3, 16))
    shapes = (2, 16), (8, 64), (1, 8), (8,), (1,)
    target, w_1, w_2, b_1, b_2 = (torch.randn(shape).to(DEVICE, dtype) for shape in shapes)
    far, near = (
        mixpol_kernels.target_attention(
            target, h, [w_1, w_2], [b_1, b_2], activation="silu", normalize=normalize, backend=backend
        )
        for h in (history, history.clone())
    )
    assert torch.equal(far, near)
    assert far[1].any()


def test_saves_only_the_weights() -> None:
    """4 bytes a token and candidate between forward and backward."""
    layer = TargetAttention(64, [64], backend="triton").to(DEVICE)
    target = torch.randn(512, 64, device=DEVICE, requires_grad=True)
    history = torch.randn(512, 400, 64, device=DEVICE, requires_grad=True)
    layer(target, history).sum().backward()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    out = layer(target, history)
    kept = torch.cuda.memory_allocated() - before - out.numel() * 4
    assert 512 * 400 * 4 <= kept <= 1.1 * 512 * 400 * 4


MODULES: dict[str, Callable[[], torch.nn.Module]] = {
    "unit": lambda: TargetAttention(32, [36, 20], "dice"),
    "heads": lambda: MultiHeadTargetAttention(32, num_heads=4),
    "from ids": lambda: MixedPolarityAttention(100, 32, [36], activation="silu"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_modules_take_the_fused_forms(name: str, dtype: torch.dtype) -> None:
    """ "auto" trains with Triton, serves with whichever is there, and is close to the reference in float64."""
    layer = MODULES[name]().eval()
    lengths = torch.randint(1, 51, (9,))
    if name == "from ids":
        inputs = [torch.randint(0, 100, (9,)), torch.randint(0, 100, (9, 50)), torch.randint(0, 2, (9, 50))]
    else:
        inputs = [torch.randn(9, 32), torch.randn(9, 50, 32)]
    exact = copy.deepcopy(layer).double()
    want = exact(*(t.double() if t.is_floating_point() else t for t in inputs), lengths=lengths)
    layer = layer.to(DEVICE, dtype)
    inputs = [t.to(DEVICE, dtype) if t.is_floating_point() else t.to(DEVICE) for t in inputs]
    lengths = lengths.to(DEVICE)
    found = mixpol_kernels.explain(layer, *inputs, lengths=lengths)
    assert found.backend == "triton", found
    trained = layer(*inputs, lengths=lengths)
    trained.sum().backward()
    with torch.no_grad():
        served = layer(*inputs, lengths=lengths)
    for one in (trained, served):
        assert float((one.double().cpu() - want).norm() / want.norm()) < (1e-4 if dtype == torch.float32 else 0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
