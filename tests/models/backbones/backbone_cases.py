"""Batches and models that the tests of this folder share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from mixpol_models.backbones import build_backbone
from mixpol_models.data import Batch
from mixpol_models.data.batches import random_batch

FUSIONS = ("none", "bias", "tapf")
LENGTHS = (3, 0, 5, 1, 0, 7)
SIZES = {"n_items": 12, "n_users": 7, "n_contexts": 3}
# Small models of every form, by name.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "din": ("din", {}),
    "din_two_lists": ("din_two_lists", {}),
    "din_action": ("din_action", {"action_dim": 4}),
    "transact": ("transact", {"first": 3}),
    "transformer": ("transformer", {}),
    "transformer-concatenated": ("transformer", {"positions": "concatenated", "position_dim": 4}),
    "transformer-query": ("transformer", {"form": "query"}),
    "transformer-query-concatenated": ("transformer", {"form": "query", "positions": "concatenated", "layers": 1}),
    "onetrans": ("onetrans", {}),
    "onetrans-pyramid": ("onetrans", {"layers": 3, "max_length": 8, "positions": "added"}),
    "onetrans-groups": ("onetrans", {"ns_form": "groups", "pyramid": False}),
    "hyformer": ("hyformer", {}),
    "hyformer-swiglu": ("hyformer", {"encoder": "swiglu", "stack_sequence": False, "carry_features": False}),
    "hyformer-groups": ("hyformer", {"ns_form": "groups", "queries": 1, "encoder": "none"}),
    "mixformer": ("mixformer", {}),
    "mixformer-full": ("mixformer", {"sequence_width": "full", "stack_sequence": False}),
    "mixformer-decoupled": ("mixformer", {"decoupled": True, "user_heads": 1}),
}


def crossed(turn: int) -> list[tuple[str, str]]:
    """Every case with one fusion, another one for each `turn`; DIN, which has an op of its own, with every fusion."""
    others = [case for case in CASES if case != "din"]
    pairs = [(case, FUSIONS[(i + turn) % len(FUSIONS)]) for i, case in enumerate(others, start=1)]
    return [("din", fusion) for fusion in FUSIONS] + pairs


def batch_of(lengths: tuple[int, ...] = LENGTHS) -> Batch:
    """Random examples with histories of these lengths."""
    return random_batch(lengths, **SIZES)


def rows(batch: Batch, chosen: list[int]) -> Batch:
    """The examples `chosen` of a batch, in that order."""
    index = torch.tensor(chosen)
    events = torch.cat([torch.arange(int(batch.offsets[i]), int(batch.offsets[i + 1])) for i in chosen])
    lengths = batch.offsets.diff()[index]
    return Batch(
        batch.user[index], batch.target_item[index], batch.context[index], batch.label[index],
        batch.item_ids[events], batch.polarity[events], torch.cat([torch.zeros(1).long(), lengths.cumsum(0)]),
    )  # fmt: skip


def other_targets(batch: Batch) -> Batch:
    """The same histories, every target replaced by another item."""
    return replace(batch, target_item=(batch.target_item + 1) % 12)


def model_of(case: str, fusion: str = "tapf", **changes: Any) -> torch.nn.Module:
    """A model of `CASES`, moved off its start: W_t starts at zero, which would hide the gate."""
    name, options = CASES[case]
    model = build_backbone(name, **SIZES, **{"embedding_dim": 16, "fusion": fusion} | options | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def loss_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Binary cross-entropy."""
    return torch.nn.functional.binary_cross_entropy_with_logits(model(batch), batch.label)
