"""OneTrans: one causal stack over the history and the features (arXiv 2510.26104)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixpol_kernels.checks import check_choice
from mixpol_models.backbones.attend import Watch, attend, join_heads, split_heads
from mixpol_models.backbones.base import TokenBackbone
from mixpol_models.backbones.inputs import Embedded
from mixpol_models.backbones.ns_tokens import NSTokens
from mixpol_models.backbones.options import check_at_least, check_heads
from mixpol_models.backbones.padding import Padding
from mixpol_models.backbones.positions import Positions
from mixpol_models.backbones.token_linear import TokenLinear
from mixpol_models.data import Batch


class OneTrans(TokenBackbone):
    """History tokens (S) and feature tokens (NS) in one sequence [S ; NS], with weights shared by S and own to each NS.

        S = fusion(MLP(E[item])),  NS = split(MLP([user ; target ; context]), T)
        layer:  Z = X + MixedMHA(RMS(X)),  X = Z + MixedFFN(RMS(Z)), causal; the pyramid keeps the newest queries
        logit = MLP(flatten(NS of the last layer))

    S never sees NS, so S states depend on the target only through "tapf". What the paper leaves open: W_O is shared,
    the FFN has ReLU (both as in UniRank), no positions by default.

    The pyramid: layer i has n_i queries, NS included, keys being all tokens that the layer before left. n falls
    linearly from max_length + T to T, so that the last layer works out NS alone. Counted so by `max_length`, not by
    the longest history at hand: an example does not depend on its batch. Without pyramid all layers but the last have
    all queries; the last has NS in either case, since nobody reads its S states.

    `history_attention`: the softmax rows of the NS tokens, mean over them, layers and heads; events that the pyramid
    dropped get 0 from there on. The rest of 1 is what NS tokens gave each other.

    Args:
        layers: of the stack.
        heads: of the attention.
        ns_form, ns_tokens: see `NSTokens`: "split" into `ns_tokens` (T), or "groups", which has a token a feature.
        ffn_ratio: hidden width of the FFNs over D.
        pyramid: keep fewer and fewer queries.
        pyramid_multiple: round the lengths between first and last to multiples of this; the paper has 32.
        positions: "none" (default) or "added": learned, counted from the newest event.
        max_length: longest history. `TrainConfig` gives its budget.
        *sizes, **options: see `BackboneOptions`.

    Example:
        >>> from mixpol_models.data.batches import random_batch
        >>> sizes = {"n_items": 50, "n_users": 9, "n_contexts": 3}
        >>> model, batch = OneTrans(**sizes, fusion="tapf", backend="reference"), random_batch([2, 1], **sizes)
        >>> model(batch).shape, model.history_attention(batch).shape
        (torch.Size([2]), torch.Size([3]))
    """

    def __init__(
        self,
        *sizes: int,
        layers: int = 2,
        heads: int = 2,
        ns_form: str = "split",
        ns_tokens: int = 4,
        ffn_ratio: int = 2,
        pyramid: bool = True,
        pyramid_multiple: int = 1,
        positions: str = "none",
        max_length: int = 50,
        **options: Any,
    ) -> None:
        super().__init__(*sizes, **options)
        dim = self.options.embedding_dim
        check_choice("positions", positions, ("none", "added"))
        check_at_least(1, layers=layers, ffn_ratio=ffn_ratio, max_length=max_length)
        check_heads(dim, heads)
        self.max_length = max_length
        self.inputs.token_layer = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.ns_tokens = NSTokens(self.inputs.widths, dim, ns_form, ns_tokens)
        n = self.ns_tokens.n_tokens
        self.positions = Positions(max_length, dim) if positions == "added" else None
        lengths = pyramid_lengths(max_length + n, n, layers, pyramid_multiple) if pyramid else [max_length + n] * layers
        self.history_queries = [max(length - n, 0) for length in lengths[:-1]] + [0]
        self.layers = nn.ModuleList(
            MixedLayer(dim, heads, n, ffn_ratio, queries, self.options.dropout) for queries in self.history_queries
        )
        self.norm = nn.RMSNorm(dim)
        self.tower = self._mlp(n * dim)

    def _states(self, embedded: Embedded, batch: Batch, padding: Padding, watch: Watch | None) -> Tensor:
        if padding.shape[1] > self.max_length:
            raise ValueError(
                f"the longest history of the batch has {padding.shape[1]} events, expected at most {self.max_length}: "
                "raise max_length, or shorten the histories"
            )
        s, keep = padding.pad(embedded.history), padding.keep
        if self.positions is not None:
            s = s + self.positions(s.shape[1])
        ns = self.ns_tokens(embedded.features).to(s)  # the residual stream stays float32 under autocast
        for layer in self.layers:
            s, ns, keep = layer(s, ns, keep, watch)
        return self.norm(ns).flatten(1)

    def _token_weights(self, weights: Tensor, padding: Padding) -> Tensor:
        n = self.ns_tokens.n_tokens
        return weights[:, :, -n:, :-n].mean(dim=(1, 2))


class MixedLayer(nn.Module):
    """One layer: mixed attention and mixed FFN, pre-norm.

    Args:
        dim: width D.
        heads: divides D.
        ns_tokens: T, each with its own query, key, value and FFN weights.
        ffn_ratio: hidden width over D.
        history_queries: how many of the newest S tokens are queries, and so come out.
        dropout: probability behind attention and FFN.
    """

    def __init__(
        self, dim: int, heads: int, ns_tokens: int, ffn_ratio: int, history_queries: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.history_queries = history_queries
        self.attention_norm = nn.RMSNorm(dim)
        self.s_key_value = nn.Linear(dim, 2 * dim)
        self.ns_query_key_value = TokenLinear(ns_tokens, dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.ffn_norm = nn.RMSNorm(dim)
        self.ns_ffn = nn.Sequential(
            TokenLinear(ns_tokens, dim, ffn_ratio * dim), nn.ReLU(), TokenLinear(ns_tokens, ffn_ratio * dim, dim)
        )
        self.s_query: nn.Linear | None = None
        self.s_ffn: nn.Sequential | None = None
        if history_queries:
            self.s_query = nn.Linear(dim, dim)
            self.s_ffn = nn.Sequential(nn.Linear(dim, ffn_ratio * dim), nn.ReLU(), nn.Linear(ffn_ratio * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, s: Tensor, ns: Tensor, keep: Tensor, watch: Watch | None) -> tuple[Tensor, Tensor, Tensor]:
        """S [B, L, D], NS [B, T, D] and S's mask [B, L] to those of the next layer, with the newest S only."""
        newest = min(self.history_queries, s.shape[1])
        cut = s.shape[1] - newest
        normed_s, normed_ns = self.attention_norm(s), self.attention_norm(ns)
        s_key, s_value = self.s_key_value(normed_s).chunk(2, dim=-1)
        query, key, value = self.ns_query_key_value(normed_ns).chunk(3, dim=-1)
        key, value = torch.cat([s_key, key], dim=1), torch.cat([s_value, value], dim=1)
        if self.s_query is not None:
            query = torch.cat([self.s_query(normed_s[:, cut:]), query], dim=1)
        mask = _causal(keep, query.shape[1], ns.shape[1])
        heads = (split_heads(part, self.heads) for part in (query, key, value))
        change = self.dropout(self.out(join_heads(attend(*heads, mask, watch))))
        s, ns = s[:, cut:] + change[:, :newest], ns + change[:, newest:]
        if self.s_ffn is not None:
            s = s + self.dropout(self.s_ffn(self.ffn_norm(s)))
        return s, ns + self.dropout(self.ns_ffn(self.ffn_norm(ns))), keep[:, cut:]


def _causal(keep: Tensor, queries: int, ns_tokens: int) -> Tensor:
    """[B, 1, queries, L + T] bool: kept keys at or before each of the last positions."""
    keys = F.pad(keep, (0, ns_tokens), value=True)
    length = keys.shape[1]
    causal = torch.ones(queries, length, dtype=torch.bool, device=keep.device).tril(length - queries)
    return causal & keys[:, None, None, :]


def pyramid_lengths(longest: int, shortest: int, layers: int, multiple: int = 1) -> list[int]:
    """Queries of each layer, falling linearly; OneTrans' published schedules with `multiple` 32.

    Example:
        >>> pyramid_lengths(1190, 12, 6, 32)
        [1190, 960, 704, 480, 256, 12]
    """
    check_at_least(1, pyramid_multiple=multiple)
    fall = (longest - shortest) / max(layers - 1, 1)
    steps = [round((longest - i * fall) / multiple) * multiple for i in range(1, layers - 1)]
    return [longest, *(min(max(step, shortest), longest) for step in steps), shortest][-layers:]
