"""Contract 6, second part: inf and NaN propagate as in the reference, and only to the user that has them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mixpol_kernels.testing.inputs import Case, Config, make
from mixpol_kernels.testing.layouts import Placement

VALUES = [torch.nan, torch.inf, -torch.inf]
VARIANTS = [
    Config(op="polarity_embedding"),
    Config(op="polarity_fusion", fusion="bias"),
    Config(op="polarity_fusion"),
    Config(op="target_attention"),
    Config(op="target_attention", hidden=(36, 20), activation="prelu"),
    Config(op="target_attention", activation="sigmoid", normalize="softmax"),
    Config(op="target_attention", hidden=(130,), activation="silu", width=40, candidates=2),
    Config(op="target_attention", hidden=(36, 20), activation="dice_row"),
    Config(normalize="softmax"),
    Config(activation="silu", fusion="bias", layout="lengths"),
    Config(activation="sigmoid", fusion="none", candidates=3, layout="mask_left"),
    Config(op="polarity_embedding", n_extra=3),
    Config(op="polarity_fusion", gate_inputs="full", n_extra=3),
    Config(normalize="softmax", gate_inputs="full", n_extra=3),
]
IDS = [f"{c.op}-{c.fusion}-{c.gate_inputs}-{c.activation}-{c.normalize}-R{c.n_extra}" for c in VARIANTS]
COUNTS = (4, 2, 0, 20)


def inject(case: Case, name: str, value: float, generator: torch.Generator) -> None:
    """Sets one element: of user 0 in its own tensors, of a row in use in the tables, any other elsewhere."""
    tensor = case.floats[name]
    row = int(torch.randint(len(tensor), (), generator=generator))
    if name in ("target", "tokens"):
        row = 0
    elif name == "item_table":
        row = int(case.ids[0])
    elif name == "polarity_table":
        row = int(case.polarity[0])
    elif name == "extra_table":
        row = int(case.extra[0])
    line = tensor[row].view(-1)
    line[int(torch.randint(line.numel(), (), generator=generator))] = value


def kinds(tensor: Tensor) -> Tensor:
    """0 finite, 1 NaN, 2 inf, 3 -inf."""
    return tensor.isnan() + 2 * tensor.isposinf() + 3 * tensor.isneginf()


def both_outputs(config: Config, name: str, value: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Outputs of both backends, in ragged form, with `value` in the input `name`."""
    case = make(replace(config, counts=COUNTS), generator)
    where = case.place(generator)
    inject(case, name, value, generator)
    arguments = case.arguments(where)
    cpu, reference = (ragged(case.call(arguments, b), case, where) for b in ("cpu", "reference"))
    return cpu, reference


def ragged(out: Tensor, case: Case, where: Placement) -> Tensor:
    return out if case.config.has_unit else where.gather(out)


def adds_gate_blocks(config: Config) -> bool:
    return config.has_gate and config.gate_inputs == "full"


@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
def test_propagates_as_the_reference(config: Config, value: float, generator: torch.Generator) -> None:
    for name in make(config, generator).floats:
        if name == "weights[0]" and value in (torch.inf, -torch.inf):
            continue  # test_infinite_weight_of_the_first_layer
        if name in ("tokens", "item_table") and adds_gate_blocks(config) and value in (torch.inf, -torch.inf):
            continue  # test_infinite_token_in_a_full_gate
        got, expected = both_outputs(config, name, value, generator)
        wrong = (kinds(got) != kinds(expected)).nonzero()
        assert not len(wrong), (
            f"{value} in {name}: out{wrong[0].tolist()} is {got[tuple(wrong[0])]}, "
            f"reference {expected[tuple(wrong[0])]}; {len(wrong)} such elements"
        )


@pytest.mark.parametrize("value", [torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("config", [c for c in VARIANTS if c.has_unit], ids=[i for i in IDS if "attention" in i])
def test_infinite_weight_of_the_first_layer(config: Config, value: float, generator: torch.Generator) -> None:
    """The one exception: in Wk - Wd and Wq + Wd an inf meets itself, so NaN may come where the reference has less."""
    for _ in range(5):
        got, expected = both_outputs(config, "weights[0]", value, generator)
        assert (got.isnan() | (kinds(got) == kinds(expected))).all()
        same = ~got.isnan()
        torch.testing.assert_close(got[same], expected[same], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf], ids=str)
def test_infinite_token_in_a_full_gate(value: float, generator: torch.Generator) -> None:
    """The other exception: the blocks of x and x * t are added before an inf meets them, so a gate may be 0 or 1
    where the reference, inf - inf, has NaN."""
    config = Config(op="polarity_fusion", gate_inputs="full")
    differ = 0
    for _ in range(5):
        got, expected = both_outputs(config, "tokens", value, generator)
        assert not got[1:].isnan().any()
        assert (got.isposinf() if value > 0 else got.isneginf())[0].sum() == 1
        assert (expected.isnan() | (kinds(got) == kinds(expected))).all()
        torch.testing.assert_close(got[expected.isfinite()], expected[expected.isfinite()], rtol=1e-3, atol=1e-4)
        differ += int((kinds(got) != kinds(expected)).sum())
    assert differ, "the exception has gone: hold the kernels to the reference here too"


@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
def test_other_users_do_not_notice(config: Config, value: float, generator: torch.Generator) -> None:
    """Outputs and gradients of the other users are the same, bitwise, as without it."""
    case = make(replace(config, counts=COUNTS), generator)
    where = case.place(generator)
    clean = case.run("cpu", where)
    for name in case.floats.keys() & {"target", "tokens"}:
        sick = replace(case, floats={k: t.clone() for k, t in case.floats.items()})
        inject(sick, name, value, generator)
        got = sick.run("cpu", where)
        for result in got.keys() & {"out", "grad target", "grad tokens"}:
            per_token = result == "grad tokens" or (result == "out" and not config.has_unit)
            rest = slice(COUNTS[0] if per_token else 1, None)
            assert torch.equal(got[result][rest], clean[result][rest]), (name, result)
