"""Every argument of every public function, given what it is not: it runs, or the error names the argument."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from public_calls import DIFFERENTIABLE, OTHERS, WIDTH, call, outputs, replaced, slots
from torch import Tensor

import mixpol_kernels as mk

# Not tensors, or none that fits anywhere.
ANYTHING: dict[str, Any] = {
    "None": None,
    "object": object(),
    "text": "?",
    "bytes": b"x",
    "bool": True,
    "fraction": 2.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "negative": -1,
    "zero": 0,
    "large": 2**62,
    "huge": 2**70,
    "enormous": 10**400,
    "list": [1],
    "empty": [],
    "dict": {},
    "scalar tensor": torch.tensor(1.0),
    "empty tensor": torch.zeros(0),
}


# Another size contradicts another argument: the error may name that one.
SIZES = ("no rows", "a row more", "no columns", "a column more", "more dimensions", "fewer dimensions")
# Never another number in silence.
NEVER = (
    "object",
    "text",
    "bytes",
    "dict",
    "complex",
    "quantised",
    "sparse",
    "mkldnn",
    "nested",
    "meta",
    "float8",
    "uint16",
)


# The bundle's field that separate arguments become.
ALIASES = {"item_ids": "item_ids|history", "item_rows": "item_rows|history"}


def others(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    """What is nearly this tensor: another dtype, layout, device, rank or size."""
    wide = tensor.float() if tensor.dim() else tensor.float()[None]
    yield "complex", tensor.to(torch.complex64)
    yield "bool", tensor.bool()
    yield "integers", tensor.long()
    yield "float64", tensor.double()
    yield "float16", tensor.half()
    yield "float8", tensor.float().to(torch.float8_e4m3fn)
    yield "uint16", tensor.to(torch.uint16)
    yield "quantised", torch.quantize_per_tensor(wide, 0.1, 0, torch.quint8)
    yield "sparse", tensor.to_sparse()
    yield "mkldnn", wide.to_mkldnn()
    yield "nested", torch.nested.as_nested_tensor([wide, wide], layout=torch.strided)
    yield "jagged", torch.nested.as_nested_tensor([wide, wide], layout=torch.jagged)
    yield "meta", tensor.to("meta")
    yield "more dimensions", tensor[None]
    yield "fewer dimensions", tensor.flatten()
    if tensor.dim():
        yield "no rows", tensor[:0]
        yield "a row more", torch.cat([tensor, tensor[:1]])
        yield "no columns", tensor[..., :0]
        yield "a column more", torch.cat([tensor, tensor[..., :1]], -1)
    if tensor.dtype == torch.int64:
        yield "negative values", -tensor - 1
        yield "large values", tensor + 2**40


def attempts(arguments: dict[str, Any]) -> Iterator[tuple[str, int | None, str, Any]]:
    """Argument, entry of its list, what it is given, and that."""
    for name in arguments:
        yield from ((name, None, what, value) for what, value in ANYTHING.items())
    for name, i, value in slots(arguments):
        if i is not None:
            yield from ((name, i, what, other) for what, other in ANYTHING.items())
        if isinstance(value, Tensor):
            yield from ((name, i, what, other) for what, other in others(value))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", [*DIFFERENTIABLE, *OTHERS])
def test_errors_name_the_argument(name: str, backend: str) -> None:
    function, arguments = call(name, torch.Generator().manual_seed(1))
    chosen = {} if name == "take" else {"backend": backend}
    function(**arguments, **chosen)
    wrong = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about prototypes of tensors
        for argument, i, what, value in attempts(arguments):
            given = arguments | {argument: value} if i is None else replaced(arguments, {(argument, i): value})
            title = f"{argument}{'' if i is None else [i]} = {what}"
            may_name = "|".join(arguments) if what in SIZES else ALIASES.get(argument, argument)
            try:
                function(**given, **chosen)
            except (TypeError, ValueError, RuntimeError) as error:
                if not re.search(rf"\b({may_name})\b", str(error)):
                    wrong.append(f"{title}: {type(error).__name__}: {error}")
            except Exception as error:
                wrong.append(f"{title}: {type(error).__name__}: {error}")
            else:
                if what in NEVER:
                    wrong.append(f"{title}: accepted")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [
        ("target_attention, mask", {"scale": 0.5, "weights": []}, ValueError, "weights has 0 entries"),
        ("target_attention, mask", {"blocks": ("x",), "weights": []}, ValueError, "weights has 0 entries"),
        ("target_attention, mask", {"scale": 0.5, "biases": []}, ValueError, "biases has 0 entries and weights 2"),
        ("target_attention, mask", {"blocks": "tx"}, TypeError, "blocks was 'tx'; expected a list or tuple"),
        ("target_attention, mask", {"negative_slope": 1e300}, ValueError, r"negative_slope was 1e\+300"),
        ("target_attention", {"seed": 2**64}, ValueError, "seed was 18446744073709551616; expected -2"),
        ("target_attention", {"seed": 1.5}, TypeError, "seed was 1.5; expected a whole number"),
        ("target_attention", {"scale": "0.5"}, TypeError, "scale was '0.5'; expected a number"),
        ("target_attention", {"weights": torch.zeros(3, 16)}, TypeError, "weights was a tensor of shape"),
        ("dot_target_attention", {"num_heads": 2.0}, TypeError, "num_heads was 2.0; expected a whole number"),
        ("dot_target_attention", {"num_heads": True}, TypeError, "num_heads was True; expected a whole number"),
        ("dot_target_attention", {"top_k": 2**63}, ValueError, "top_k was 9223372036854775808"),
        ("unit_statistics", {"pad_to": 2**62}, ValueError, "pad_to was 4611686018427387904; expected a length below"),
        ("polarity_embedding", {"sparse": 1}, TypeError, "sparse was 1; expected True or False"),
        ("target_attention", {"history": torch.zeros(6, 4).to_sparse()}, TypeError,
         r"history was sparse_coo; expected a dense tensor: history\.to_dense\(\)"),
    ],
)  # fmt: skip
def test_refused(name: str, change: dict[str, Any], error: type[Exception], words: str, backend: str) -> None:
    function, arguments = call(name, torch.Generator().manual_seed(1))
    with pytest.raises(error, match=words):
        function(**(arguments | change), backend=backend)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("name", ["target_attention", "mixed_polarity_attention", "dice_attention"])
def test_a_scale_makes_no_floats_of_other_layers(name: str, dtype: torch.dtype) -> None:
    function, arguments = call(name, torch.Generator().manual_seed(1))
    for entries in ("weights", "biases"):
        given = replaced(arguments, {(entries, 1): arguments[entries][1].to(dtype)})
        with pytest.raises(TypeError, match=rf"{entries}\[1\] has dtype {dtype}"):
            function(**given)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["target_attention", "unit_statistics", "dice_attention", "mixed_polarity_attention"])
def test_a_layer_without_units(name: str, backend: str) -> None:
    function, arguments = call(name, torch.Generator().manual_seed(1))
    none = {("weights", 0): torch.zeros(0, 4 * WIDTH), ("biases", 0): torch.zeros(0)}
    with pytest.raises(ValueError, match=r"weights\[0\] has shape \[0, 16\]; expected at least one unit"):
        function(**replaced(arguments, none), backend=backend)


VECTORS = ("target", "history", "tokens", "item_table", "item_rows", "polarity_table", "extra_table")


@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if not name.startswith("dot")])
def test_vectors_without_columns(name: str) -> None:
    """D = 0: the reference takes what the kernels take."""
    function, arguments = call(name, torch.Generator().manual_seed(1))
    narrow: dict[tuple[str, int | None], Any] = {}
    for argument, i, value in slots(arguments):
        if argument == "gate":
            narrow[argument, i] = value[:0, :0] if value.dim() == 2 else value[:0]
        elif argument in VECTORS or (argument, i) == ("weights", 0):
            narrow[argument, i] = None if value is None else value[:, :0]
    given = replaced(arguments, narrow)
    for got, truth in zip(
        outputs(function(**given, backend="cpu")), outputs(function(**given, backend="reference")), strict=True
    ):
        torch.testing.assert_close(got, truth)


def test_meta(generator: torch.Generator) -> None:
    """Shapes without values, with nothing to check in them."""
    layer = mk.nn.TargetAttention(4, [3], backend="reference").to("meta")
    target, history = torch.randn(2, 4, device="meta"), torch.randn(2, 5, 4, device="meta")
    lengths = torch.zeros(2, dtype=torch.int64, device="meta")
    assert layer(target, history, lengths=lengths).shape == (2, 4)
