"""HyFormer: global queries that read the history and mix with the features, in turn (arXiv 2601.12681)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixpol_kernels.checks import check_choice
from mixpol_models.backbones.attend import Watch, attend, join_heads, split_heads
from mixpol_models.backbones.base import TokenBackbone
from mixpol_models.backbones.encoder import EncoderLayer
from mixpol_models.backbones.head_mix import head_mix
from mixpol_models.backbones.inputs import Embedded
from mixpol_models.backbones.ns_tokens import NSTokens
from mixpol_models.backbones.options import check_at_least, check_heads
from mixpol_models.backbones.padding import Padding
from mixpol_models.backbones.swiglu import SwiGLU
from mixpol_models.backbones.token_linear import TokenLinear
from mixpol_models.data import Batch


class HyFormer(TokenBackbone):
    """N query tokens decode the history, then are boosted together with M feature tokens F; T = N + M, layer by layer.

        Q_n = FFN_n([F_1 ; ... ; F_M ; mean(S)])
        layer:  H = Enc(S),  K, V = H W_K, H W_V,  Q~ = Q + MHA(LN(Q), K, V)
                X = [Q~ ; F],  X = X + FFN per token (LN(HeadMix(X))),  [Q ; F] = X
        logit = MLP(flatten(Q of the last layer))

    What the paper leaves open: pre-norm and residual at the decoding (as its re-implementations), LN before the
    boosting FFN, H goes on to the next layer's encoder (`stack_sequence`) and the boosted F to the next layer
    (`carry_features`). In the last layer only Q is boosted: nothing reads F.

    `history_attention`: the softmax rows of the queries, mean over them, layers and heads; they sum to 1.

    Args:
        layers: decoding and boosting, so many times.
        heads: of every attention.
        queries: N.
        ns_form, ns_tokens: see `NSTokens`. "split" (default) makes M = `ns_tokens`, whatever features there are;
            "groups", a token a feature, is nearer to the paper's semantic groups: choose `queries` so that T divides D.
        encoder: "transformer" (default, post-norm), "swiglu" (no attention among events) or "none": H = S.
        ffn_ratio: hidden width of the FFNs over D.
        stack_sequence: each layer encodes the H of the one before; False encodes S anew.
        carry_features: boosted F go on; False goes on with the first ones.
        *sizes, **options: see `BackboneOptions`. T divides `embedding_dim`.

    Example:
        >>> from mixpol_models.data.batches import random_batch
        >>> sizes = {"n_items": 50, "n_users": 9, "n_contexts": 3}
        >>> model, batch = HyFormer(**sizes, fusion="tapf", backend="reference"), random_batch([2, 1], **sizes)
        >>> model(batch).shape, model.history_attention(batch).shape
        (torch.Size([2]), torch.Size([3]))
    """

    def __init__(
        self,
        *sizes: int,
        layers: int = 2,
        heads: int = 2,
        queries: int = 4,
        ns_form: str = "split",
        ns_tokens: int = 4,
        encoder: str = "transformer",
        ffn_ratio: int = 2,
        stack_sequence: bool = True,
        carry_features: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(*sizes, **options)
        dim = self.options.embedding_dim
        check_choice("encoder", encoder, ("transformer", "swiglu", "none"))
        check_at_least(1, layers=layers, queries=queries, ffn_ratio=ffn_ratio)
        check_heads(dim, heads)
        self.features = NSTokens(self.inputs.widths, dim, ns_form, ns_tokens)
        m = self.features.n_tokens
        if dim % (queries + m):
            raise ValueError(
                f"queries is {queries}, which with {m} feature tokens makes {queries + m}, expected a divisor of "
                f"embedding_dim={dim}: change queries, ns_tokens or embedding_dim"
            )
        self.n_queries = queries
        self.stack_sequence = stack_sequence
        self.carry_features = carry_features
        self.first_queries = nn.Sequential(
            nn.Linear((m + 1) * dim, queries * dim), nn.ReLU(), nn.Unflatten(1, (queries, dim)),
            TokenLinear(queries, dim, dim),
        )  # fmt: skip

        def boosted(layer: int) -> int:
            return queries + m if carry_features and layer < layers - 1 else queries

        self.layers = nn.ModuleList(
            HyFormerLayer(dim, heads, boosted(i), encoder, ffn_ratio, self.options.dropout) for i in range(layers)
        )
        self.tower = self._mlp(queries * dim)

    def _states(self, embedded: Embedded, batch: Batch, padding: Padding, watch: Watch | None) -> Tensor:
        raw = states = padding.pad(embedded.history)
        # .to: the residual stream stays float32 under autocast.
        features = first = self.features(embedded.features).to(raw)
        pooled = padding.mean(raw)
        queries = self.first_queries(torch.cat([first.flatten(1), pooled], dim=-1)).to(raw)
        for layer in self.layers:
            states = layer.encode(states if self.stack_sequence else raw, padding.keep)
            queries = layer.decode(queries, states, padding.keep, watch)
            tokens = layer.boost(torch.cat([queries, features], dim=1))
            queries = tokens[:, : self.n_queries]
            features = tokens[:, self.n_queries :] if self.carry_features else first
        return queries.flatten(1)

    def _token_weights(self, weights: Tensor, padding: Padding) -> Tensor:
        return weights.mean(dim=(1, 2))


class HyFormerLayer(nn.Module):
    """One layer, in its three steps.

    Args:
        dim: width D.
        heads: of encoder and decoding.
        boosted: how many tokens, from the first, have a boosting FFN and come out.
        encoder: "transformer", "swiglu" or "none".
        ffn_ratio: hidden width over D.
        dropout: probability behind each step.
    """

    def __init__(self, dim: int, heads: int, boosted: int, encoder: str, ffn_ratio: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.boosted = boosted
        hidden = ffn_ratio * dim
        self.encoder: EncoderLayer | SwiGLU | None = None
        if encoder == "transformer":
            self.encoder = EncoderLayer(dim, heads, hidden, nn.ReLU, dropout)
        elif encoder == "swiglu":
            self.encoder = SwiGLU(dim, hidden, dropout=dropout)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.query_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.mixed_norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(TokenLinear(boosted, dim, hidden), nn.ReLU(), TokenLinear(boosted, hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def encode(self, states: Tensor, keep: Tensor) -> Tensor:
        """Events [B, L, D] to H, of the same shape."""
        if isinstance(self.encoder, EncoderLayer):
            return self.encoder(states, keep)
        return states if self.encoder is None else self.encoder(states)

    def decode(self, queries: Tensor, states: Tensor, keep: Tensor, watch: Watch | None) -> Tensor:
        """Queries [B, N, D] that have read H."""
        key, value = (split_heads(part, self.heads) for part in self.key_value(states).chunk(2, dim=-1))
        query = split_heads(self.query(self.query_norm(queries)), self.heads)
        pooled = join_heads(attend(query, key, value, keep[:, None, None, :], watch))
        return queries + self.dropout(self.out(pooled))

    def boost(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T, D] to the first `boosted` of them, each with a part of every token mixed in."""
        mixed = head_mix(tokens)[:, : self.boosted]
        return tokens[:, : self.boosted] + self.dropout(self.ffn(self.mixed_norm(mixed)))
