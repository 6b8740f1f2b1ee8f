"""MixFormer: feature heads that mix, and read the history, without query or output projections (arXiv 2602.14110)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixpol_kernels.checks import check_choice
from mixpol_models.backbones.attend import Watch, attend, split_heads
from mixpol_models.backbones.base import TokenBackbone
from mixpol_models.backbones.head_mix import head_mix
from mixpol_models.backbones.inputs import Embedded
from mixpol_models.backbones.options import check_at_least
from mixpol_models.backbones.padding import Padding
from mixpol_models.backbones.swiglu import SwiGLU
from mixpol_models.backbones.token_linear import TokenLinear
from mixpol_models.data import Batch


class MixFormer(TokenBackbone):
    """N heads x_n = W_n · (piece n of the concatenated features), each as wide as an embedding, over a shared history.

        layer:  P = X + HeadMix(RMS(X)),  q_n = SwiGLU_n(p_n),  h_t = SwiGLU(s_t)
                z_n = q_n + softmax_t(q_n · k_t^n / √D) v_t^n,  x_n = SwiGLU_n(z_n)
        logit = MLP(flatten(X))

    SwiGLU holds its RMS norm and residual. The paper's sequence tokens are N D wide (`sequence_width="full"`): head n
    attends to slice n of h_t, by a D x D map each for keys and values. "narrow", the default, keeps s_t and h_t at
    width D, and all heads read the same h_t through their own maps, as in UniRank: in the full form the SwiGLU over
    events, quadratic in N D, takes most of the time.

    `decoupled`: heads of user and context first, heads of the target behind them, and HeadMix masked so that the first
    never take from the second. The user heads are then the same for every target, unless the fusion is "tapf", which
    puts the target into the history that they read.

    `history_attention`: the softmax rows of all heads, mean over heads and layers; they sum to 1.

    Args:
        layers: of the stack.
        heads: N; divides `embedding_dim`.
        decoupled: keep the user side free of the target.
        user_heads: with `decoupled`, how many of the N are the user's.
        sequence_width: "narrow" or "full".
        ffn_ratio: hidden width of the SwiGLUs over their width. Not public.
        stack_sequence: a layer reads the h_t of the one before; False reads s_t. Not public.
        *sizes, **options: see `BackboneOptions`.

    Example:
        >>> from mixpol_models.data.batches import random_batch
        >>> sizes = {"n_items": 50, "n_users": 9, "n_contexts": 3}
        >>> model, batch = MixFormer(**sizes, fusion="tapf", backend="reference"), random_batch([2, 1], **sizes)
        >>> model(batch).shape, model.history_attention(batch).shape
        (torch.Size([2]), torch.Size([3]))
    """

    def __init__(
        self,
        *sizes: int,
        layers: int = 2,
        heads: int = 4,
        decoupled: bool = False,
        user_heads: int = 2,
        sequence_width: str = "narrow",
        ffn_ratio: int = 2,
        stack_sequence: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(*sizes, **options)
        dim = self.options.embedding_dim
        check_choice("sequence_width", sequence_width, ("narrow", "full"))
        check_at_least(1, layers=layers, heads=heads, ffn_ratio=ffn_ratio)
        if dim % heads:
            raise ValueError(f"heads is {heads}, expected a divisor of embedding_dim={dim}: change one of them")
        if decoupled and not 1 <= user_heads < heads:
            raise ValueError(f"user_heads is {user_heads}, expected 1 ... {heads - 1}, fewer than heads={heads}")
        self.decoupled = decoupled
        self.stack_sequence = stack_sequence
        *user_widths, target_width, context_width = self.inputs.widths
        widths = [sum(user_widths) + context_width, target_width] if decoupled else [sum(self.inputs.widths)]
        shares = [user_heads, heads - user_heads] if decoupled else [heads]
        self.pieces = nn.ModuleList(Pieces(width, n, dim) for width, n in zip(widths, shares, strict=True))
        self.user_heads = user_heads if decoupled else 0
        full = sequence_width == "full"
        self.sequence_layer = nn.Linear(dim, heads * dim) if full else nn.Identity()
        self.layers = nn.ModuleList(
            MixFormerLayer(dim, heads, full, ffn_ratio, self.options.dropout) for _ in range(layers)
        )
        self.tower = self._mlp(heads * dim)

    def first_heads(self, embedded: Embedded) -> Tensor:
        """X before the first layer, [B, N, D]."""
        if not self.decoupled:
            return self.pieces[0](torch.cat(embedded.features, dim=-1))
        user = [part for part in (embedded.user, embedded.context) if part is not None]
        sides = (torch.cat(user, dim=-1), embedded.target)
        return torch.cat([pieces(side) for pieces, side in zip(self.pieces, sides, strict=True)], dim=1)

    def last_heads(self, embedded: Embedded, padding: Padding, watch: Watch | None = None) -> Tensor:
        """X behind the last layer, [B, N, D]."""
        # .to: the residual streams stay float32 under autocast.
        heads = self.first_heads(embedded).to(embedded.target)
        raw = states = self.sequence_layer(padding.pad(embedded.history)).to(embedded.target)
        mask = self.head_mask(heads)
        for layer in self.layers:
            heads, states = layer(heads, states if self.stack_sequence else raw, padding.keep, mask, watch)
        return heads

    def head_mask(self, heads: Tensor) -> Tensor:
        """[N, D] like heads [B, N, D]: what mixing brings to a user's head from the other side is left out."""
        mask = heads.new_ones(heads.shape[1:])
        mask[: self.user_heads, self.user_heads * mask.shape[1] // mask.shape[0] :] = 0
        return mask

    def _states(self, embedded: Embedded, batch: Batch, padding: Padding, watch: Watch | None) -> Tensor:
        return self.last_heads(embedded, padding, watch).flatten(1)

    def _token_weights(self, weights: Tensor, padding: Padding) -> Tensor:
        return weights.mean(dim=(1, 2))


class Pieces(nn.Module):
    """A vector cut into n equal pieces (zeros fill up the last), each mapped to a head: [B, width] to [B, n, D]."""

    def __init__(self, width: int, n: int, dim: int) -> None:
        super().__init__()
        self.n = n
        self.piece = -(-width // n)
        self.layer = TokenLinear(n, self.piece, dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        filled = nn.functional.pad(features, (0, self.n * self.piece - features.shape[-1]))
        return self.layer(filled.unflatten(-1, (self.n, self.piece)))


class MixFormerLayer(nn.Module):
    """One layer: mixing, reading, and a SwiGLU per head before and behind.

    Args:
        dim: width D of a head.
        heads: N.
        full: events are N D wide, and head n reads slice n; otherwise they are D wide.
        ffn_ratio: hidden width of the SwiGLUs over their width.
        dropout: probability behind each SwiGLU.
    """

    def __init__(self, dim: int, heads: int, full: bool, ffn_ratio: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.full = full
        width = heads * dim if full else dim
        self.mix_norm = nn.RMSNorm(dim)
        self.query = SwiGLU(dim, ffn_ratio * dim, heads, dropout)
        self.sequence = SwiGLU(width, ffn_ratio * width, dropout=dropout)
        self.key = TokenLinear(heads, dim, dim, bias=False)
        self.value = TokenLinear(heads, dim, dim, bias=False)
        self.out = SwiGLU(dim, ffn_ratio * dim, heads, dropout)

    def forward(
        self, heads: Tensor, events: Tensor, keep: Tensor, head_mask: Tensor, watch: Watch | None
    ) -> tuple[Tensor, Tensor]:
        """Heads [B, N, D] and events [B, L, D or N D] to those behind the layer."""
        mixed = heads + head_mask * head_mix(self.mix_norm(heads))
        query = self.query(mixed)
        events = self.sequence(events)
        # q · (W_k h) = (W_kᵀ q) · h and the sum of W_v h is W_v of the sum: no event meets a weight of the attention.
        looks = self.key(query)
        if self.full:
            slices = split_heads(events, self.heads)
            pooled = attend(looks[:, :, None], slices, slices, keep[:, None, None, :], watch).squeeze(2)
        else:
            shared = events[:, None]
            pooled = attend(looks[:, None], shared, shared, keep[:, None, None, :], watch).squeeze(1)
        read = self.value(pooled)
        return self.out(query + read), events
