"""`dot_target_attention` where nothing needs a gradient: one compiled op from targets to outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dot_cases import Config, make
from torch import Tensor
from views import transposed, with_gaps

from mixpol_kernels.testing.recorder import Recorder

OP = "mixpol::dot_attention_infer"
COUNTS = (5, 0, 37, 64, 1, 130, 16, 47, 48, 49, 2, 97)
CONFIGS = {
    "one head": Config(),
    "bare": Config(attention=None),
    "bare heads": Config(attention=None, heads=4, width=20, candidates=2, layout="lengths"),
    "four heads": Config(heads=4, width=64, attention=64, layout="mask_holes", counts=COUNTS),
    "odd": Config(heads=3, width=7, attention=15, candidates=3, layout="lengths", outputs=5),
    "width 1": Config(width=1, attention=4, heads=4, candidates=2),
    "wide": Config(width=200, attention=96, heads=3),
    "bilinear": Config(only=("w_k",), attention=16),
    "values only": Config(only=("w_v",), scale=0.3),
    "queries and output": Config(only=("w_q", "w_o"), heads=2, attention=16),
    "no output": Config(only=("w_q", "w_k", "w_v"), heads=3),
    "negative scale": Config(scale=-0.4, heads=2),
    "peaked": Config(spread=30.0, heads=2, counts=COUNTS),
    "best three": Config(top_k=3, heads=4, layout="mask_left", width=24, attention=40),
    "no candidates": Config(candidates=0, heads=2),
    "no users": Config(counts=()),
    "all empty": Config(counts=(0, 0, 0), heads=2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_values(name: str, generator: torch.Generator) -> None:
    """Against float64, by plain PyTorch's error; one op, any number of threads, opcheck."""
    error, allowed = 0.0, 0.0  # sums over draws: luck in one of them decides nothing
    for _ in range(8):
        case = make(CONFIGS[name], generator)
        where = case.place(generator)
        arguments = case.arguments(where)
        with Recorder() as recorder:
            out = case.call(arguments, "cpu")
        ((func, args),) = recorder.calls
        assert func._schema.name == OP
        truth = case.call(case.arguments(where, torch.float64), "reference")
        plain = case.call(arguments, "reference")
        assert out.shape == truth.shape
        if truth.numel():
            error += float((out - truth).abs().max())
            allowed += float(2 * (plain - truth).abs().max() + torch.finfo(torch.float32).eps * truth.abs().max())
    assert error <= allowed
    assert set(torch.library.opcheck(func, args).values()) == {"SUCCESS"}
    expected = func(*args)
    assert torch.equal(expected.reshape(out.shape), out)
    for number in (2, 3):
        torch.set_num_threads(number)
        assert torch.equal(func(*args), expected)
    torch.use_deterministic_algorithms(True)  # fresh memory is NaN
    try:
        assert torch.equal(func(*args), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def call(target: Tensor, history: Tensor, offsets: Tensor, weights: list[Tensor], heads: int = 3) -> Tensor:
    op: Any = torch.ops.mixpol.dot_attention_infer
    found: Tensor = op(target, history, offsets, None, None, *weights, heads, 0.5, 0)
    return found


def test_a_user_alone_and_views(generator: torch.Generator) -> None:
    """Projections included, a user's bits do not depend on the batch, nor on candidates, strides or threads."""
    case = make(Config(width=24, heads=3, attention=15, counts=COUNTS), generator)
    target = torch.randn(len(COUNTS), 13, 24, generator=generator)
    history, offsets = case.floats["history"], case.place(generator).arguments["offsets"]
    weights = [case.floats[name] for name in ("w_q", "w_k", "w_v", "w_o")]
    whole = call(target, history, offsets, weights)
    for rows in ([0], [12, 4], [7, 7, 2, 1, 0]):
        assert torch.equal(call(target[:, rows], history, offsets, weights), whole[:, rows])
    assert torch.equal(call(target[:, 3], history, offsets, weights), whole[:, 3])
    views = with_gaps(target), with_gaps(history), offsets, list(map(transposed, weights))
    assert torch.equal(call(*views), whole)
    for user in (5, 1):
        start, count = sum(COUNTS[:user]), COUNTS[user]
        alone = call(target[user : user + 1], history[start : start + count], torch.tensor([0, count]), weights)
        assert torch.equal(alone[0], whole[user])


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"target": torch.randn(6)}, r"target has 1 dimensions"),
        ({"w_q": torch.randn(8, 5)}, r"w_q has shape \[8, 5\]; expected \[-1, 6\]"),
        ({"w_q": torch.randn(10, 6)}, r"queries are 10 wide and keys 8"),
        ({"num_heads": 3}, r"num_heads was 3; expected a divisor of 8 and 8"),
        ({"num_heads": 0}, r"num_heads was 0"),
        ({"w_v": None}, r"num_heads was 2; .*with both w_k and w_v or neither"),
        ({"w_o": torch.randn(4, 7)}, r"w_o has shape \[4, 7\]; expected \[-1, 8\]"),
        ({"history": torch.randn(2, 5, 7)}, r"history has .*expected"),
        ({"top_k": -1}, r"top_k was -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # random tensors are no names
)
def test_the_op_checks_for_itself(change: dict[str, Any], pattern: str) -> None:
    given: dict[str, Any] = {"target": torch.randn(2, 6), "history": torch.randn(2, 5, 6)}
    given |= dict.fromkeys(("offsets", "lengths", "mask"))
    given |= {name: torch.randn(8, 6) for name in ("w_q", "w_k", "w_v")} | {"w_o": torch.randn(4, 8)}
    given |= {"num_heads": 2, "scale": 1.0, "top_k": 0} | change
    with pytest.raises(RuntimeError, match=pattern):
        torch.ops.mixpol.dot_attention_infer(**given)
