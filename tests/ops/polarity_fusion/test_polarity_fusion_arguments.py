"""`polarity_fusion`: its own arguments, wrong and right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mixpol_kernels
from mixpol_kernels.testing.inputs import Config

JAGGED = Config(op="polarity_fusion", counts=(3, 0, 4, 2), width=6)


def gate(i: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda a: {"gate": [change(t.detach()) if i == j else t for j, t in enumerate(a["gate"])]}


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "target 3-D": (lambda a: {"target": a["target"][:, None]}, ValueError, r"target.*\[4, 1, 6\].*\[B, D\]"),
    "target 1-D": (lambda a: {"target": a["target"][0]}, ValueError, r"target.*\[6\].*\[B, D\]"),
    "integer target": (lambda a: {"target": a["target"].int()}, TypeError, r"target.*int32.*float32"),
    "double tokens": (lambda a: {"tokens": a["tokens"].double()}, TypeError, r"tokens.*float64.*target.*float32"),
    "tokens elsewhere": (lambda a: {"tokens": a["tokens"].to("meta")}, ValueError, r"tokens.*meta.*cpu"),
    "narrow tokens": (lambda a: {"tokens": a["tokens"][:, 1:]}, ValueError, r"tokens.*5.*target.*6"),
    "unknown fusion": (lambda a: {"fusion": "sum"}, ValueError, r"fusion was 'sum'.*'none', 'bias', 'tapf'"),
    "no gate": (lambda a: {"gate": []}, ValueError, r"gate has 0.*'tapf'.*3.*W_g"),
    "gate too long": (lambda a: {"gate": a["gate"] * 2}, ValueError, r"gate has 6.*3"),
    "gate with bias": (lambda a: {"fusion": "bias"}, ValueError, r"gate has 3.*'bias'.*0"),
    "W_g shape": (gate(0, lambda t: t[1:]), ValueError, r"gate\[0\].*W_g.*\[5, 6\].*\[6, 6\].*\[6, 18\]"),
    "W_g too wide": (
        gate(0, lambda t: t.repeat(1, 2)), ValueError, r"gate\[0\].*W_g.*\[6, 12\].*\[6, 6\].*x \* t.*\[6, 18\]",
    ),
    "full W_g too short": (
        gate(0, lambda t: t.repeat(1, 3)[1:]), ValueError, r"gate\[0\].*W_g.*\[5, 18\].*\[6, 6\].*\[6, 18\]",
    ),
    "W_g 3-D": (gate(0, lambda t: t[None]), ValueError, r"gate\[0\].*W_g.*\[1, 6, 6\].*\[6, 6\].*\[6, 18\]"),
    "full W_g for W_t": (
        lambda a: {"gate": [w := torch.randn(6, 18), a["gate"][1], w]},
        ValueError,
        r"gate\[2\].*W_t.*\[6, 18\].*\[6, 6\]",
    ),
    "b_g shape": (gate(1, lambda t: t[1:]), ValueError, r"gate\[1\].*b_g.*\[5\].*\[6\]"),
    "W_t shape": (gate(2, lambda t: t[None]), ValueError, r"gate\[2\].*W_t.*\[1, 6, 6\].*\[6, 6\]"),
    "W_t dtype": (gate(2, lambda t: t.double()), TypeError, r"gate\[2\].*float64.*float32"),
    "W_g elsewhere": (gate(0, lambda t: t.to("meta")), ValueError, r"gate\[0\].*meta.*cpu"),
    "no polarity": (lambda a: {"polarity": None}, ValueError, r"polarity was None.*'tapf'"),
    "no polarity table": (lambda a: {"polarity_table": None}, ValueError, r"polarity_table was None.*'tapf'"),
    "polarity shape": (lambda a: {"polarity": a["polarity"][1:]}, ValueError, r"polarity.*\[8\].*\[9\]"),
    "polarity dtype": (lambda a: {"polarity": a["polarity"].float()}, TypeError, r"polarity.*float32.*integer"),
    "polarity elsewhere": (lambda a: {"polarity": a["polarity"].to("meta")}, ValueError, r"polarity.*meta.*cpu"),
    "table width": (
        lambda a: {"polarity_table": a["polarity_table"][:, :4]}, ValueError, r"polarity_table.*\[2, 4\].*\[P, 6\]",
    ),
    "table dtype": (
        lambda a: {"polarity_table": a["polarity_table"].half()}, TypeError, r"polarity_table.*float16.*float32",
    ),
    "sign shape": (lambda a: {"sign": torch.ones(3)}, ValueError, r"sign.*\[3\].*\[2\]"),
    "sign dtype": (lambda a: {"sign": torch.ones(2).long()}, TypeError, r"sign.*int64.*float32"),
    "sign elsewhere": (lambda a: {"sign": a["sign"].to("meta")}, ValueError, r"sign.*meta.*cpu"),
}  # fmt: skip


@pytest.mark.parametrize("label", BAD)
def test_bad_arguments(label: str, backend: str, refuses: Callable[..., None]) -> None:
    change, error, pattern = BAD[label]

    def detached(arguments: dict[str, Any]) -> None:
        changed = change(arguments)
        arguments.update({k: v.detach() if torch.is_tensor(v) else v for k, v in changed.items()})

    refuses(JAGGED, detached, error, pattern, backend)


@pytest.mark.parametrize("value", [-1, 2, 2**40])
@pytest.mark.parametrize("fusion", ["bias", "tapf"])
def test_polarity_out_of_range(fusion: str, value: int, backend: str, refuses: Callable[..., None]) -> None:
    def poke(arguments: dict[str, Any]) -> None:
        arguments["polarity"][4] = value

    config = Config(op="polarity_fusion", counts=(3, 0, 4, 2), fusion=fusion)
    refuses(config, poke, RuntimeError, rf"polarity.*{value}.*position 4.*0 \.\.\. 1", backend)


def test_bad_layout_with_fusion_none(backend: str) -> None:
    """ "none" returns the tokens as they are, but a wrong layout is still an error."""
    target, tokens = torch.randn(2, 4), torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match=r"lengths.*\[3\].*\[2\]"):
        mixpol_kernels.polarity_fusion(target, tokens, fusion="none", lengths=torch.tensor([1, 2, 3]), backend=backend)


def test_unused_polarity_is_accepted_with_fusion_none(backend: str) -> None:
    """A model may switch the fusion without changing its call."""
    target, tokens = torch.randn(2, 4), torch.randn(2, 3, 4)
    out = mixpol_kernels.polarity_fusion(
        target, tokens, torch.ones(2, 3).long(), torch.randn(2, 4), fusion="none", backend=backend
    )
    assert out is tokens
