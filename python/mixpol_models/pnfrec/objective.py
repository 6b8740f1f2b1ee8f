"""A variant's training loss on a batch of users, term by term."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixpol_models.pnfrec.config import PNFRecConfig
from mixpol_models.pnfrec.contrast import contrast, infonce
from mixpol_models.pnfrec.events import Events
from mixpol_models.pnfrec.linear_cross_entropy import Head, choose_head, mean_cross_entropy
from mixpol_models.pnfrec.model import PNFRec
from mixpol_models.pnfrec.streams import Stream, Tokens
from mixpol_models.pnfrec.variants import Variant


@dataclass(frozen=True)
class Batch:
    """Users of a step: the main sequence, and their negatives where the variant looks at them."""

    main: Tokens
    negative: Tokens | None

    def to(self, device: torch.device) -> Batch:
        """On another device."""
        return Batch(self.main.to(device), None if self.negative is None else self.negative.to(device))


class Batches:
    """All training users of a variant.

    Args:
        events: of the training part.
        config: lengths.
        variant: what it looks at.
    """

    def __init__(self, events: Events, config: PNFRecConfig, variant: Variant) -> None:
        limit = config.max_length if variant.sequence == "positive" else config.mixed_length
        self.main = Stream.of(events, variant.sequence, limit)
        apart = variant.sequence == "positive" and (variant.negative_encoder or variant.contrast is not None)
        self.negative = Stream.of(events, "negative", config.max_length) if apart else None

    def __len__(self) -> int:
        """Users."""
        return len(self.main)

    def of(self, users: Tensor) -> Batch:
        """The batch of `users` [B]."""
        return Batch(self.main.batch(users), None if self.negative is None else self.negative.batch(users))

    def epoch(self, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
        """Users of each step, in an order of this seed and epoch."""
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        return list(torch.randperm(len(self), generator=generator).split(batch_size))


class Objective:
    """Computes the loss of a variant: cross entropy of the next item, and the terms its name stands for.

    Args:
        config: weights and forms of the terms.
        variant: which terms there are.
        device: of the model.
    """

    def __init__(self, config: PNFRecConfig, variant: Variant, device: torch.device) -> None:
        self.config, self.variant = config, variant
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.head: Head = mean_cross_entropy(choose_head(config.head, device, self.dtype)[0])

    def __call__(self, model: PNFRec, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, unweighted terms by name)."""
        config, variant = self.config, self.variant
        states = model(batch.main)
        terms = {"CE_p": self._cross_entropy(states, model, batch.main)}
        loss = terms["CE_p"]
        if variant.negative_encoder and batch.negative is not None:
            opposing = model(batch.negative, "negative")
            terms["CE_n"] = self._cross_entropy(opposing, model, batch.negative)
            loss = loss + config.negative_weight * terms["CE_n"]
        if variant.contrast == "opposing":
            terms["L_c"] = contrast(
                states,
                batch.main,
                model.item_table,
                _negatives(batch),
                similarity=config.similarity,
                reduction=config.contrast_reduction,
            )
            loss = loss + config.contrast_weight * terms["L_c"]
        elif variant.contrast == "infonce":
            terms["InfoNCE"] = infonce(
                states, batch.main, model.item_table, temperature=config.temperature, pairing=config.pairing
            )
            loss = loss + config.infonce_weight * terms["InfoNCE"]
        return loss, terms

    def _cross_entropy(self, states: Tensor, model: PNFRec, tokens: Tokens) -> Tensor:
        states = states.to(self.dtype) if self.dtype != torch.float32 else states
        return self.head(states, model.item_table, tokens.label)


def _negatives(batch: Batch) -> Tensor:
    """[B, M] negative inputs of each user, 0 behind or between: of the negative stream, else of the mixed sequence."""
    if batch.negative is not None:
        return batch.negative.pad(batch.negative.item)
    return batch.main.pad(batch.main.item * (1 - batch.main.polarity))
