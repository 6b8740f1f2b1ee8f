"""SASRec-style encoders over packed tokens, with one item table and a tied output."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixpol_kernels import polarity_embedding
from mixpol_models.pnfrec.config import PNFRecConfig
from mixpol_models.pnfrec.dropout import Dropout, dropout
from mixpol_models.pnfrec.streams import Tokens
from mixpol_models.pnfrec.variants import Variant

_INIT_STD = 0.02
_NORM_EPS = 1e-8


class Block(nn.Module):
    """Attention and feed-forward layer with the published code's residuals.

        Q = LN₁(X),  Y = Q + MHA(Q, X, X),  Z = LN₂(Y),  X' = Z + Drop(W₂ ReLU(Drop(W₁ Z)))

    Both residuals start from a *normalised* value, and keys and values are not normalised. Attention is causal.

    Args:
        width: of the tokens.
        heads: of the attention, which divide the width.
        dropout: of the attention weights and the feed-forward layer.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.feed_norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.feed_in = nn.Linear(width, width)
        self.feed_out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """X [N, d] of the packed tokens to [N, d]."""
        q = self.query_norm(x)
        z = self.feed_norm(q + self._attend(q, x, tokens))
        return z + self.dropout(self.feed_out(F.relu(self.dropout(self.feed_in(z)))))

    def _attend(self, q: Tensor, x: Tensor, tokens: Tokens) -> Tensor:
        # The projections see packed tokens. Padding is behind every token, so the causal mask alone hides it.
        part = self.attention
        width = x.shape[1]
        weight, bias = part.in_proj_weight, part.in_proj_bias
        query = F.linear(q, weight[:width], bias[:width])
        key_value = F.linear(x, weight[width:], bias[width:])
        padded = tokens.pad(torch.cat((query, key_value), dim=1))
        heads = (one.unflatten(2, (part.num_heads, -1)).transpose(1, 2) for one in padded.chunk(3, dim=2))
        mixed = _causal(*heads, p=part.dropout if self.training else 0.0)
        return part.out_proj(tokens.pack(mixed.transpose(1, 2).flatten(2)))


def _causal(query: Tensor, key: Tensor, value: Tensor, p: float) -> Tensor:
    """Causal attention [B, heads, L, d] with dropout of the weights."""
    if not p or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, dropout_p=p, is_causal=True)
    # With dropout PyTorch's CPU form holds the weights too, and checks each row for all −inf.
    length, width = query.shape[2:]
    later = query.new_full((length, length), -torch.inf).triu_(1)
    scores = torch.baddbmm(later, query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=width**-0.5)
    return torch.bmm(dropout(scores.softmax(2), p), value.flatten(0, 1)).view(query.shape)


class PNFRec(nn.Module):
    """One or two encoders over shared item vectors; logits are states · item vectors.

    Dropped against the published code: a third encoder that it builds and never uses. Row 0 of the item table (padding)
    starts at zero and gets a gradient through the tied output only, as there.

    Args:
        n_items: largest item id; the catalogue is 0 ... n_items.
        config: sizes and options.
        variant: which encoders there are.
        seed: of the weights.

    Attributes:
        item_table: [n_items + 1, d].
        positions: one [length, d] table, or one per encoder with `own_positions`.
        polarity_table: [2, d] marks of negative and positive inputs, in the variants with marks, else None.
    """

    def __init__(self, n_items: int, config: PNFRecConfig, variant: Variant, seed: int) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ValueError(f"heads is {config.heads} with width {config.width}, expected a divisor of the width")
        width = config.width
        self.names = ("positive", "negative") if variant.negative_encoder else ("positive",)
        self.bf16 = config.precision == "bf16"
        length = config.max_length if variant.sequence == "positive" else config.mixed_length
        self.item_table = nn.Parameter(torch.empty(n_items + 1, width))
        self.positions = nn.ParameterList(
            nn.Parameter(torch.empty(length, width)) for _ in (self.names if config.own_positions else ("shared",))
        )
        self.polarity_table = nn.Parameter(torch.empty(2, width)) if variant.marks else None
        self.encoders = nn.ModuleDict(
            {
                name: nn.ModuleList(Block(width, config.heads, config.dropout) for _ in range(config.blocks))
                for name in self.names
            }
        )
        self.final_norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.dropout = Dropout(config.dropout)
        self._initialise(seed, twins=config.twin_init)

    def _initialise(self, seed: int, twins: bool) -> None:
        """N(0, 0.02) for tables and layers, 0 for biases; the attention's in-projection keeps PyTorch's default."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)

            def drawn(values: Tensor) -> None:
                if twins:
                    torch.manual_seed(seed)
                nn.init.normal_(values, std=_INIT_STD)

            tables = [self.item_table, *self.positions]
            for table in tables if self.polarity_table is None else [*tables, self.polarity_table]:
                drawn(table)
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    drawn(module.weight)
                    nn.init.zeros_(module.bias)
                elif isinstance(module, nn.MultiheadAttention):
                    if twins:
                        torch.manual_seed(seed)
                    nn.init.xavier_uniform_(module.in_proj_weight)
        with torch.no_grad():
            self.item_table[0] = 0

    def forward(self, tokens: Tokens, encoder: str = "positive") -> Tensor:
        """Final states [N, d] of packed tokens.

        Args:
            tokens: a batch.
            encoder: "positive" or "negative".
        """
        with torch.autocast(self.item_table.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.dropout(self._embed(tokens, encoder))
            for block in self.encoders[encoder]:
                x = block(x, tokens)
            return self.final_norm(x)

    def _embed(self, tokens: Tokens, encoder: str) -> Tensor:
        """√d · E[i] + P[k], and the polarity's mark where the variant has one."""
        shared = len(self.positions) == 1
        position = self.positions[0 if shared else self.names.index(encoder)]
        scale = math.sqrt(self.item_table.shape[1])
        if self.polarity_table is None:
            return scale * F.embedding(tokens.item, self.item_table) + F.embedding(tokens.position, position)
        # One fused lookup of three tables; only the items' rows are scaled, so the others are divided first.
        return scale * polarity_embedding(
            tokens.item,
            tokens.polarity,
            self.item_table,
            self.polarity_table / scale,
            extra_ids=tokens.position,
            extra_table=position / scale,
        )

    def last_states(self, tokens: Tokens) -> Tensor:
        """[B, d], the positive encoder's state at each user's last token; zeros for a user without tokens."""
        states = tokens.pad(self(tokens))
        last = (tokens.lengths - 1).clamp(min=0)
        return states[torch.arange(len(last), device=last.device), last]
