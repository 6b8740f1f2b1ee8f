"""`python raw_calls.py SEED FIRST COUNT`: malformed calls of every registered op, in a process that may die of them.

The arguments of calls that public functions make, one to three of them spoilt. Before each call a line says what it
is, so that the last line names the call that ended the process. What a call may do is run, or raise a RuntimeError,
ValueError, TypeError or MemoryError with words of its own.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import dot_cases
import statistics_cases
import torch
from torch import Tensor

import mixpol_kernels
from mixpol_kernels.ops.target_attention._dice.api import dice_attention
from mixpol_kernels.testing.inputs import Config, make
from mixpol_kernels.testing.recorder import Recorder

Call = tuple[Any, list[Any]]
COUNTS = (3, 0, 5)
INTEGERS = (-1, 0, 1, 2, 7, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
NUMBERS = (float("nan"), float("inf"), -1.0, 0.0, 0.5, 1.0, 1e308)
EXPECTED = (RuntimeError, ValueError, TypeError, MemoryError)
DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.uint8, torch.int8, torch.int32, torch.int64),
)


def valid_calls() -> list[Call]:
    """Calls of every op, forward and backward, in several layouts and forms."""
    generator = torch.Generator().manual_seed(0)
    configs: list[Any] = [
        Config(op="polarity_embedding", n_extra=3, layout="lengths"),
        Config(op="polarity_embedding", sparse=True, layout="mask_left"),
        Config(op="polarity_fusion", gate_inputs="full", n_extra=3),
        Config(op="polarity_fusion", fusion="bias", layout="mask_holes"),
        Config(op="target_attention"),
        Config(op="target_attention", hidden=(8, 5), activation="prelu", normalize="softmax", layout="lengths"),
        Config(op="target_attention", activation="dice_row", candidates=3, dropout=0.3, layout="mask_left"),
        Config(layout="lengths"),
        Config(gate_inputs="full", n_extra=3, candidates=2, activation="dice", normalize="sigmoid"),
    ]
    cases: list[Any] = [make(Config(**{**c.__dict__, "counts": COUNTS, "width": 8}), generator) for c in configs]
    for form in ({}, {"heads": 2, "candidates": 30}, {"attention": None, "heads": 2, "top_k": 2, "layout": "lengths"}):
        cases.append(dot_cases.make(dot_cases.Config(**{"counts": COUNTS, "width": 8, **form}), generator))
    cases.append(statistics_cases.make(statistics_cases.Config(counts=COUNTS, pads=2), generator))
    cases.append(statistics_cases.make(statistics_cases.Config(counts=COUNTS, layout="lengths"), generator))
    with Recorder() as recorder:
        for case in cases:
            where = case.place(generator)
            case.run("cpu", where)
            with torch.no_grad():
                case.call(case.arguments(where), "cpu")
        dice(generator)
        times, offsets = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([0, 1, 1, 4])
        mixpol_kernels.interleave(times, offsets, times, offsets, budget=4, negative_share=0.5, backend="cpu")
    return [(func, list(args)) for func, args in recorder.calls]


def dice(generator: torch.Generator) -> None:
    """Dice's attention, forward and backward, with and without pads."""
    for pad_to in (None, 6):
        shapes = (3, 8), (8, 8), (6, 32), (1, 6), (6,), (1,), (6,), (6,), (6,)
        t, h, w0, w1, b0, b1, *rest = (torch.randn(s, generator=generator, requires_grad=True) for s in shapes)
        alpha, gain, bias = rest
        found = dice_attention(
            t, h, [w0, w1], [b0, b1], alpha, norm_weight=gain, norm_bias=bias,
            offsets=torch.tensor([0, 3, 3, 8]), pad_to=pad_to, backend="cpu",
        )  # fmt: skip
        found.pooled.sum().backward()


def spoilt(tensor: Tensor, source: random.Random) -> Any:
    """Another tensor in its place, or something else."""
    dim = source.randrange(tensor.dim()) if tensor.dim() else 0
    size = tensor.shape[dim] if tensor.dim() else 1

    def resized(to: int) -> Tensor:
        if not tensor.dim():
            return tensor.new_zeros(to)
        index = torch.arange(to) % max(size, 1)
        return (
            tensor.index_select(dim, index)
            if size
            else tensor.new_zeros((*tensor.shape[:dim], to, *tensor.shape[dim + 1 :]))
        )

    def released() -> Tensor:
        copy = tensor.clone()
        copy.untyped_storage().resize_(source.choice((0, copy.untyped_storage().nbytes() // 2)))
        return copy

    def of_values() -> Tensor:
        values = NUMBERS if tensor.is_floating_point() or tensor.is_complex() else INTEGERS
        copy = tensor.clone()
        if copy.numel() and copy.dtype != torch.bool:
            limits = torch.iinfo(copy.dtype) if not (copy.is_floating_point() or copy.is_complex()) else None
            value = source.choice(values)
            value = value if limits is None else max(limits.min, min(limits.max, value))
            copy.view(-1)[source.randrange(copy.numel())] = value
        return copy

    def huge() -> Tensor:  # no memory behind it: no elements
        shape = list(tensor.shape) or [1]
        shape[source.randrange(len(shape))] = source.choice((2**24, 2**31, 2**40))
        shape[source.randrange(len(shape))] = 0
        return tensor.new_empty(shape)

    def stored_otherwise() -> Tensor:
        kind = source.choice(("sparse", "mkldnn", "quantized", "meta", "nested"))
        if kind == "sparse":
            return tensor.to_sparse()
        if kind == "mkldnn":
            return tensor.float().to_mkldnn()
        if kind == "quantized":
            return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)
        if kind == "nested":
            return torch.nested.nested_tensor([tensor, tensor])
        return tensor.to("meta")

    ways: list[Callable[[], Any]] = [
        lambda: tensor.new_empty(0),
        lambda: tensor.new_empty((0,) * source.randrange(5)) if source.random() < 0.8 else tensor.sum(),
        lambda: resized(0),
        lambda: resized(size + 1),
        lambda: resized(max(size - 1, 0)),
        lambda: resized(source.choice((1, 2, 3, 64, 65))),
        lambda: tensor.unsqueeze(source.randrange(tensor.dim() + 1)),
        lambda: tensor.squeeze(),
        lambda: tensor.flatten(),
        lambda: tensor.transpose(0, -1) if tensor.dim() else tensor,
        lambda: tensor.to(source.choice(DTYPES)),
        lambda: tensor[:1].expand(tensor.shape) if size and tensor.dim() else tensor,
        lambda: torch.stack([tensor, tensor], -1)[..., 0],
        of_values,
        of_values,
        huge,
        released,
        stored_otherwise,
        lambda: None,
    ]  # fmt: skip
    return source.choice(ways)()


def spoil(value: Any, source: random.Random) -> Any:
    """Another value of about the same kind."""
    if isinstance(value, Tensor):
        return spoilt(value, source)
    if isinstance(value, list):
        way = source.randrange(5)
        if way == 0 or not value:
            return source.choice(([], [torch.randn(2)], None))
        if way == 1:
            return value[:-1]
        if way == 2:
            return [*value, value[source.randrange(len(value))]]
        at = source.randrange(len(value)) if way == 3 else None
        found = [spoil(v, source) if at in (i, None) else v for i, v in enumerate(value)]
        # torch refuses what is no tensor, with a print of the others, which may hold no memory.
        return [v if new is None else new for v, new in zip(value, found, strict=True)]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return source.choice(INTEGERS)
    if isinstance(value, float):
        return source.choice(NUMBERS)
    return source.choice((torch.randn(3), torch.tensor([1, 2]), torch.tensor([0, 3, 3, 8]), torch.ones(3, 5).bool(), 1))


def words(value: Any) -> str:
    """An argument in a few letters."""
    if isinstance(value, list):
        return f"[{', '.join(map(words, value))}]"
    if not isinstance(value, Tensor):
        return repr(value)
    if value.is_nested or value.layout != torch.strided:
        return f"{value.layout}"
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def main() -> None:
    """Makes the calls; the last line is the number of those that ran, and of those that were refused."""
    seed, first, count = map(int, sys.argv[1:4])
    torch.set_num_threads(1)
    calls = valid_calls()
    ran = refused = 0
    for i in range(first, first + count):
        source = random.Random(f"{seed} {i}")
        func, args = source.choice(calls)
        args = list(args)
        spoilt_at = source.sample(range(len(args)), source.choice((1, 1, 2, 3)))
        try:
            for at in spoilt_at:
                args[at] = spoil(args[at], source)
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue  # torch itself does not make this one
        names = [a.name for a in func._schema.arguments]
        print(f"{i}: {func.name()}: {', '.join(f'{names[at]}={words(args[at])}' for at in spoilt_at)}", flush=True)
        try:
            func(*args)
            ran += 1
        except Exception as error:
            on_meta = any(isinstance(t, Tensor) and t.is_meta for t in torch.utils._pytree.tree_leaves(args))
            if not (on_meta or isinstance(error, EXPECTED)):  # shapes alone are worked out in Python
                raise
            refused += 1
            text = str(error)
            if not on_meta and ("API call failed" in text or "Could not run" in text):
                print(f"no words of its own: {text}", flush=True)
                sys.exit(3)
    print(f"{ran} ran, {refused} refused", flush=True)


if __name__ == "__main__":
    main()
