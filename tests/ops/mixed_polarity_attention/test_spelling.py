"""Bundles and separate keywords of `mixed_polarity_attention`: the same bits; each wrong bundle is named."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import mixpol_kernels as mk
from mixpol_kernels.ops.mixed_polarity_attention.flat import bundled
from mixpol_kernels.testing.inputs import Case, Config, make


@pytest.fixture
def case(generator: torch.Generator) -> Case:
    return make(Config(layout="jagged", n_extra=3), generator)


def test_separate_keywords_warn(case: Case, generator: torch.Generator) -> None:
    arguments = case.arguments(case.place(generator))
    function: Any = mk.mixed_polarity_attention
    with pytest.warns(DeprecationWarning, match=r"pass History\(ids, offsets=\.\.\.\), ActivationUnit"):
        found = function(**arguments)
    given, options = bundled(**arguments)
    assert torch.equal(found, function(*given, **options))
    assert len(inspect.signature(function).parameters) <= 12


def test_a_tensor_is_a_history(generator: torch.Generator) -> None:
    case = make(Config(layout="full"), generator)
    given, options = bundled(**case.arguments(case.place(generator)))
    function: Any = mk.mixed_polarity_attention
    assert torch.equal(function(given[0], given[1].rows, *given[2:], **options), function(*given, **options))


@pytest.mark.parametrize("bundle", ["history", "unit", "fusion"])
@pytest.mark.parametrize("value", [None, 3, "x", [], (1, 2)], ids=str)
def test_wrong_bundles(bundle: str, value: Any, case: Case, generator: torch.Generator) -> None:
    given, options = bundled(**case.arguments(case.place(generator)))
    names = ("target", "history", "polarity", "item_table", "unit", "fusion")
    function: Any = mk.mixed_polarity_attention
    with pytest.raises((TypeError, ValueError), match=bundle):
        function(**dict(zip(names, given, strict=True)) | {bundle: value}, **options)


@pytest.mark.parametrize("field", ["weights", "biases", "slopes", "scale", "normalize", "dropout"])
def test_wrong_fields(field: str, case: Case, generator: torch.Generator) -> None:
    (target, history, polarity, table, unit, fusion), options = bundled(**case.arguments(case.place(generator)))
    function: Any = mk.mixed_polarity_attention
    with pytest.raises(TypeError, match=rf"unit\.{field} was"):
        function(target, history, polarity, table, unit._replace(**{field: object()}), fusion, **options)


def test_spellings_do_not_mix(case: Case, generator: torch.Generator) -> None:
    arguments = case.arguments(case.place(generator))
    (target, history, polarity, table, unit, fusion), options = bundled(**arguments)
    function: Any = mk.mixed_polarity_attention
    for call in (
        lambda: function(target, history, polarity, table, unit, fusion, offsets=arguments["offsets"], **options),
        lambda: function(target, history, polarity, table, None, arguments["weights"], biases=arguments["biases"]),
        lambda: function(**arguments | {"fusion": fusion}),
        lambda: function(target, polarity=polarity, item_table=table, unit=unit, item_ids=history.rows),
    ):
        with pytest.raises(TypeError, match=r"was given beside a bundle; expected one spelling"):
            call()
    with pytest.raises(TypeError, match=r"unit was None; expected"):
        function(target, history, polarity, table, None, fusion, **options)
    del arguments["biases"]
    with pytest.raises(TypeError, match=r"missing a required argument: 'biases'; expected target, item_ids"):
        function(**arguments)
