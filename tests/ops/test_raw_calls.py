"""Registered ops called past the public functions: any argument, and none of them ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from raw_calls import valid_calls
from torch import Tensor

from mixpol_kernels.library import NAMESPACE, library

pytestmark = pytest.mark.skipif(not library.loaded, reason="needs the compiled library")
ops = torch.ops.mixpol
CALLS = int(os.environ.get("MIXPOL_RAW_CALLS", "400"))  # more of them: past these, the same ones first
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def calls() -> dict[str, tuple[Any, list[Any]]]:
    """One valid call of each op, by name."""
    return {func.name().partition("::")[2]: (func, args) for func, args in valid_calls()}


def test_spoilt_arguments_run_or_raise() -> None:
    command = [sys.executable, "-W", "ignore", "raw_calls.py", "0", "0", str(CALLS)]
    # Under AddressSanitizer too, no memory is an error that can be caught.
    options = os.environ.get("ASAN_OPTIONS", "") + ":allocator_may_return_null=1:max_allocation_size_mb=3000"
    environment = {**os.environ, "ASAN_OPTIONS": options}
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"ended with {done.returncode} in {lines[-2:]}\n{done.stderr[-3000:]}"
    ran, refused = (int(part.split()[0]) for part in lines[-1].split(", "))
    assert ran > CALLS // 10
    assert refused > CALLS // 2


def test_every_op_has_a_valid_call(calls: dict[str, tuple[Any, list[Any]]]) -> None:
    names = {n.partition(".")[0] for n in torch._C._dispatch_get_all_op_names() if n.startswith(f"{NAMESPACE}::")}
    assert {f"{NAMESPACE}::{name}" for name in calls} == names - {f"{NAMESPACE}::cpu_isa"}
    for func, args in calls.values():
        func(*args)


def changed(func: Any, args: list[Any], **new: Any) -> list[Any]:
    names = [a.name for a in func._schema.arguments]
    args = list(args)
    for name, value in new.items():
        args[names.index(name)] = value
    return args


@pytest.mark.parametrize("op", ["table_grad_dense", "table_grad_sparse"])
def test_rows_of_the_table(op: str, calls: dict[str, tuple[Any, list[Any]]]) -> None:
    func, args = calls[op]
    with pytest.raises(RuntimeError, match=r"table_rows was -1; expected 0 or more"):
        func(*changed(func, args, table_rows=-1))
    with pytest.raises(RuntimeError, match=r"ids has \d+ at position \d; expected 0 ... 0"):
        func(*changed(func, args, table_rows=1))


@pytest.mark.parametrize("rows", [2**31, 2**55, 2**62, 2**63 - 1])
def test_ids_of_a_very_large_table_are_sorted(rows: int, generator: torch.Generator) -> None:
    ids = torch.tensor([rows - 1, 3, rows - 1, 2**30, 3, 0])
    grads = torch.randn(6, 4, generator=generator)
    found, sums = ops.table_grad_sparse(ids, grads, None, None, None, rows)
    assert found.tolist() == [0, 3, 2**30, rows - 1]
    assert torch.allclose(sums, torch.stack([grads[5], grads[1] + grads[4], grads[3], grads[0] + grads[2]]))


UNITS = ("target_attention", "mixed_polarity_attention", "dice_attention", "unit_statistics")


@pytest.mark.parametrize("op", [f"{op}_{way}" for op in UNITS for way in ("fwd", "bwd")])
def test_a_layer_without_units(op: str, calls: dict[str, tuple[Any, list[Any]]]) -> None:
    func, args = calls[op]
    names = [a.name for a in func._schema.arguments]
    weights, biases = list(args[names.index("weights")]), list(args[names.index("biases")])
    weights[0], biases[0] = weights[0][:0], biases[0][:0]
    if len(weights) > 1:
        weights[1] = weights[1][:, :0]
    with pytest.raises(RuntimeError, match=r"weights\[0\] has .*; expected .*at least one hidden unit"):
        func(*changed(func, args, weights=weights, biases=biases))


def sparse(t: Tensor) -> Tensor:
    return t.to_sparse()


def quantized(t: Tensor) -> Tensor:
    return torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)


def nested(t: Tensor) -> Tensor:
    return torch.nested.nested_tensor([t, t])


def released(t: Tensor) -> Tensor:
    held = torch.cat([t, t])[len(t) :]  # not at the start of its storage: the pointer is not null
    held.untyped_storage().resize_(0)
    return held


def half_released(t: Tensor) -> Tensor:
    held = t.clone()
    held.untyped_storage().resize_(held.nbytes - 1)
    return held


KINDS = [
    (sparse, TypeError, "is stored as torch.sparse_coo; expected a dense tensor"),
    (Tensor.to_mkldnn, TypeError, "is stored as torch._mkldnn; expected a dense tensor"),
    (quantized, TypeError, r"is quantized \(torch.qint8\); expected floating point"),
    (nested, TypeError, "is a nested tensor; expected its values"),
    (lambda t: t.to(torch.complex64), RuntimeError, "is not float32"),
    (lambda t: None, RuntimeError, "is missing; expected a tensor"),
    (released, RuntimeError, r"has shape .* and a storage of 0 bytes; expected one that holds it"),
    (half_released, RuntimeError, r"has shape .* and a storage of \d+ bytes; expected one that holds it"),
]


@pytest.mark.parametrize(("kind", "error", "words"), KINDS, ids=[w.split(";")[0] for _, _, w in KINDS])
def test_tensors_that_cannot_be_read_are_named(
    kind: Any, error: type[Exception], words: str, calls: dict[str, tuple[Any, list[Any]]]
) -> None:
    for op, name in (
        ("target_attention_fwd", "target"),
        ("target_attention_bwd", "history"),
        ("dot_attention_infer", "w_o"),
        ("dot_attention_projected_fwd", "w_v"),
        ("polarity_embedding_fwd", "item_table"),
        ("interleave", "negative_times"),
    ):
        func, args = calls[op]
        value = args[[a.name for a in func._schema.arguments].index(name)]
        if op == "interleave" and kind(value[:1]) is not None and kind(value[:1]).is_complex():
            continue
        if value is None:
            value = torch.zeros(1, 8)
        wrong = kind(value)
        if wrong is None and name == "w_o":
            continue  # it may be absent
        with pytest.raises(error, match=f"{name} {words}"):
            func(*changed(func, args, **{name: wrong}))
    if kind(torch.zeros(2, 2)) is None:
        return  # torch itself takes no list with a hole
    func, args = calls["target_attention_fwd"]
    weights = args[[a.name for a in func._schema.arguments].index("weights")]
    with pytest.raises(error, match=rf"weights\[1\] {words}"):
        func(*changed(func, args, weights=[weights[0], kind(weights[1])]))


def test_saved_bits_are_checked(calls: dict[str, tuple[Any, list[Any]]], generator: torch.Generator) -> None:
    """The backward takes only what a forward can have saved, at any stride."""
    target, history = torch.randn(2, 8, generator=generator), torch.randn(2, 3, 8, generator=generator)
    weights = [torch.randn(8, 32, generator=generator), torch.randn(1, 8, generator=generator)]
    biases = [torch.randn(8, generator=generator), torch.randn(1, generator=generator)]
    inputs = (target, history, None, None, None, weights, biases)
    _, attention, bits = ops.target_attention_fwd(*inputs, [], 0, 0, 0.0, None, True, True)
    grad = torch.randn(2, 8, generator=generator)

    def backward(bits: Tensor, activation: int = 0) -> Tensor:
        found: Tensor = ops.target_attention_bwd(
            grad, None, attention, bits, *inputs, [], activation, 0, 0.0, None
        )[0]  # fmt: skip
        return found

    expected = backward(bits)
    strided = torch.stack([bits, bits + 1], -1)[..., 0]
    assert not strided.is_contiguous()
    assert torch.equal(backward(strided), expected)
    for wrong, activation in ((bits.float(), 0), (bits[:, :2], 0), (bits, 3)):
        with pytest.raises(RuntimeError, match=r"bits has .* values; expected the bytes that the forward saved"):
            backward(wrong, activation)


def test_rows_in_another_order_are_refused() -> None:
    """As many gradient rows as ids do not do: [B, L] ids want [B, L, D]."""
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="grad_tokens does not have the shape of ids and a last dimension"):
        ops.table_grad_dense(ids, torch.zeros(3, 2, 4), None, None, None, 5)
