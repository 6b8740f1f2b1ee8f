"""Contract 2: a named backend works or raises, "auto" says its reason once, `explain` says which and why."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mixpol_kernels
from mixpol_kernels import backend as backends
from mixpol_kernels import explain
from mixpol_kernels.testing.inputs import OPS, Case, Config, make


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIXPOL_BACKEND", raising=False)


@pytest.fixture
def case(request: pytest.FixtureRequest, generator: torch.Generator) -> Case:
    return make(Config(op=request.param), generator)


every_op = pytest.mark.parametrize("case", OPS, indirect=True)


def arguments(case: Case, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return case.arguments(case.place(generator), dtype)


def function(case: Case) -> Any:
    return getattr(mixpol_kernels, case.config.op)


@every_op
def test_auto_takes_the_compiled_kernels(case: Case, generator: torch.Generator) -> None:
    call = arguments(case, generator)
    assert torch.equal(case.call(call, "auto"), case.call(call, "cpu"))
    assert explain(function(case), **call).backend == "cpu"


@every_op
def test_auto_falls_back_and_says_so_once(
    case: Case,
    generator: torch.Generator,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "_said", set())
    call = arguments(case, generator, torch.float64)
    with caplog.at_level(logging.DEBUG, logger="mixpol_kernels"):
        for _ in range(3):
            assert torch.equal(case.call(call, "auto"), case.call(call, "reference"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert case.config.op in message
    assert "reference" in message
    assert "float64" in message
    with caplog.at_level(logging.DEBUG, logger="mixpol_kernels"):
        case.call(arguments(case, generator, torch.bfloat16), "auto")
    if case.config.has_unit:  # whose kernels store bfloat16
        assert len(caplog.records) == 1
    else:
        assert "bfloat16" in caplog.records[-1].getMessage()
        assert len(caplog.records) == 2


@every_op
def test_nothing_is_logged_when_the_kernels_run(
    case: Case, generator: torch.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="mixpol_kernels"):
        for name in ("auto", "cpu", "reference"):
            case.call(arguments(case, generator), name)
    assert not caplog.records


@every_op
def test_explain(case: Case, generator: torch.Generator) -> None:
    call, op = arguments(case, generator), function(case)
    found = explain(op, **call, backend="reference")
    assert (found.op, found.backend, found.reason) == (case.config.op, "reference", "asked for by name")
    assert found.saved_bytes is None
    found = explain(op, **call, backend="cpu")
    assert (found.backend, found.reason, found.rejected) == ("cpu", "asked for by name", {})
    assert found.saved_bytes is not None
    assert f"keeps {found.saved_bytes} bytes" in str(found)
    found = explain(op, **arguments(case, generator, torch.float64))
    assert found.backend == "reference"
    assert "float64" in found.rejected["cpu"]
    lines = str(found).splitlines()
    assert lines[0].startswith(f"{case.config.op}: reference (")
    assert lines[1].startswith("  not cpu: ")


@every_op
def test_explain_computes_nothing(case: Case, generator: torch.Generator) -> None:
    """Not even on inputs whose values are wrong; shapes are validated as in a call."""
    call = arguments(case, generator)
    call["offsets"][0] = 5
    for name in ("auto", "cpu", "reference"):
        assert explain(function(case), **call, backend=name).backend in ("cpu", "reference")
    call["lengths"] = torch.ones(2)
    with pytest.raises(ValueError, match="offsets and lengths"):
        explain(function(case), **call)
    # And the call after it is a real one again.
    with pytest.raises(RuntimeError, match="offsets"):
        case.call(arguments(case, generator) | {"offsets": call["offsets"]}, "auto")


@every_op
def test_explain_raises_what_a_call_would(case: Case, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="backend='cpu' was requested, but it takes float32"):
        explain(function(case), **arguments(case, generator, torch.float64), backend="cpu")


def test_explain_of_modules() -> None:
    target, history, ids = torch.randn(2, 8), torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.int64)
    nn = mixpol_kernels.nn
    calls: list[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]] = [
        (nn.TargetAttention(8), (target, history)),
        (nn.PolarityFusion(8), (target, history, ids)),
        (nn.PolarityEmbedding(5, 8), (ids, ids)),
        (nn.MixedPolarityAttention(5, 8), (target, ids, ids)),
    ]
    for module, inputs in calls:
        assert explain(module, *inputs).backend == "cpu"
        assert explain(module.double(), *[t.double() if t.is_floating_point() else t for t in inputs]).rejected


def test_explain_of_something_else() -> None:
    with pytest.raises(TypeError, match=r"function was .*expected an op or a module of mixpol_kernels"):
        explain(torch.nn.Linear(2, 2), torch.randn(1, 2))
    layer = mixpol_kernels.nn.TargetAttention(8, backend="cpu")
    assert layer(torch.randn(2, 8), torch.randn(2, 5, 8)).shape == (2, 8)


@every_op
def test_environment_variable(case: Case, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """MIXPOL_BACKEND replaces "auto", not a named backend; an unknown name in it is an error."""
    call = arguments(case, generator)
    monkeypatch.setenv("MIXPOL_BACKEND", "reference")
    assert explain(function(case), **call).backend == "reference"
    assert explain(function(case), **call, backend="cpu").backend == "cpu"
    monkeypatch.setenv("MIXPOL_BACKEND", "cpu")
    with pytest.raises(ValueError, match="float32"):
        case.call(arguments(case, generator, torch.float64), "auto")
    monkeypatch.setenv("MIXPOL_BACKEND", "gpu")
    with pytest.raises(ValueError, match="'gpu'"):
        case.call(call, "auto")
    monkeypatch.setenv("MIXPOL_BACKEND", "")
    assert explain(function(case), **call).backend == "cpu"


class Gpu:
    """Facts of a machine that is not here: CUDA tensors without memory, a library that counts as loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch
        self.built("")
        for op in ("target_attention", "polarity_fusion", "dot_target_attention"):
            monkeypatch.setattr(f"mixpol_kernels.ops.{op}.triton.support._served", self.served)
        unit = "mixpol_kernels.ops.target_attention.triton.support._known"
        monkeypatch.setattr(unit, lambda index: self.widths is not None)
        monkeypatch.setattr("mixpol_kernels.ops.triton.devices.architecture", lambda index: "sm_90")
        monkeypatch.setitem(backends._NOT_THERE, "triton", lambda like: "")
        self.widths: tuple[Any, ...] | None = (64,)

    def built(self, reason: str) -> None:
        """The compiled CUDA kernels: there, or why not."""
        self.patch.setattr(backends.library, "cuda_reason", reason)

    def served(self, *key: Any) -> tuple[Any, ...] | None:
        if self.widths is None or not isinstance(key[0], int):
            return self.widths
        return tuple((width, (64,) * key[0]) for width in self.widths)

    def explain(self, case: Case, generator: torch.Generator, grad: bool = False, **more: Any) -> Any:
        """Of the case's arguments as CUDA tensors."""
        call = arguments(case, generator, more.pop("dtype", torch.float32)) | more
        with FakeTensorMode():

            def moved(value: Any) -> Any:
                if isinstance(value, list):
                    return [moved(v) for v in value]
                if not torch.is_tensor(value):
                    return value
                made = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                return made.requires_grad_(grad and made.is_floating_point())

            return explain(function(case), **{name: moved(value) for name, value in call.items()})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


WITH_TRITON = ("polarity_fusion", "target_attention", "mixed_polarity_attention")


@pytest.mark.parametrize("case", WITH_TRITON, indirect=True)
def test_on_a_gpu(case: Case, gpu: Gpu, generator: torch.Generator) -> None:
    """Training takes Triton, inference the compiled forwards where they are, and what neither takes the reference."""
    found = gpu.explain(case, generator)
    assert (found.backend, found.rejected) == ("cuda", {})
    found = gpu.explain(case, generator, grad=True)
    assert found.backend == "triton"
    assert "has no backward" in found.rejected["cuda"]
    with torch.no_grad():
        assert gpu.explain(case, generator, grad=True).backend == "cuda"
    assert gpu.explain(case, generator, dtype=torch.bfloat16).backend == "triton"
    gpu.built("not built")
    found = gpu.explain(case, generator)
    assert (found.backend, list(found.rejected)) == ("triton", ["cuda"])
    assert found.rejected["cuda"].endswith("not there: not built")
    gpu.widths = ()
    found = gpu.explain(case, generator)
    unit = case.config.op == "target_attention"  # takes any size
    assert (found.backend, list(found.rejected)) == ("triton" if unit else "reference", ["cuda", "triton"][: 2 - unit])
    gpu.widths = None
    assert "compute capability 8.0" in gpu.explain(case, generator).rejected["triton"]


@pytest.mark.parametrize("case", WITH_TRITON, indirect=True)
def test_cuda_by_name(case: Case, gpu: Gpu, generator: torch.Generator) -> None:
    assert gpu.explain(case, generator, backend="cuda").reason == "asked for by name"
    assert gpu.explain(case, generator, grad=True, backend="triton").backend == "triton"
    for more, pattern in (
        ({"grad": True}, "it has no backward, and an input requires a gradient; use backend='triton'"),
        ({"dtype": torch.bfloat16}, "it takes float32 and got torch.bfloat16"),
        *([({"dropout": 0.5}, "it has no dropout")] if case.config.has_unit else []),
    ):
        with pytest.raises(ValueError, match=f"backend='cuda' was requested, but {pattern}"):
            gpu.explain(case, generator, backend="cuda", **more)
    with pytest.raises(ValueError, match=r"it takes tensors on a GPU and got them on cpu; move the inputs with \.cuda"):
        case.call(arguments(case, generator), "cuda")
    gpu.built("not built; that needs a CUDA build of torch")
    with pytest.raises(ValueError, match="the compiled CUDA kernels are not there: not built; that needs a CUDA build"):
        gpu.explain(case, generator, backend="cuda")


@pytest.mark.parametrize("capability", [(7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_older_gpus(capability: tuple[int, int], gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below 8.0 all fall back, in words; every other takes the files of the closest older one that has some."""
    from mixpol_kernels.ops.triton import devices

    monkeypatch.undo()
    monkeypatch.setattr(devices, "INTERPRETING", False)
    monkeypatch.setattr(backends.library, "cuda_reason", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    properties = SimpleNamespace(major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setitem(backends._NOT_THERE, "triton", lambda like: "")
    devices.architecture.cache_clear()
    with FakeTensorMode():
        times, at = torch.empty(9, device="cuda"), torch.empty(3, dtype=torch.int64, device="cuda")
        table = torch.empty(9, 4, device="cuda", requires_grad=True)
        row, history = torch.empty(2, 8, device="cuda"), torch.empty(2, 5, 8, device="cuda")
        calls = (
            (mixpol_kernels.interleave, (times, at, times, at), {}),
            (mixpol_kernels.polarity_embedding, (at, at, table, table), {}),
            (mixpol_kernels.dot_target_attention, (row, history), {"top_k": 2}),
        )
        found = [explain(op, *args, **more) for op, args, more in calls]
    devices.architecture.cache_clear()
    if capability < (8, 0):
        assert [f.backend for f in found] == ["reference"] * 3
        assert all("8.0 and newer" in why for f in found for why in f.rejected.values())
        assert "and got 7." in found[0].rejected["cuda"]
    else:
        assert [f.backend for f in found] == ["cuda", "cuda", "triton"]


def test_cuda_of_the_other_ops(gpu: Gpu, generator: torch.Generator) -> None:
    """A look-up has a compiled backward there; dot-product attention has no compiled CUDA kernels."""
    case = make(Config(op="polarity_embedding"), generator)
    assert gpu.explain(case, generator, grad=True).backend == "cuda"
    gpu.built("not built")
    assert gpu.explain(case, generator, grad=True).backend == "triton"
    with FakeTensorMode():
        target, history = torch.empty(2, 8, device="cuda"), torch.empty(2, 5, 8, device="cuda")
        assert explain(mixpol_kernels.dot_target_attention, target, history).backend == "triton"
        assert explain(mixpol_kernels.dot_target_attention, target, history, top_k=3).backend == "triton"
        with pytest.raises(ValueError, match="dot_target_attention has no compiled CUDA kernels yet"):
            mixpol_kernels.dot_target_attention(target, history, backend="cuda")


def test_both_reasons_are_logged(
    gpu: Gpu, generator: torch.Generator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_said", set())
    gpu.built("not built")
    like = torch.empty(2, 8, device="meta")
    monkeypatch.setitem(backends.ORDER, "meta", ("cuda", "triton"))
    monkeypatch.setitem(backends.KERNELS, "op", {"cuda": backends.Kernels(), "triton": backends.Kernels()})
    for name in ("cuda", "triton"):
        monkeypatch.setitem(backends._NOT_THERE, name, lambda _: "")
    with caplog.at_level(logging.DEBUG, logger="mixpol_kernels"):
        assert backends.choose("op", "auto", like, triton=lambda: "no", cuda=lambda: "none") == "reference"
        assert backends.choose("op", "auto", like, cuda=lambda: "none") == "triton"
        assert backends.choose("op", "auto", like) == "cuda"
    (record,) = caplog.records
    assert record.getMessage().endswith("the cuda backend cannot run: none; the triton backend cannot run: no")
