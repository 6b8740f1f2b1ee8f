"""Small users with long, short and one-sided histories."""

from __future__ import annotations

import numpy as np
import torch

from mixpol_models.pnfrec.config import PNFRecConfig
from mixpol_models.pnfrec.events import Events
from mixpol_models.pnfrec.model import PNFRec
from mixpol_models.pnfrec.objective import Batches
from mixpol_models.pnfrec.variants import variant

N_ITEMS = 30


def make_events(histories: list[str], n_items: int = N_ITEMS, seed: int = 0) -> Events:
    """One string a user, + and - for each event; random items."""
    rng = np.random.default_rng(seed)
    signs = "".join(histories)
    return Events(
        item=rng.integers(1, n_items + 1, len(signs)),
        positive=np.array([sign == "+" for sign in signs]),
        offsets=np.concatenate(([0], np.cumsum([len(h) for h in histories]))).astype(np.int64),
        user=np.arange(len(histories)),
    )


def model_and_batches(name: str, config: PNFRecConfig, events: Events, seed: int = 0) -> tuple[PNFRec, Batches]:
    """A model with weights large enough for every layer to matter."""
    chosen = variant(name)
    model = PNFRec(N_ITEMS, config, chosen, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        model.item_table[0] = 0
    return model, Batches(events, config, chosen)
