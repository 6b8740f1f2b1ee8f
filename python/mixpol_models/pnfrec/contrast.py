"""Contrastive terms: the next positive against the user's negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mixpol_models.pnfrec.streams import Tokens


def contrast(
    states: Tensor,
    tokens: Tokens,
    table: Tensor,
    negatives: Tensor,
    *,
    similarity: str = "dot",
    reduction: str = "mean",
) -> Tensor:
    """L_c = mean over positions t of log(exp(h_t·e⁺) + Σ_{j ∈ N_u} exp(h_t·e_j)) − h_t·e⁺, e⁺ the next positive.

    As published, N_u is the user's whole window of negatives, those after t included, and there is no temperature.
    Computed as a log-sum-exp in at least float32, where the published form overflows.

    Args:
        states: [N, d] of the positive (or only) encoder.
        tokens: their batch; labels are the next positives.
        table: [V, d] item vectors.
        negatives: [B, M] int64 items, 0 where there is none. A user without any adds 0.
        similarity: "dot", or "cosine" of the paper.
        reduction: "mean", or "sum" of the paper.
    """
    if similarity not in ("dot", "cosine"):
        raise ValueError(f"similarity is {similarity!r}, expected 'dot' or 'cosine'")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean' or 'sum'")
    if not len(states):
        return states.sum()
    with torch.autocast(states.device.type, enabled=False):
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        next_item, opposing = F.embedding(tokens.label, table), F.embedding(negatives, table)
        if similarity == "cosine":
            states, next_item, opposing = (F.normalize(x, dim=-1) for x in (states, next_item, opposing))
        gold = (states * next_item).sum(1, keepdim=True)
        against = torch.bmm(tokens.pad(states), opposing.transpose(1, 2))
        against = against.masked_fill((negatives == 0)[:, None, :], -torch.inf)
        losses = torch.logsumexp(torch.cat((gold, tokens.pack(against)), dim=1), dim=1) - gold[:, 0]
        return losses.mean() if reduction == "mean" else losses.sum()


def infonce(
    states: Tensor, tokens: Tokens, table: Tensor, *, temperature: float = 0.1, pairing: str = "published"
) -> Tensor:
    """SASRec_c's term: cosine InfoNCE of the state before a positive and that positive, against skipped items.

    "fixed": rows are the tokens whose label is positive; the negatives are the skipped items of the same user's window.

    "published" keeps three faults of the published code, as far as they are known: rows are all padded positions;
    position r (row-major over users and time) meets the skipped items of user r mod B, in place of its own user
    r div T; where the label is not positive the row's state and key are zero vectors, and where an item was not skipped
    its negative is one, so that both enter softmax and mean as cosine 0. Such rows give a constant and no gradient.

    Args:
        states: [N, d].
        tokens: their batch, of both polarities.
        table: [V, d] item vectors.
        temperature: τ.
        pairing: "published" or "fixed".
    """
    if pairing not in ("published", "fixed"):
        raise ValueError(f"pairing is {pairing!r}, expected 'published' or 'fixed'")
    if not len(states):
        return states.sum()
    with torch.autocast(states.device.type, enabled=False):
        query = F.normalize(states.to(torch.promote_types(states.dtype, torch.float32)), dim=-1)
        key = F.normalize(F.embedding(tokens.label, table), dim=-1)
        skipped = tokens.pad(1 - tokens.polarity)  # [B, T], 0 on padding
        negative = F.normalize(F.embedding(tokens.pad(tokens.item), table), dim=-1) * skipped[..., None]
        positive = tokens.label_positive
        if pairing == "fixed":
            against = torch.bmm(tokens.pad(query), negative.transpose(1, 2)) / temperature
            against = tokens.pack(against.masked_fill((skipped == 0)[:, None, :], -torch.inf))[positive]
            gold = (query * key).sum(1)[positive] / temperature
            if not len(gold):
                return states.sum() * 0
        else:
            users, length = skipped.shape
            query, key = (tokens.pad(x * positive[:, None]).flatten(0, 1) for x in (query, key))
            # Row r with user r mod B: all rows of one remainder meet the same negatives.
            by_user = query.view(length, users, -1).transpose(0, 1)
            against = torch.bmm(by_user, negative.transpose(1, 2)).transpose(0, 1).flatten(0, 1) / temperature
            gold = (query * key).sum(1) / temperature
        return (torch.logsumexp(torch.cat((gold[:, None], against), dim=1), dim=1) - gold).mean()
