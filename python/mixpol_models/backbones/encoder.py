"""The post-norm transformer layer that several backbones build on."""

from __future__ import annotations

from torch import Tensor, nn

from mixpol_models.backbones.attend import Watch, attend, join_heads, split_heads


class EncoderLayer(nn.Module):
    """x = LN(x + attention(x)), then x = LN(x + FFN(x)); Attention Is All You Need, arXiv 1706.03762.

    Args:
        dim: width D.
        heads: divides D.
        ffn_dim: hidden width of the feed-forward layer.
        activation: its activation.
        dropout: probability behind attention and feed-forward layer.
    """

    def __init__(self, dim: int, heads: int, ffn_dim: int, activation: type[nn.Module], dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), activation(), nn.Linear(ffn_dim, dim))
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keep: Tensor, newest: int | None = None, watch: Watch | None = None) -> Tensor:
        """States [B, L, D] under the key mask `keep` [B, L] to [B, L, D], or to those of the last `newest` positions.

        The positions left out are still keys: the result is that of the whole layer, cut.
        """
        queries = x if newest is None else x[:, -newest:]
        query = split_heads(self.query(queries), self.heads)
        key, value = (split_heads(part, self.heads) for part in self.key_value(x).chunk(2, dim=-1))
        pooled = join_heads(attend(query, key, value, keep[:, None, None, :], watch))
        y = self.attention_norm(queries + self.dropout(self.out(pooled)))
        return self.ffn_norm(y + self.dropout(self.ffn(y)))
