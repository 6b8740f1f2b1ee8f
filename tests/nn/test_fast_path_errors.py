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

from mixpol_kernels.history import History
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


BAD_SHAPES = {
    "transposed polarity": lambda a: {"polarity": a["polarity"].T},
    "flat polarity": lambda a: {"polarity": a["polarity"].flatten()},
    "polarity with a last dimension": lambda a: {"polarity": a["polarity"][..., None]},
    "transposed extra ids": lambda a: {"extra_ids": a["extra_ids"].T},
    "complex mask": lambda a: {"mask": torch.ones(USERS, LENGTH, dtype=torch.complex64)},
    "lengths in a list": lambda a: {"lengths": [1, 2, 3]},
    "mask in a list": lambda a: {"mask": [[1] * LENGTH] * USERS},
    "a history": lambda a: {"item_ids": History(a["item_ids"])},
}


@pytest.mark.parametrize("change", BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_refused_as_with_gradients(change: Any, generator: torch.Generator) -> None:
    layer = MixedPolarityAttention(ITEMS, WIDTH, [6], num_extra=3)
    names = {"item_ids": ITEMS, "polarity": 2, "extra_ids": 3}
    ids = {name: torch.randint(most, (USERS, LENGTH), generator=generator) for name, most in names.items()}
    call = {"target": torch.randn(USERS, WIDTH, generator=generator), **ids}
    call |= change(call)
    with pytest.raises((TypeError, ValueError)) as with_gradients:
        layer(**call)
    with torch.no_grad(), pytest.raises(type(with_gradients.value)) as without:
        layer(**call)
    assert str(without.value) == str(with_gradients.value)


def test_reference_without_values(generator: torch.Generator) -> None:
    """On the meta device, and per example by torch.func."""
    layer, (target, ids, polarity) = problem("MixedPolarityAttention", generator)
    layer = MixedPolarityAttention(ITEMS, WIDTH, [6], backend="reference")
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], *example: Tensor) -> Tensor:
        inputs = tuple(tensor[None] for tensor in example[:3])
        lengths = example[3][None]
        return torch.func.functional_call(layer, parameters, inputs, {"lengths": lengths}).square().sum()

    lengths = torch.tensor([LENGTH, 0, 2])
    each = torch.vmap(torch.func.grad(loss), (None, 0, 0, 0, 0))(parameters, target, ids, polarity, lengths)
    want = torch.func.grad(loss)(parameters, target[2], ids[2], polarity[2], lengths[2])
    for name, gradient in each.items():
        torch.testing.assert_close(gradient[2], want[name])
    out = layer.to("meta")(target.to("meta"), ids.to("meta"), polarity.to("meta"), lengths=lengths.to("meta"))
    assert out.shape == (USERS, WIDTH)
