"""Whose polarity a layer reads: that of its thread or task, of the innermost context, in a backward of its own."""

from __future__ import annotations

import asyncio
import copy
import threading

import pytest
import torch
from parity import histories
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixpol_kernels import drop_in

pytest.importorskip("fuxictr")
from fuxictr.pytorch.layers import DIN_Attention

Problem = tuple[nn.Module, tuple[Tensor, ...], list[Tensor]]


@pytest.fixture
def problem(generator: torch.Generator) -> Problem:
    """A model, its inputs, and two polarities that give other outputs."""
    model = nn.Sequential()
    model.add_module("attention", DIN_Attention(8, [16]))
    drop_in.with_polarity(model)
    nn.init.normal_(model.attention.polarity_fusion.target_projection.weight)  # type: ignore[union-attr, arg-type]
    given = histories(generator)
    ids = torch.randint(2, given["mask"].shape, generator=generator)
    return model, (given["target"].requires_grad_(), given["history"], given["mask"]), [ids, 1 - ids]


def answer(problem: Problem, which: int) -> Tensor:
    model, inputs, ids = problem
    with drop_in.given_polarity(model, ids[which]):
        return model.attention(*inputs)  # type: ignore[operator]


def test_threads_read_their_own(problem: Problem) -> None:
    """Each waits inside of its context until the other is inside of its own."""
    want = [answer(problem, which).detach() for which in (0, 1)]
    assert not torch.allclose(want[0], want[1])
    model, inputs, ids = problem
    meeting, found = threading.Barrier(2), [None, None]

    def request(which: int) -> None:
        with torch.no_grad(), drop_in.given_polarity(model, ids[which]):
            meeting.wait(30)
            found[which] = model.attention(*inputs)  # type: ignore[operator]
            meeting.wait(30)

    threads = [threading.Thread(target=request, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, expected in zip(found, want, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_thread_without_a_context_has_no_polarity(problem: Problem) -> None:
    model, inputs, ids = problem
    errors: list[str] = []

    def request() -> None:
        try:
            model.attention(*inputs)  # type: ignore[operator]
        except RuntimeError as error:
            errors.append(str(error))

    with drop_in.given_polarity(model, ids[0]):
        thread = threading.Thread(target=request)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert "in the same thread" in errors[0]


def test_tasks_read_their_own(problem: Problem) -> None:
    want = [answer(problem, which).detach() for which in (0, 1)]
    model, inputs, ids = problem

    async def request(which: int) -> Tensor:
        with drop_in.given_polarity(model, ids[which]):
            await asyncio.sleep(0)
            return model.attention(*inputs)  # type: ignore[operator, no-any-return]

    async def both() -> list[Tensor]:
        return await asyncio.gather(request(0), request(1))

    for got, expected in zip(asyncio.run(both()), want, strict=True):
        torch.testing.assert_close(got, expected)


def test_the_inner_context_counts_and_an_error_ends_it(problem: Problem) -> None:
    model, inputs, ids = problem
    want = [answer(problem, which) for which in (0, 1)]
    with drop_in.given_polarity(model, ids[0]):
        with drop_in.given_polarity(model, ids[1]):
            assert torch.equal(model.attention(*inputs), want[1])  # type: ignore[operator]
        with pytest.raises(KeyError), drop_in.given_polarity(model, ids[1]):
            raise KeyError
        assert torch.equal(model.attention(*inputs), want[0])  # type: ignore[operator]
    with pytest.raises(RuntimeError, match="no polarity was given"):
        model.attention(*inputs)  # type: ignore[operator]


def test_two_models_and_a_copy_are_not_mixed_up(problem: Problem) -> None:
    model, inputs, ids = problem
    other = copy.deepcopy(model)
    with drop_in.given_polarity(model, ids[0]), drop_in.given_polarity(other, ids[1]):
        found = [m.attention(*inputs) for m in (model, other)]  # type: ignore[operator]
    assert torch.equal(found[0], answer(problem, 0))
    assert torch.equal(found[1], answer(problem, 1))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_with_the_context_inside(use_reentrant: bool, problem: Problem) -> None:
    """Two forwards under way: the backward of each finds its own polarity."""
    model, inputs, ids = problem
    want = [torch.autograd.grad(answer(problem, which).sum(), inputs[0])[0] for which in (0, 1)]

    def run(target: Tensor, history: Tensor, mask: Tensor, polarity: Tensor) -> Tensor:
        with drop_in.given_polarity(model, polarity):
            return model.attention(target, history, mask)  # type: ignore[operator, no-any-return]

    outs = [checkpoint(run, *inputs, polarity, use_reentrant=use_reentrant) for polarity in ids]
    for out, expected in zip(outs, want, strict=True):
        inputs[0].grad = None
        out.sum().backward()
        assert torch.equal(inputs[0].grad, expected)


@pytest.mark.parametrize("inside", [True, False], ids=["backward in a context", "backward behind it"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_with_the_context_outside_is_refused(use_reentrant: bool, inside: bool, problem: Problem) -> None:
    """Whose polarity the second run should read is not known: an error, not that of another batch."""
    model, inputs, ids = problem
    with drop_in.given_polarity(model, ids[0]):
        out = checkpoint(model.attention, *inputs, use_reentrant=use_reentrant)
    words = "open `with given_polarity.*inside of the function that is checkpointed"
    if inside:
        with drop_in.given_polarity(model, ids[1]), pytest.raises(RuntimeError, match=words):
            out.sum().backward()
    else:
        with pytest.raises(RuntimeError, match=words):
            out.sum().backward()


def test_compiled(problem: Problem) -> None:
    """The graph asks in each call: two polarities, two threads, one compilation."""
    model, inputs, ids = problem
    want = [answer(problem, which).detach() for which in (0, 1)]
    compiled = torch.compile(model.attention, fullgraph=True, backend="aot_eager")
    found: list[Tensor | None] = [None, None, None]

    def request(at: int, which: int) -> None:
        with torch.no_grad(), drop_in.given_polarity(model, ids[which]):
            found[at] = compiled(*inputs)

    request(0, 0)
    request(1, 1)
    thread = threading.Thread(target=request, args=(2, 1))
    thread.start()
    thread.join()
    for got, expected in zip(found, (want[0], want[1], want[1]), strict=True):
        torch.testing.assert_close(got, expected)
    with pytest.raises(RuntimeError, match="no polarity was given"):
        compiled(*inputs)
