"""What goes wrong on the fast path: refused inputs in the words of the long way, everything else as it was raised."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from mixpol_kernels.nn import MixedPolarityAttention, MultiHeadTargetAttention, TargetAttention, fast_path

USERS, LENGTH, WIDTH, ITEMS = 3, 5, 4, 9
LAYERS = ["TargetAttention", "Dice", "MultiHeadTargetAttention", "MixedPolarityAttention"]
every_layer = pytest.mark.parametrize("name", LAYERS)


def problem(name: str, generator: torch.Generator) -> tuple[Any, tuple[Tensor, ...]]:
    target, history = (
        torch.randn(USERS, WIDTH, generator=generator),
        torch.randn(USERS, LENGTH, WIDTH, generator=generator),
    )
    if name == "MultiHeadTargetAttention":
        return MultiHeadTargetAttention(WIDTH), (target, history)
    if name == "MixedPolarityAttention":
        ids, polarity = (torch.randint(n, (USERS, LENGTH), generator=generator) for n in (ITEMS, 2))
        return MixedPolarityAttention(ITEMS, WIDTH, [6]), (target, ids, polarity)
    return TargetAttention(WIDTH, [6], "dice" if name == "Dice" else "relu").eval(), (target, history)


class Failing:
    """In place of an op: counts calls and raises."""

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def __call__(self, op: Any, *inputs: Any) -> Tensor:
        self.calls += 1
        raise self.error


@every_layer
@pytest.mark.parametrize(
    "error",
    [RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
     torch.OutOfMemoryError("out of memory"), RuntimeError("a fault of the kernel"), MemoryError(), ValueError("x"),
     TypeError("y")],
    ids=lambda e: type(e).__name__ + str(e)[:5],
)  # fmt: skip
def test_faults_are_raised(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    layer, inputs = problem(name, generator)
    failing = Failing(error)
    monkeypatch.setattr(fast_path, "pooled", failing)
    with torch.no_grad(), pytest.raises(type(error)) as raised:
        layer(*inputs)
    assert raised.value is error
    assert failing.calls == 1


@every_layer
def test_what_the_dispatcher_has_no_kernel_for_goes_the_long_way(
    name: str, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    layer, inputs = problem(name, generator)
    with torch.no_grad():
        want = layer(*inputs)
        monkeypatch.setattr(fast_path, "pooled", Failing(NotImplementedError("Could not run")))
        torch.testing.assert_close(layer(*inputs), want)


TRACED = """
import torch, warnings
warnings.simplefilter("ignore")
from test_fast_path_errors import LAYERS, problem
for name in LAYERS:
    layer, inputs = problem(name, torch.Generator().manual_seed(0))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            try:
                torch.jit.trace(lambda *x: layer(*x), inputs)
            except RuntimeError as error:
                print(name, str(error)[:29])
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(layer, inputs)(*inputs), layer(*inputs))
"""


def test_traced_in_a_closure() -> None:
    """PyTorch refuses parameters that are no inputs, for every layer; the process goes on."""
    found = subprocess.run(
        [sys.executable, "-c", TRACED], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    assert found.stdout.splitlines() == [f"{name} Cannot insert a Tensor that r" for name in LAYERS for _ in range(2)]
    assert found.returncode == 0, found.stderr


@every_layer
def test_subclasses_fakes_and_exports(name: str, generator: torch.Generator) -> None:
    class Tagged(torch.Tensor):
        pass

    layer, inputs = problem(name, generator)
    with torch.no_grad():
        want = layer(*inputs)
        got = layer(*(x.as_subclass(Tagged) for x in inputs))
        assert type(got) is Tagged
        assert torch.equal(got.as_subclass(Tensor), want)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert layer(*map(mode.from_tensor, inputs)).shape == want.shape
        for strict in (True, False):
            assert torch.equal(torch.export.export(layer, inputs, strict=strict).module()(*inputs), want)
        with pytest.raises(RuntimeError, match=r"no rules for torch\.vmap and the other transforms"):
            torch.vmap(lambda x: layer(x, *inputs[1:]))(inputs[0].expand(2, -1, -1))


def test_tangents_do_not_take_the_fast_path(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    """The long way knows what forward-mode differentiation needs."""
    layer, (target, history) = problem("TargetAttention", generator)
    failing = Failing(RuntimeError())
    monkeypatch.setattr(fast_path, "pooled", failing)
    with torch.no_grad(), forward_ad.dual_level(), contextlib.suppress(RuntimeError):
        layer(target, forward_ad.make_dual(history, history))
    assert failing.calls == 0
