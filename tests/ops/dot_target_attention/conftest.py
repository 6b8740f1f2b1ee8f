"""The case of a variant, for the tests of this folder."""

from __future__ import annotations

import pytest
import torch
from dot_cases import Case, make
from dot_variants import VARIANTS


@pytest.fixture
def case(variant: str, generator: torch.Generator) -> Case:
    return make(VARIANTS[variant], generator)
