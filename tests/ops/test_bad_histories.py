"""Contract 6: a wrong layout argument or value is a clear error in every op, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mixpol_kernels.testing.inputs import OPS, Config, make

Change = Callable[[dict[str, Any]], None]
COUNTS = (3, 0, 4, 2)  # 9 tokens, offsets 0 3 3 7 9; padded length 4


def put(name: str, value: Any) -> Change:
    """Replaces an argument, by a value or by a function of the old one."""

    def change(arguments: dict[str, Any]) -> None:
        arguments[name] = value(arguments[name]) if callable(value) else value

    return change


def poke(name: str, where: Any, value: Any) -> Change:
    """Overwrites elements of an argument."""

    def change(arguments: dict[str, Any]) -> None:
        arguments[name] = arguments[name].clone()
        arguments[name][where] = value

    return change


def instead(name: str, value: torch.Tensor) -> Change:
    """Another layout argument in the place of the offsets."""
    return lambda arguments: arguments.update({"offsets": None, name: value})


def history_name(op: str) -> str:
    return {"polarity_fusion": "tokens", "target_attention": "history"}.get(op, "item_ids")


# label: layout, change, error, pattern. {history} stands for the op's name for its history.
SHAPES: dict[str, tuple[str, Change, type[Exception], str]] = {
    "offsets too short": ("jagged", put("offsets", lambda t: t[:-1]), ValueError, r"offsets.*\[4\].*\[5\]"),
    "offsets 2-D": ("jagged", put("offsets", lambda t: t[None]), ValueError, r"offsets.*\[1, 5\].*expected.*B \+ 1"),
    "offsets float": ("jagged", put("offsets", lambda t: t.float()), TypeError, r"offsets.*float32.*int64"),
    "offsets elsewhere": ("jagged", put("offsets", lambda t: t.to("meta")), ValueError, r"offsets.*meta.*cpu"),
    "lengths too long": ("lengths", put("lengths", torch.ones(5).long()), ValueError, r"lengths.*\[5\].*\[4\]"),
    "lengths uint8": ("lengths", put("lengths", lambda t: t.to(torch.uint8)), TypeError, r"lengths.*uint8.*int32"),
    "lengths elsewhere": ("lengths", put("lengths", lambda t: t.to("meta")), ValueError, r"lengths.*meta.*cpu"),
    "mask too narrow": ("mask_left", put("mask", lambda t: t[:, 1:]), ValueError, r"mask.*\[4, 3\].*\[4, 4\]"),
    "mask 1-D": ("mask_left", put("mask", lambda t: t.flatten()), ValueError, r"mask.*\[16\].*\[4, 4\]"),
    "mask elsewhere": ("mask_left", put("mask", lambda t: t.to("meta")), ValueError, r"mask.*meta.*cpu"),
    "two layouts": (
        "lengths", put("offsets", torch.arange(5)), ValueError, r"offsets and lengths.*at most one",
    ),
    "two more": (
        "lengths", put("mask", torch.ones(4, 4, dtype=torch.bool)), ValueError, r"lengths and mask.*at most one",
    ),
    "padded with offsets": ("full", put("offsets", torch.arange(5)), ValueError, r"{history}.*\[4, 4.*\[N"),
    "jagged with lengths": ("jagged", instead("lengths", torch.ones(4).long()), ValueError, r"{history}.*\[9.*offsets"),
    "jagged with mask": ("jagged", instead("mask", torch.ones(9)), ValueError, r"{history}.*\[9.*offsets"),
}  # fmt: skip
VALUES: dict[str, tuple[str, Change, str]] = {
    "offsets start late": ("jagged", poke("offsets", 0, 1), r"offsets.*1"),
    "offsets start below 0": ("jagged", poke("offsets", 0, -2), r"offsets.*-2"),
    "offsets end early": ("jagged", poke("offsets", 4, 8), r"offsets.*8.*9"),
    "offsets end late": ("jagged", poke("offsets", 4, 13), r"offsets.*13.*9"),
    "offsets end far too late": ("jagged", poke("offsets", 4, 2**62), r"offsets.*4611686018427387904.*9"),
    "offsets fall": ("jagged", poke("offsets", 2, 1), r"offsets\[2\].*1.*offsets\[1\].*3"),
    "offsets beyond and back": ("jagged", poke("offsets", 2, 50), r"offsets\[3\].*7.*offsets\[2\].*50"),
    "length negative": ("lengths", poke("lengths", 1, -1), r"lengths\[1\].*-1.*4"),
    "length too large": ("lengths", poke("lengths", 2, 5), r"lengths\[2\].*5.*4"),
    "length far too large": ("lengths", poke("lengths", 3, 2**40), r"lengths\[3\].*1099511627776.*4"),
}


# The ids of polarity_embedding do not say how many users there are: there, shorter offsets end early instead.
SHAPE_CASES = [(op, s) for op in OPS for s in SHAPES if (op, s) != ("polarity_embedding", "offsets too short")]
VALUE_CASES = [
    (op, v, dtype)
    for op in OPS
    for v in VALUES
    for dtype in (torch.int32, torch.int64)
    if dtype == torch.int64 or "far too" not in v
]


@pytest.mark.parametrize(("op", "label"), SHAPE_CASES)
def test_layout_arguments(op: str, label: str, backend: str, refuses: Callable[..., None]) -> None:
    layout, change, error, pattern = SHAPES[label]
    counts = (4, 4, 4, 4) if layout == "full" else COUNTS
    config = Config(op=op, layout=layout, counts=counts)
    refuses(config, change, error, pattern.replace("{history}", history_name(op)), backend)


@pytest.mark.parametrize(("op", "label", "index_dtype"), VALUE_CASES)
def test_layout_values(
    op: str, label: str, index_dtype: torch.dtype, backend: str, refuses: Callable[..., None]
) -> None:
    """RuntimeError, before anything is computed."""
    layout, change, pattern = VALUES[label]
    config = Config(op=op, layout=layout, counts=COUNTS, index_dtype=index_dtype)
    refuses(config, change, RuntimeError, pattern, backend)


@pytest.mark.parametrize("op", [op for op in OPS if op != "polarity_embedding"])
def test_wrong_number_of_users(op: str, backend: str, refuses: Callable[..., None]) -> None:
    def drop(arguments: dict[str, Any]) -> None:
        arguments["target"] = arguments["target"].detach()[:-1]

    name = history_name(op)
    refuses(Config(op=op, layout="full", counts=(4,) * 4), drop, ValueError, rf"{name} has 4 users.*3", backend)
    refuses(Config(op=op, layout="jagged", counts=COUNTS), drop, ValueError, r"offsets.*\[5\].*\[4\]", backend)


@pytest.mark.parametrize("op", OPS)
def test_unknown_backend(op: str, refuses: Callable[..., None]) -> None:
    for name in ("gpu", "", "CPU"):
        pattern = rf"backend was '{name}'.*'auto'.*'cpu'.*'reference'"
        refuses(Config(op=op), put_backend(name), ValueError, pattern, name)


def put_backend(name: str) -> Change:
    return lambda arguments: arguments.update(backend=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS)
def test_cpu_backend_refuses_other_dtypes(op: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    if dtype != torch.float64 and Config(op=op).has_unit:
        return  # test_low_precision.py
    case = make(Config(op=op), generator)
    arguments = case.arguments(case.place(generator), dtype)
    with pytest.raises(ValueError, match=rf"{op}: backend='cpu'.*float32.*{dtype}.*reference"):
        case.call(arguments, "cpu")
    assert case.call(arguments, "auto").dtype == dtype


@pytest.mark.parametrize("op", OPS)
def test_cpu_backend_takes_cpu_tensors_only(op: str, generator: torch.Generator) -> None:
    case = make(Config(op=op), generator)
    arguments = {
        k: [t.to("meta") for t in v] if isinstance(v, list) else v.to("meta") if torch.is_tensor(v) else v
        for k, v in case.arguments(case.place(generator)).items()
    }
    with pytest.raises(ValueError, match=rf"{op}: backend='cpu'.*CPU.*meta.*\.cpu\(\)"):
        case.call(arguments, "cpu")


@pytest.mark.parametrize("op", OPS)
def test_pads_are_not_checked(op: str, backend: str, generator: torch.Generator) -> None:
    """Ids, polarities and tokens at pads may be anything."""
    case = make(Config(op=op, layout="mask_holes", counts=(2, 0, 5)), generator)
    assert case.call(case.arguments(case.place(generator, length=9)), backend).shape[0] == 3
