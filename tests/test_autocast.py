"""Contract 10: under autocast an op takes its dtype where a kernel multiplies in it, else float32, and says which."""

from __future__ import annotations

from typing import Any

import faked
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mixpol_kernels as mk
from mixpol_kernels import autocast as rules
from mixpol_kernels import backend as backends
from mixpol_kernels import explain
from mixpol_kernels.testing.inputs import OPS, Config, make

LOW = (torch.bfloat16, torch.float16)
ATTENTION = ("target_attention", "mixed_polarity_attention")
every_op = pytest.mark.parametrize("op", OPS)
every_low = pytest.mark.parametrize("dtype", LOW, ids=str)


@pytest.fixture(params=[True, False], ids=["AVX512-BF16", "without"])
def multiplies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the CPU counts as one that multiplies in bfloat16; the kernels store it in any case."""
    monkeypatch.setattr(rules, "cpu_multiplies", lambda dtype: request.param and dtype == torch.bfloat16)
    return bool(request.param)


def autocast(dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    return torch.autocast("cpu", dtype)


def leaves(arguments: dict[str, Any], dtype: torch.dtype, keep: tuple[str, ...] = ()) -> dict[str, Any]:
    """The arguments as fresh leaves in a dtype; those named in `keep` in float32."""

    def leaf(value: Any, name: str) -> Any:
        if isinstance(value, list):
            return [leaf(v, name) for v in value]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.detach().to(torch.float32 if name in keep else dtype).requires_grad_(name != "sign")

    return {name: leaf(value, name) for name, value in arguments.items()}


def grads(out: Tensor, arguments: dict[str, Any]) -> list[Tensor]:
    """Gradients of all leaves that have one."""
    out.float().square().sum().backward()
    flat = [v for value in arguments.values() for v in (value if isinstance(value, list) else [value])]
    return [t.grad for t in flat if isinstance(t, Tensor) and t.grad is not None]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@every_low
@every_op
def test_mixed_dtypes(op: str, dtype: torch.dtype, backend: str, multiplies: bool, generator: torch.Generator) -> None:
    """Activations of a low layer meet float32 masters; each gradient has its input's dtype."""
    case = make(Config(op=op, activation="prelu", hidden=(8, 5)), generator)
    mixed = leaves(case.arguments(case.place(generator)), dtype, keep=("weights", "polarity_table"))
    with pytest.raises(TypeError, match="expected the same dtype"):
        case.call(mixed, backend)
    low = backend == "cpu" and op in ATTENTION and multiplies and dtype == torch.bfloat16
    same = leaves(mixed, dtype if low else torch.float32)
    expected = case.call(same, backend)
    with autocast(dtype):
        got = case.call(mixed, backend)
    rounded = op in ATTENTION
    assert got.dtype == (dtype if rounded else torch.float32)
    assert torch.equal(got, expected.to(got.dtype))
    pairs = list(zip(grads(got, mixed), grads(expected.to(got.dtype), same), strict=True))
    assert {grad.dtype for grad, _ in pairs} == {torch.float32, dtype}
    for grad, true in pairs:
        assert torch.equal(grad, true.to(grad.dtype))


@pytest.mark.parametrize("sparse", [False, True])
def test_a_master_table_is_not_copied(sparse: bool, multiplies: bool, generator: torch.Generator) -> None:
    """The CPU kernel reads it as it is, in float32; only the result is rounded."""
    case = make(Config(op="mixed_polarity_attention", sparse=sparse, layout="mask_left"), generator)
    mixed = leaves(case.arguments(case.place(generator)), torch.bfloat16, keep=("item_table",))
    same = leaves(mixed, torch.float32)
    expected = case.call(same, "cpu").bfloat16()
    with autocast():
        got = case.call(mixed, "cpu")
    assert torch.equal(got, expected)
    table, want = grads(got, mixed), grads(expected, same)
    for grad, true in zip(table, want, strict=True):
        assert torch.equal(grad.to_dense(), true.to(grad.dtype).to_dense())
    assert mixed["item_table"].grad.is_sparse == sparse


def test_the_dot_product_op_stays_float32_on_a_cpu(generator: torch.Generator) -> None:
    """Its result is rounded all the same."""
    target, history = torch.randn(3, 8, generator=generator), torch.randn(3, 5, 8, generator=generator)
    with autocast():
        got, weights = mk.dot_target_attention(target, history, num_heads=2, return_weights=True)
    assert got.dtype == weights.dtype == torch.bfloat16
    assert torch.equal(got, mk.dot_target_attention(target, history, num_heads=2).bfloat16())


def test_float64_is_left_alone(generator: torch.Generator) -> None:
    target, history = torch.randn(3, 8).double(), torch.randn(3, 5, 8).double()
    with autocast():
        assert mk.dot_target_attention(target, history).dtype == torch.float64


def test_a_mask_of_small_numbers_is_not_rounded(generator: torch.Generator) -> None:
    target, history = torch.randn(3, 8, generator=generator), torch.randn(3, 5, 8, generator=generator)
    mask = torch.tensor([[1e-30, 0, 1, 0, 0]]).expand(3, 5)
    with autocast(torch.float16):
        got = mk.dot_target_attention(target, history, mask=mask)
    assert torch.equal(got, mk.dot_target_attention(target, history, mask=mask != 0).half())


def test_switched_off_inside(generator: torch.Generator) -> None:
    """autocast(enabled=False) is no autocast, and the state outside is what it was."""
    case = make(Config(op="target_attention"), generator)
    mixed = leaves(case.arguments(case.place(generator)), torch.bfloat16, keep=("weights",))
    with autocast():
        with torch.autocast("cpu", enabled=False), pytest.raises(TypeError, match="expected the same dtype"):
            case.call(mixed)
        case.call(mixed)
        assert torch.is_autocast_enabled("cpu")


class Model(nn.Module):
    """Layers before and behind the fused one, which is computed again in the backward on request."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.before, self.behind, self.again = nn.Linear(8, 8), nn.Linear(8, 1), again
        self.attention = mk.nn.TargetAttention(8, [16], backend="cpu")

    def pooled(self, target: Tensor, history: Tensor) -> Tensor:
        pooled: Tensor = self.attention(self.before(target), self.before(history), lengths=torch.tensor([5, 0, 2]))
        assert pooled.dtype == torch.bfloat16
        return pooled

    def forward(self, target: Tensor, history: Tensor) -> Tensor:
        if self.again:
            return self.behind(checkpoint(self.pooled, target, history, use_reentrant=False))
        return self.behind(self.pooled(target, history))


@pytest.mark.parametrize("form", ["compiled", "checkpointed"])
def test_module_in_a_model(form: str, multiplies: bool, generator: torch.Generator) -> None:
    """The same numbers as eager, in the masters' dtype: autocast is a part of the graph, and of a checkpoint."""
    model = Model()
    inputs = torch.randn(3, 8, generator=generator), torch.randn(3, 5, 8, generator=generator)
    with autocast():
        expected = model(*inputs)
    expected.float().sum().backward()
    want = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    model.again = form == "checkpointed"
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if form == "compiled" else model
    with autocast():
        out = run(*inputs)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    out.float().sum().backward()
    for parameter, grad in zip(model.parameters(), want, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        if form == "compiled":  # which sums a weight's two gradients before it widens them
            torch.testing.assert_close(parameter.grad, grad, rtol=2**-7, atol=2**-9)
        else:
            assert torch.equal(parameter.grad, grad)


def test_explain_says_which_and_why(multiplies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.library, "isa", lambda: "avx512_bf16" if multiplies else "avx2")
    layer, target, history = mk.nn.TargetAttention(8, [16]), torch.randn(2, 8), torch.randn(2, 5, 8)
    assert explain(layer, target, history).autocast == ""
    with autocast():
        found = explain(layer, target, history)
    alone = explain(layer, target, history)
    assert found.backend == "cpu"
    if multiplies:
        assert found.products == "bfloat16 operands, summed in float32"
        assert found.autocast == "to bfloat16: computed in bfloat16, since the CPU multiplies in it (avx512_bf16)"
        made = sum(t.numel() for t in (target, history, *layer.parameters())) * 2  # the rounded copies
        assert found.saved_bytes == alone.saved_bytes + made
    else:
        assert found.products == "float32 operands, IEEE"
        assert (
            "computed in float32, since the CPU kernels do not multiply in bfloat16 here (instruction set avx2)"
            in str(found)
        )
    with autocast(torch.float16):
        assert "do not multiply in float16" in explain(layer, target, history).autocast
    ids = torch.zeros(2, 5, dtype=torch.int64)
    with autocast():
        found = explain(mk.nn.MixedPolarityAttention(5, 8), target, ids, ids)
        assert "the kernel looks rows up itself" in found.autocast
        assert (
            "no kernel of polarity_fusion for cpu takes"
            in explain(mk.nn.PolarityFusion(8), target, history, ids).autocast
        )


def test_by_name(multiplies: bool) -> None:
    layer = mk.nn.TargetAttention(8, [16], backend="reference")
    with autocast():
        found = explain(layer, torch.randn(2, 8), torch.randn(2, 5, 8))
    assert found.autocast == "to bfloat16: computed in float32, since the reference is the spec of float32"


@every_low
@pytest.mark.parametrize("compiled", [False, True], ids=["Triton", "CUDA forwards too"])
def test_on_a_gpu(dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and inference take the half kernels; the look-up stays as it is, and what none takes float32."""
    faked.with_triton(monkeypatch, compiled="" if compiled else "not built")
    name = str(dtype).removeprefix("torch.")
    layers = [
        mk.nn.TargetAttention(8, [16]), mk.nn.PolarityFusion(8), mk.nn.MultiHeadTargetAttention(8, 8, 2),
        mk.nn.MixedPolarityAttention(5, 8), mk.nn.PolarityEmbedding(5, 8),
        mk.nn.TargetAttention(8, [16], backend="reference"),
    ]  # fmt: skip
    with faked.gpu(dtype):
        layers = [faked.moved(layer) for layer in layers]
        target, history = torch.empty(2, 8, device="cuda"), torch.empty(2, 5, 8, device="cuda")
        ids = torch.empty(2, 5, dtype=torch.int64, device="cuda")
        calls: list[tuple[nn.Module, tuple[Tensor, ...]]] = [
            (layers[0], (target, history)),
            (layers[1], (target, history, ids)),
            (layers[2], (target, history)),
            (layers[3], (target, ids, ids)),
        ]
        for layer, inputs in calls:
            for context in (torch.enable_grad(), torch.no_grad()):
                with context:
                    found = explain(layer, *inputs)
                assert found.backend == "triton", str(found)
                assert found.products == f"{name} operands, summed in float32"
                assert f"to {name}: computed in {name}, since the triton kernels multiply in it" in str(found)
        assert found.autocast.endswith("rows of the item table are rounded as they are looked up")
        named = explain(layers[5], target, history)
        assert f"computed in {name}" in named.autocast
        look_up = explain(layers[4], ids, ids)
        assert "computed in float32, since a look-up multiplies nothing" in look_up.autocast
