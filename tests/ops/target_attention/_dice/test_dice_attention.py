"""`dice_attention` against float64, its layouts, its bits, its refusals and its registration."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from poison import poisoned
from torch import Tensor

import mixpol_kernels as mk
from mixpol_kernels.ops.target_attention._dice.api import Attended, dice_attention
from mixpol_kernels.ops.target_attention._dice.autograd import FORWARD
from mixpol_kernels.ops.target_attention._statistics.api import unit_statistics

DRAWS = 4  # one draw of a few sums that cancel says little of the error


def inputs(
    generator: torch.Generator,
    counts: tuple[int, ...],
    width: int = 10,
    units: int = 13,
    candidates: int | None = None,
    affine: bool = True,
) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    batch = len(counts)
    given = {
        "target": normal(batch, width) if candidates is None else normal(batch, candidates, width),
        "history": normal(sum(counts), width),
        "hidden": normal(units, 4 * width) / (2 * width**0.5),
        "output": normal(1, units) / units**0.5,
        "hidden_bias": normal(units),
        "output_bias": normal(1),
        "alpha": normal(units),
    }
    if affine:
        given |= {"norm_weight": normal(units), "norm_bias": normal(units)}
    return given


def call(given: dict[str, Tensor], **options: Any) -> Attended:
    return dice_attention(
        given["target"], given["history"], [given["hidden"], given["output"]],
        [given["hidden_bias"], given["output_bias"]], given["alpha"], norm_weight=given.get("norm_weight"),
        norm_bias=given.get("norm_bias"), **options,
    )  # fmt: skip


def leaves(given: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in given.items()}


def offsets_of(counts: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


@pytest.mark.parametrize("normalize", ["none", "softmax", "sigmoid"])
@pytest.mark.parametrize("pad_to", [None, 110])
@pytest.mark.parametrize(
    ("width", "units", "candidates", "affine"),
    [(10, 13, None, True), (10, 7, None, True), (64, 64, None, False), (5, 36, 3, True)],
)
def test_values_and_gradients(
    width: int, units: int, candidates: int | None, affine: bool, pad_to: int | None, normalize: str,
    generator: torch.Generator,
) -> None:  # fmt: skip
    counts = (3, 0, 110, 1, 48)  # one chunk, several chunks, none
    errors: dict[str, list[Tensor]] = {"plain": [], "cpu": []}
    for _ in range(DRAWS):
        given = inputs(generator, counts, width, units, candidates, affine)
        grads = [torch.randn(given["target"].shape, generator=generator)]
        found: dict[str, list[Tensor]] = {}
        for name, backend, dtype in (
            ("exact", "reference", torch.float64),
            ("plain", "reference", torch.float32),
            ("cpu", "cpu", torch.float32),
        ):
            leaf = leaves(given, dtype)
            got = call(
                leaf, pad_to=pad_to, normalize=normalize, scale=0.7, offsets=offsets_of(counts), return_weights=True,
                backend=backend,
            )  # fmt: skip
            assert got.attention is not None
            if len(grads) == 1:
                grads.append(torch.randn(got.attention.shape, generator=generator))
            torch.autograd.backward([got.pooled, got.attention], [g.to(dtype) for g in grads])
            assert int(got.rows) == (5 * 110 if pad_to else 162) * (candidates or 1)
            # The output bias has one number, a sum that may cancel to nothing (and does under a softmax): it is held
            # to the size of the other bias's gradient.
            grads_of = {key: t.grad for key, t in leaf.items()}
            grads_of["hidden_bias"] = torch.cat([grads_of["hidden_bias"], grads_of.pop("output_bias")])
            results = [got.pooled, got.attention, got.mean, got.variance]
            found[name] = [*(t.detach() for t in results), *grads_of.values()]
        for name in errors:
            pairs = zip(found[name], found["exact"], strict=True)
            errors[name].append(torch.stack([(got - want).abs().max() / want.abs().max() for got, want in pairs]))
    plain, cpu = (torch.stack(each).mean(0) for each in errors.values())
    assert (cpu <= 5 * plain + 16 * torch.finfo(torch.float32).eps).all(), f"{cpu} against {plain} of plain PyTorch"


def test_is_statistics_and_attention(generator: torch.Generator) -> None:
    """The two ops in a row, that any number of layers goes through, give the same numbers and gradients."""
    counts = (30, 4)
    given = inputs(generator, counts)
    one, two = leaves(given, torch.float32), leaves(given, torch.float32)
    pooled = call(one, eps=1e-3, offsets=offsets_of(counts), backend="cpu").pooled
    statistics = unit_statistics(
        two["target"], two["history"], [two["hidden"]], [two["hidden_bias"]], offsets=offsets_of(counts), backend="cpu"
    )
    scale = two["norm_weight"] / (statistics.variance + 1e-3).sqrt()
    slopes = torch.stack([two["alpha"], scale, two["norm_bias"] - statistics.mean * scale])
    want = mk.target_attention(
        two["target"], two["history"], [two["hidden"], two["output"]], [two["hidden_bias"], two["output_bias"]],
        activation="dice", slopes=[slopes], offsets=offsets_of(counts), backend="cpu",
    )  # fmt: skip
    assert isinstance(want, Tensor)
    torch.testing.assert_close(pooled, want)
    pooled.square().sum().backward()
    want.square().sum().backward()
    for name in given:
        want_grad = two[name].grad
        size = max(1.0, float(want_grad.abs().max()))  # sums that cancel keep the rounding of their largest terms
        torch.testing.assert_close(one[name].grad, want_grad, rtol=1e-4, atol=1e-4 * size, msg=name)


@pytest.mark.parametrize("units", [7, 13])  # narrower than the tokens and wider
@pytest.mark.parametrize("layout", ["lengths", "mask"])
def test_layouts_agree(layout: str, units: int, generator: torch.Generator) -> None:
    counts = (3, 0, 60)
    given = inputs(generator, counts, units=units)
    history, keep = torch.full((3, 60, 10), torch.nan), torch.zeros(3, 60, dtype=torch.bool)
    for b, n in enumerate(counts):
        history[b, :n] = given["history"][sum(counts[:b]) :][:n]
        keep[b, :n] = True
    where = {"lengths": torch.tensor(counts)} if layout == "lengths" else {"mask": keep}
    jagged, padded = leaves(given, torch.float32), leaves({**given, "history": history}, torch.float32)
    a = call(jagged, pad_to=60, offsets=offsets_of(counts), backend="cpu")
    b = call(padded, pad_to=60, **where, backend="cpu")
    assert all(torch.equal(x, y) for x, y in zip(a[2:], b[2:], strict=True))
    assert torch.equal(a.pooled, b.pooled)
    a.pooled.square().sum().backward()
    b.pooled.square().sum().backward()
    grad = padded["history"].grad
    assert grad is not None
    assert not grad[~keep].any()
    grads = {name: tensor.grad for name, tensor in padded.items()} | {"history": grad[keep]}
    assert all(torch.equal(jagged[name].grad, grads[name]) for name in given)  # type: ignore[arg-type]


@pytest.mark.parametrize("units", [7, 13])
def test_same_bits_with_any_number_of_threads(units: int, generator: torch.Generator) -> None:
    counts = tuple(int(n) for n in torch.randint(0, 90, (200,), generator=generator))
    given, found = inputs(generator, counts, units=units), []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        leaf = leaves(given, torch.float32)
        got = call(leaf, normalize="softmax", offsets=offsets_of(counts), backend="cpu")
        got.pooled.square().sum().backward()
        found.append([got.pooled, got.mean, got.variance, *(t.grad for t in leaf.values())])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("units", [7, 13])  # narrower than the tokens: pre-activations wait in the gradient's memory
@pytest.mark.parametrize("candidates", [None, 2])
def test_what_memory_held_does_not_show(candidates: int | None, units: int, generator: torch.Generator) -> None:
    counts = (3, 0, 60, 48)
    given, found = inputs(generator, counts, units=units, candidates=candidates), []
    history = torch.full((4, 64, 10), torch.nan)
    for b, n in enumerate(counts):
        history[b, :n] = given["history"][sum(counts[:b]) :][:n]
    for memory in (nullcontext, poisoned):
        leaf = leaves({**given, "history": history}, torch.float32)
        with memory():
            pooled = call(leaf, pad_to=64, lengths=torch.tensor(counts), backend="cpu").pooled
            pooled.square().sum().backward()
        found.append([pooled, *(t.grad for t in leaf.values())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("pad_to", [None, 4])
def test_empty_histories_give_zeros(pad_to: int | None, backend: str, generator: torch.Generator) -> None:
    leaf = leaves(inputs(generator, (0, 0)), torch.float32)
    got = call(leaf, pad_to=pad_to, offsets=offsets_of((0, 0)), backend=backend)
    got.pooled.sum().backward()
    assert not got.pooled.any()
    assert all(t.grad is None or not t.grad.any() for t in leaf.values())


def test_strided_history(generator: torch.Generator) -> None:
    given = inputs(generator, (7, 5))
    whole = torch.randn(12, 20, generator=generator)
    whole[:, 3:13] = given["history"]
    a = call(given, offsets=offsets_of((7, 5)), backend="cpu").pooled
    b = call({**given, "history": whole[:, 3:13]}, offsets=offsets_of((7, 5)), backend="cpu").pooled
    assert torch.equal(a, b)


def test_keeps_four_bytes_a_token(generator: torch.Generator) -> None:
    counts = (400, 600)
    leaf = leaves(inputs(generator, counts), torch.float32)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    offsets = offsets_of(counts)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(leaf, offsets=offsets, backend="cpu")
    given = {t.untyped_storage().data_ptr() for t in (*leaf.values(), offsets)}
    beyond = sum(size for pointer, size in kept.items() if pointer not in given)
    assert beyond == 4 * sum(counts) + 5 * 4 * 13  # weights; mean, variance, alpha, scale and shift
    where = mk.explain(dice_attention, leaf["target"], leaf["history"], [leaf["hidden"], leaf["output"]],
                       [leaf["hidden_bias"], leaf["output_bias"]], leaf["alpha"], offsets=offsets)  # fmt: skip
    assert where.saved_bytes == beyond


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_bad_arguments(backend: str, generator: torch.Generator) -> None:
    good, offsets = inputs(generator, (2, 3)), offsets_of((2, 3))

    def bad(**changes: Any) -> Any:
        options = {k: changes.pop(k) for k in ("eps", "pad_to", "normalize", "offsets") if k in changes}
        return call({**good, **changes}, **{"offsets": offsets, "backend": backend, **options})

    with pytest.raises(RuntimeError, match=r"pad_to is 2 and user 1 has\s+3 tokens"):
        bad(pad_to=2)
    with pytest.raises(ValueError, match="pad_to was -1"):
        bad(pad_to=-1)
    with pytest.raises(ValueError, match=r"eps was -1\.0"):
        bad(eps=-1.0)
    with pytest.raises(ValueError, match="eps was nan"):
        bad(eps=float("nan"))
    with pytest.raises(ValueError, match=r"alpha has shape \[3\]"):
        bad(alpha=torch.zeros(3))
    with pytest.raises(ValueError, match=r"norm_bias has shape \[13, 1\]"):
        bad(norm_bias=torch.zeros(13, 1))
    with pytest.raises(TypeError, match="norm_weight"):
        bad(norm_weight=torch.zeros(13, dtype=torch.float64))
    with pytest.raises(ValueError, match="normalize was 'l2'"):
        bad(normalize="l2")
    with pytest.raises(ValueError, match="weights has 3 entries"):
        dice_attention(
            good["target"], good["history"], [good["hidden"], torch.zeros(13, 13), good["output"]],
            [good["hidden_bias"]] * 2 + [good["output_bias"]], good["alpha"], offsets=offsets, backend=backend,
        )  # fmt: skip
    with pytest.raises(RuntimeError, match="offsets run from 0 to 4"):
        bad(offsets=torch.tensor([0, 2, 4]))


def test_gradcheck(generator: torch.Generator) -> None:
    leaf = leaves(inputs(generator, (3, 2), 3, 4), torch.float64)
    names = list(leaf)

    def run(*values: Tensor) -> Any:
        got = call(dict(zip(names, values, strict=True)), pad_to=4, normalize="sigmoid", eps=1e-3,
                   offsets=offsets_of((3, 2)), return_weights=True)  # fmt: skip
        return got.pooled, got.attention

    assert torch.autograd.gradcheck(run, tuple(leaf.values()))


def test_registration(generator: torch.Generator) -> None:
    given = inputs(generator, (2, 3))
    arguments = (
        given["target"], given["history"], offsets_of((2, 3)), None, None, [given["hidden"], given["output"]],
        [given["hidden_bias"], given["output_bias"]], given["alpha"], given["norm_weight"], None, 1e-9, 0, 5, True,
    )  # fmt: skip
    torch.library.opcheck(FORWARD.compiled, arguments)
    pooled, attention, mean, variance, slopes = FORWARD.compiled(*arguments)
    torch.library.opcheck(
        torch.ops.mixpol.dice_attention_bwd.default,
        (pooled, None, attention, mean, variance, slopes, *arguments[:7], 1e-9, 0, 5),
    )


def test_double_backward_is_refused(generator: torch.Generator) -> None:
    leaf = leaves(inputs(generator, (2, 3)), torch.float32)
    pooled = call(leaf, offsets=offsets_of((2, 3)), backend="cpu").pooled
    (grad,) = torch.autograd.grad(pooled.square().sum(), leaf["history"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_compiles_whole_with_dynamic_shapes(generator: torch.Generator) -> None:
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for counts in ((2, 3), (4, 0, 7)):
        leaf = leaves(inputs(generator, counts), torch.float32)
        got = compiled(leaf, pad_to=9, offsets=offsets_of(counts), backend="cpu")
        want = call(leaf, pad_to=9, offsets=offsets_of(counts), backend="cpu")
        assert torch.equal(got.pooled, want.pooled)
        got.pooled.sum().backward()
        assert all(t.grad is not None for t in leaf.values())
