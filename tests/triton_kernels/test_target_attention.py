"""The Triton kernels of `target_attention` against the float64 reference, interpreted, every access checked."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

import mixpol_kernels
from mixpol_kernels import backend as backends
from mixpol_kernels import explain
from mixpol_kernels.ops.target_attention.autograd import BACKWARD, FORWARD
from mixpol_kernels.ops.triton import devices
from mixpol_kernels.ops.unit import ACTIVATIONS
from mixpol_kernels.testing import budget
from mixpol_kernels.testing.inputs import Case, Config, make
from mixpol_kernels.testing.layouts import LAYOUTS
from mixpol_kernels.testing.oracle import outputs
from mixpol_kernels.testing.recorder import Recorder

OP = "target_attention"
TAKEN = [*(a for a in ACTIVATIONS if a != "dice_row"), "leaky_relu"]
# Two users whose histories end within a tile of 16, one that fills two, and an empty one.
COUNTS = (35, 0, 7, 32)
BASE = Config(op=OP, counts=COUNTS)


def check(case: Case, generator: torch.Generator, dtype: torch.dtype = torch.float32, **options: Any) -> None:
    __tracebackhide__ = True
    where = case.place(generator, **options)
    lines = budget.over_budget(case, where, generator, backend="triton", dtype=dtype)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("hidden", [(24,), (24, 9), (24, 17, 5)], ids=len)
@pytest.mark.parametrize("activation", TAKEN)
def test_activations_and_depths(activation: str, hidden: tuple[int, ...], generator: torch.Generator) -> None:
    normalize = {1: "none", 2: "softmax", 3: "sigmoid"}[len(hidden)]
    check(make(replace(BASE, activation=activation, hidden=hidden, normalize=normalize), generator), generator)


@pytest.mark.parametrize("normalize", ["none", "softmax", "sigmoid"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, normalize: str, generator: torch.Generator) -> None:
    counts = (19,) * 3 if layout == "full" else COUNTS
    check(make(replace(BASE, layout=layout, counts=counts, normalize=normalize, candidates=2), generator), generator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden", [(24,), (24, 17, 5)], ids=len)
@pytest.mark.parametrize("activation", ["silu", "dice", "tanh"])
def test_low_precision(
    activation: str, hidden: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> None:
    normalize = "softmax" if dtype == torch.float16 else "none"
    config = replace(BASE, activation=activation, hidden=hidden, normalize=normalize)
    check(make(config, generator, dtype), generator, dtype)


def test_low_precision_of_candidates(generator: torch.Generator) -> None:
    """A token's gradient is summed over candidates in float32."""
    config = replace(BASE, candidates=3, normalize="softmax", activation="silu")
    check(make(config, generator, torch.bfloat16), generator, torch.bfloat16)


EDGES: dict[str, dict[str, Any]] = {
    "no users": {"counts": ()},
    "one token": {"counts": (1,)},
    "all empty": {"counts": (0, 0, 0)},
    "rows around a tile": {"counts": (15, 16, 17, 31, 33)},
    "more users than programs": {"counts": (2, 0, 5, 1, 3, 0, 4, 2, 1)},
    "all sizes one": {"width": 1, "hidden": (1,), "counts": (1, 2)},
    "three layers of one": {"hidden": (1, 1, 1), "counts": (3, 2)},
    "odd sizes": {"width": 23, "hidden": (19, 11), "counts": (9, 20)},
    "largest": {"width": 128, "hidden": (128,), "counts": (5, 18)},
    "largest and deep": {"width": 64, "hidden": (64, 32, 16), "counts": (18,)},
    "many candidates": {"candidates": 9, "counts": (3, 18)},
    "no candidates": {"candidates": 0},
    "one candidate": {"candidates": 1},
    "long row": {"counts": (300,), "width": 8},
}


@pytest.mark.parametrize("edge", EDGES)
def test_edge_shapes(edge: str, generator: torch.Generator, source: random.Random) -> None:
    normalize, layout = source.choice([("none", "jagged"), ("softmax", "lengths")])
    check(make(replace(BASE, layout=layout, normalize=normalize, **EDGES[edge]), generator), generator)


@pytest.mark.parametrize("layout", ["lengths", "mask_left"])
def test_padded_longer_than_any_row(layout: str, generator: torch.Generator) -> None:
    """Whole tiles of pads are written as zeros."""
    check(make(replace(BASE, layout=layout), generator), generator, length=70)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("blocks", [("x", "t*x", "t"), ("t", "x", "t*x", "t-x")])
def test_options(blocks: tuple[str, ...], index_dtype: torch.dtype, generator: torch.Generator) -> None:
    check(make(replace(BASE, blocks=blocks, scale=0.3, index_dtype=index_dtype), generator), generator)


@pytest.mark.parametrize("shift", [-200.0, 200.0])
def test_softmax_of_large_scores(shift: float, generator: torch.Generator) -> None:
    """Beyond the range of exp, with one weight of nearly 1 in a row."""
    case = make(replace(BASE, activation="sigmoid", normalize="softmax"), generator)
    case.floats["weights[1]"].mul_(20)
    case.floats["biases[1]"].add_(shift)
    check(case, generator)


@pytest.mark.parametrize("flush", [1, 2])
@pytest.mark.parametrize("hidden", [(24,), (24, 17, 5)], ids=len)
def test_sums_that_leave_the_registers(
    hidden: tuple[int, ...], flush: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other forms of the backward, which larger units use on a GPU."""
    monkeypatch.setattr(devices, "INTERPRETED", dataclasses.replace(devices.INTERPRETED, flush=flush))
    check(make(replace(BASE, hidden=hidden, activation="dice", candidates=2), generator), generator)


@pytest.mark.parametrize("normalize", ["none", "softmax", "sigmoid"])
def test_gradient_through_the_weights(normalize: str, generator: torch.Generator) -> None:
    case = make(replace(BASE, layout="mask_holes", normalize=normalize, candidates=2), generator)
    where = case.place(generator)
    truth = outputs(case)[1]
    assert truth is not None
    upstream = where.spread(torch.randn(truth.shape, generator=generator)).nan_to_num()
    grads, errors = {}, {}
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float32), ("exact", torch.float64)):
        arguments = case.arguments(where, dtype, requires_grad=True)
        name = "reference" if backend == "exact" else backend
        pooled, weights = case.call(arguments, name, return_weights=True)
        assert not where.pads(weights.detach()).any(), "weights at pads"
        errors[backend] = float((where.gather(weights.detach()) - truth).abs().max())
        torch.autograd.backward([pooled, weights], [case.grad_out.to(dtype), upstream.to(dtype)])
        leaves = {"target": arguments["target"], "history": arguments["history"], "weight": arguments["weights"][0]}
        grads[backend] = {name: leaf.grad.nan_to_num() for name, leaf in leaves.items()}
    eps = torch.finfo(torch.float32).eps
    assert errors["triton"] <= 2 * errors["reference"] + 4 * eps * float(truth.abs().max())
    for name, exact in grads["exact"].items():
        ours, plain = (float((grads[b][name] - exact).abs().max()) for b in ("triton", "reference"))
        assert ours <= 5 * plain + 4 * eps * float(exact.abs().max()), name


def test_strided_history(generator: torch.Generator) -> None:
    """Rows apart, users apart, and a last dimension that is not contiguous."""
    case = make(replace(BASE, layout="lengths", width=12), generator)
    where = case.place(generator)
    expected = case.run("triton", where)

    def view(kind: str) -> Any:
        def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dim() < 2 or not tensor.is_floating_point():
                return tensor
            if kind == "wide rows":
                wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 5), torch.nan, dtype=tensor.dtype)
                wide[..., 2:-3] = tensor
                return wide[..., 2:-3]
            return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)

        return change

    for kind in ("wide rows", "columns"):
        got = case.run("triton", where, view=view(kind))
        assert all(torch.equal(got[name], expected[name]) for name in expected), kind


def test_offsets_beyond_32_bits() -> None:
    """Two users whose histories lie 2³¹ elements apart; memory that nobody touches costs nothing."""
    apart = 2**31 + 16
    room = torch.empty(apart + 200, dtype=torch.float16)
    history = room.as_strided((2, 3, 16), (apart, 16, 1))
    history.copy_(torch.randn(2, 3, 16))
    target, weights = torch.randn(2, 16).half(), [torch.randn(8, 64).half(), torch.randn(1, 8).half()]
    biases = [torch.zeros(8).half(), torch.zeros(1).half()]
    near = mixpol_kernels.target_attention(target, history.clone(), weights, biases, backend="triton")
    far = mixpol_kernels.target_attention(target, history, weights, biases, backend="triton")
    assert torch.equal(far, near)
    assert far[1].any()


def test_same_bits_every_time_and_alone(generator: torch.Generator) -> None:
    """A user's output and gradients do not depend on the batch or the layout; nothing depends on the run."""
    case = make(replace(BASE, counts=(35, 0, 7, 32, 18, 3), normalize="softmax", candidates=2), generator)
    where = case.place(generator)
    expected = case.run("triton", where)
    again = case.run("triton", where)
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    ends = torch.tensor(case.counts).cumsum(0).tolist()
    for user in (0, 3, 4):
        for layout in ("jagged", "lengths"):
            alone = case.take([user])
            got = alone.run("triton", alone.place(generator, layout))
            assert torch.equal(got["out"][0], expected["out"][user])
            assert torch.equal(got["grad target"][0], expected["grad target"][user])
            rows = slice(ends[user] - case.counts[user], ends[user])
            assert torch.equal(got["grad tokens"], expected["grad tokens"][rows])


def test_without_gradient_the_output_is_the_same(generator: torch.Generator) -> None:
    case = make(replace(BASE, normalize="softmax"), generator)
    where = case.place(generator)
    with_grad = case.call(case.arguments(where, requires_grad=True), "triton").detach()
    with torch.no_grad():
        assert torch.equal(case.call(case.arguments(where), "triton"), with_grad)


def test_saves_only_the_weights(generator: torch.Generator) -> None:
    """4 bytes a token and candidate, of the 12 that the contract allows."""
    case = make(replace(BASE, candidates=2), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    given = {
        t.data_ptr() for v in arguments.values() for t in (v if isinstance(v, list) else [v]) if torch.is_tensor(t)
    }
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += 0 if tensor.data_ptr() in given else tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        case.call(arguments, "triton")
    assert kept == 4 * 2 * sum(COUNTS)
    assert explain(mixpol_kernels.target_attention, **arguments, backend="triton").saved_bytes == kept


def test_nan_and_infinity_propagate(generator: torch.Generator) -> None:
    """As in the reference: into the user that has them and no other.

    Infinity at least into its own column: a score of minus infinity has the weight 0 under a softmax.
    """
    for value in (torch.nan, torch.inf):
        case = make(replace(BASE, normalize="softmax"), generator)
        case.floats["tokens"][3, 2] = value
        where = case.place(generator)
        ours, plain = (case.call(case.arguments(where), b) for b in ("triton", "reference"))
        column = slice(2, 3) if value == torch.inf else slice(None)
        assert not ours[0, column].isfinite().any()
        assert not plain[0, column].isfinite().any()
        assert ours[1:].isfinite().all()


def test_pads_are_not_read(generator: torch.Generator) -> None:
    """Pads hold NaN in every test of padded layouts; here the gradient of the output does not reach them either."""
    case = make(replace(BASE, layout="mask_holes", normalize="softmax"), generator)
    where = case.place(generator)
    results = case.run("triton", where)  # raises where something other than zeros is at the pads
    assert all(value.isfinite().all() for value in results.values())


@pytest.mark.parametrize("activation", ["relu", "dice"])
def test_opcheck(activation: str, generator: torch.Generator) -> None:
    """Schemas, fakes and the dispatcher's rules, of both directions."""
    case = make(replace(BASE, activation=activation, normalize="softmax", counts=(3, 0, 5)), generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    with Recorder() as recorder:
        case.call(arguments, "triton").backward(case.grad_out)
    calls = [call for call in recorder.calls if call[0] in (FORWARD.triton, BACKWARD.triton)]
    assert [call[0] for call in calls] == [FORWARD.triton, BACKWARD.triton]
    for op, args in calls:
        torch.library.opcheck(op, args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool, generator: torch.Generator) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(mixpol_kernels.target_attention, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for counts in ((5, 0, 9), (2, 18, 1, 4)):
        case = make(replace(BASE, counts=counts, activation="prelu"), generator)
        where = case.place(generator)
        arguments = case.arguments(where, requires_grad=True)
        out = compiled(**arguments, backend="triton")
        out.backward(case.grad_out)
        expected = case.run("triton", where)
        assert torch.equal(out, expected["out"])
        assert torch.equal(arguments["history"].grad, expected["grad tokens"])


def test_shapes_on_a_gpu_that_is_not_here() -> None:
    """Under FakeTensorMode with CUDA tensors: "auto" takes the ops, which have a Triton kernel under the CUDA key."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    forward, backward = (FORWARD.triton, BACKWARD.triton)
    with FakeTensorMode():
        target, history = torch.empty(4, 3, 16, device="cuda"), torch.empty(4, 9, 16, device="cuda")
        weights = [torch.empty(8, 64, device="cuda"), torch.empty(1, 8, device="cuda")]
        biases = [torch.empty(8, device="cuda"), torch.empty(1, device="cuda")]
        found = explain(mixpol_kernels.target_attention, target, history, weights, biases)
        assert (found.backend, found.reason) == ("triton", "the first that can take the inputs")
        assert found.saved_bytes == 4 * 4 * 9 * 3
        pooled, attention = mixpol_kernels.target_attention(target, history, weights, biases, return_weights=True)
        assert (pooled.shape, attention.shape) == ((4, 3, 16), (4, 9, 3))
        assert pooled.device.type == attention.device.type == "cuda"
        none = torch.empty(0, device="cuda", dtype=torch.uint8)
        grads = backward(
            pooled, None, attention, none, target, history, None, None, None, weights, biases, [], 0, 0, 0.0, None
        )  # fmt: skip
        assert [g.shape for g in (*grads[:2], *grads[2])] == [t.shape for t in (target, history, *weights, *biases)]
    for op in (forward, backward):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CUDA")


def test_refusals(generator: torch.Generator) -> None:
    """Explicit "triton" raises, and says what it takes."""
    case = make(BASE, generator)
    where = case.place(generator)
    with pytest.raises(ValueError, match=r"it takes float32, bfloat16, float16 and got torch\.float64"):
        case.call(case.arguments(where, torch.float64), "triton")
    arguments = case.arguments(where)
    with pytest.raises(RuntimeError, match=r"torch\.vmap"):
        torch.vmap(lambda t: case.call({**arguments, "target": t}, "triton"))(arguments["target"][None])
    assert explain(mixpol_kernels.target_attention, **arguments).backend == "cpu", "auto on the CPU is not interpreted"


def test_values_are_checked_where_that_is_free(generator: torch.Generator) -> None:
    case = make(BASE, generator)
    for change, pattern in (([0, 35, 30, 42, 74], "offsets"), ([0, 35, 35, 42, 75], "expected 0 to 74")):
        arguments = case.arguments(case.place(generator)) | {"offsets": torch.tensor(change)}
        with pytest.raises(RuntimeError, match=pattern):
            case.call(arguments, "triton")


def test_double_backward_is_refused(generator: torch.Generator) -> None:
    case = make(BASE, generator)
    arguments = case.arguments(case.place(generator), requires_grad=True)
    out = case.call(arguments, "triton")
    (grad,) = torch.autograd.grad(out.square().sum(), arguments["target"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_environment_variable(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXPOL_BACKEND", "triton")
    case = make(BASE, generator)
    arguments = case.arguments(case.place(generator))
    assert explain(mixpol_kernels.target_attention, **arguments).backend == "triton"
    assert "triton" in backends.BACKENDS


@pytest.mark.parametrize("draw", range(4))
def test_fresh_options(draw: int, generator: torch.Generator, source: random.Random) -> None:
    config = Config(
        op=OP,
        layout=source.choice(LAYOUTS),
        batch=source.randint(1, 6),
        length=source.randint(1, 40),
        width=source.choice([4, 7, 16, 33]),
        hidden=source.choice([(36,), (20, 6), (17, 9, 3)]),
        activation=source.choice(TAKEN),
        normalize=source.choice(["none", "softmax", "sigmoid"]),
        candidates=source.choice([None, 1, 3]),
        scale=source.choice([1.0, 0.3]),
    )
    check(make(config, generator), generator)
