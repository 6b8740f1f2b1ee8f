"""Fixtures of the PNFRec tests."""

from __future__ import annotations

import pytest
from pnfrec_helpers import make_events

from mixpol_models.pnfrec.config import PNFRecConfig
from mixpol_models.pnfrec.events import Events


@pytest.fixture
def events() -> Events:
    return make_events(["+-+--+-+", "++", "+-+-", "--++-+++-+-", "+++-"])


@pytest.fixture
def config() -> PNFRecConfig:
    return PNFRecConfig(width=8, dropout=0.0, max_length=4, mixed_length=6, batch_size=3, twin_init=False, heads=2)
