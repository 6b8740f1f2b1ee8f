"""FBGEMM's form is the same function of the same parameters."""

from __future__ import annotations

import pytest

from mixpol_models.bench.cases import make_case
from mixpol_models.bench.fbgemm_form import FBGEMM
from mixpol_models.bench.shapes import SHAPES

pytest.importorskip("fbgemm_gpu", exc_type=ImportError)


def test_the_form_is_right_and_reads_the_same_tables() -> None:
    case = make_case(SHAPES["polarity embedding, L=200"].small())
    case.check(FBGEMM)
    before = case.forms[FBGEMM]().detach()
    case.leaves["polarity_table"].data += 1
    assert float((case.forms[FBGEMM]().detach() - before - 1).abs().max()) < 1e-5
    assert float((case.forms["eager"]().detach() - before - 1).abs().max()) < 1e-5
