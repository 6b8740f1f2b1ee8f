"""PNFRec written plainly: padded batches, whole attention modules, all logits. What the fast form is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixpol_models.pnfrec.config import PNFRecConfig
from mixpol_models.pnfrec.model import Block, PNFRec
from mixpol_models.pnfrec.objective import Batch
from mixpol_models.pnfrec.streams import Tokens
from mixpol_models.pnfrec.variants import Variant

_IGNORED = -100


class PlainBlock(nn.Module):
    """`Block` on padded sequences, with 1×1 convolutions and an explicit causal mask."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        width, fast = block.feed_in.in_features, block.attention
        self.query_norm = nn.LayerNorm(width, eps=block.query_norm.eps)
        self.attention = nn.MultiheadAttention(width, fast.num_heads, dropout=fast.dropout, batch_first=True)
        self.feed_norm = nn.LayerNorm(width, eps=block.feed_norm.eps)
        self.feed_in, self.feed_out = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)
        self.dropout = nn.Dropout(block.dropout.p)
        for name in ("query_norm", "attention", "feed_norm"):
            getattr(self, name).load_state_dict(getattr(block, name).state_dict())
        for name in ("feed_in", "feed_out"):
            ours, theirs = getattr(self, name), getattr(block, name)
            ours.load_state_dict({"weight": theirs.weight[:, :, None], "bias": theirs.bias})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """X [B, L, d] and the mask [B, L, 1] of tokens to [B, L, d]."""
        length = x.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        q = self.query_norm(x)
        z = self.feed_norm(q + self.attention(q, x, x, attn_mask=later, need_weights=False)[0])
        fed = self.feed_out(self.dropout(F.relu(self.feed_in_dropped(z)))).transpose(1, 2)
        return (z + self.dropout(fed)) * mask

    def feed_in_dropped(self, z: Tensor) -> Tensor:
        """Drop(W₁ Z), channels first."""
        return self.dropout(self.feed_in(z.transpose(1, 2)))


class PlainPNFRec(nn.Module):
    """`PNFRec` and its `Objective` in plain form, with the same weights and loss, for the variants over positives.

    Args:
        model: whose weights are copied.
        config, variant: of the model; no "all" or "mixed" sequences, float32 only.
    """

    def __init__(self, model: PNFRec, config: PNFRecConfig, variant: Variant) -> None:
        super().__init__()
        if variant.sequence != "positive":
            raise ValueError(f"variant is {variant.name!r}, expected one over positives: the plain form has no other")
        self.config, self.variant, self.names = config, variant, model.names
        rows, width = model.item_table.shape
        self.items = nn.Embedding(rows, width, padding_idx=0)
        self.positions = nn.ModuleList(nn.Embedding(*table.shape) for table in model.positions)
        with torch.no_grad():
            self.items.weight.copy_(model.item_table)
            for ours, theirs in zip(self.positions, model.positions, strict=True):
                ours.weight.copy_(theirs)
        self.encoders = nn.ModuleDict(
            {name: nn.ModuleList(PlainBlock(block) for block in model.encoders[name]) for name in self.names}  # type: ignore[arg-type, union-attr]
        )
        self.final_norm = nn.LayerNorm(width, eps=model.final_norm.eps)
        self.final_norm.load_state_dict(model.final_norm.state_dict())
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, item: Tensor, encoder: str = "positive") -> Tensor:
        """Items [B, L], 0 behind, to states [B, L, d]."""
        mask = (item != 0)[..., None].to(self.items.weight.dtype)
        table = self.positions[0 if len(self.positions) == 1 else self.names.index(encoder)]
        position = table(torch.arange(item.shape[1], device=item.device))
        x = self.dropout(self.items.embedding_dim**0.5 * self.items(item) + position) * mask
        for block in self.encoders[encoder]:  # type: ignore[union-attr]
            x = block(x, mask)
        return self.final_norm(x)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, unweighted terms by name), padded to the configured length as the published loader does."""
        item, label = self._padded(batch.main)
        states = self(item)
        terms = {"CE_p": self._cross_entropy(states, label)}
        loss = terms["CE_p"]
        if batch.negative is None:
            return loss, terms
        opposing, opposing_label = self._padded(batch.negative)
        if self.variant.negative_encoder:
            terms["CE_n"] = self._cross_entropy(self(opposing, "negative"), opposing_label)
            loss = loss + self.config.negative_weight * terms["CE_n"]
        if self.variant.contrast:
            gold = (states * self.items(label.clamp(min=0))).sum(-1, keepdim=True)
            against = states @ self.items(opposing).transpose(1, 2)
            against = against.masked_fill((opposing == 0)[:, None, :], -torch.inf)
            every = torch.logsumexp(torch.cat((gold, against), -1), -1) - gold[..., 0]
            terms["L_c"] = every[label != _IGNORED].mean()
            loss = loss + self.config.contrast_weight * terms["L_c"]
        return loss, terms

    def _cross_entropy(self, states: Tensor, label: Tensor) -> Tensor:
        logits = states @ self.items.weight.T
        return F.cross_entropy(logits.flatten(0, 1), label.flatten(), ignore_index=_IGNORED)

    def _padded(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        item, label = tokens.pad(tokens.item), tokens.pad(tokens.label)
        behind = self.config.max_length - tokens.length
        label = label.masked_fill(item == 0, _IGNORED)
        return F.pad(item, (0, behind)), F.pad(label, (0, behind), value=_IGNORED)
