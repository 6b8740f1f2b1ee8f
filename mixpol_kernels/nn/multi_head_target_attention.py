"""`MultiHeadTargetAttention`: softmax dot-product attention with its projections."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mixpol_kernels.backend import is_direct, plain_form
from mixpol_kernels.history import accepts_jagged
from mixpol_kernels.nn import fast_path, plain
from mixpol_kernels.nn.called import LINEAR, all_plain, first_reason
from mixpol_kernels.nn.sizes import check_size
from mixpol_kernels.nn.starts import reset_children
from mixpol_kernels.ops.dot_target_attention.api import dot_target_attention, projects
from mixpol_kernels.ops.dot_target_attention.autograd import INFER


class MultiHeadTargetAttention(nn.Module):
    """Softmax dot-product target attention; see `mixpol_kernels.dot_target_attention` for the formula.

    Parameters have the names and shapes of FuxiCTR's layer of the same name: its state_dict loads as it is. A
    projection that is more than its weight (a subclass, hooks, a bias) is called, in plain PyTorch; see
    `TargetAttention`.

    Args:
        embedding_dim: width D of target and history.
        attention_dim: width A of queries, keys and values; default D. A multiple of `num_heads`.
        num_heads: number of heads H.
        use_scale: divide the dot products by the square root of A / H.
        use_projections: have W_q, W_k, W_v and W_o; without them a head sees its part of target and tokens.
        top_k: attend to the best so many tokens only; default all.
        backend: "auto" or a name in `mixpol_kernels.backend.BACKENDS`, as in the op.

    Attributes:
        W_q, W_k, W_v: `nn.Linear` from D to A without bias; W_o: from A to D. None without `use_projections`.

    Raises:
        ValueError: `num_heads` does not divide A, `attention_dim` differs from D without projections, or `top_k` is
            below 1.
        TypeError: sizes that are no whole numbers.

    Example:
        >>> import torch
        >>> from mixpol_kernels.nn import MultiHeadTargetAttention
        >>> layer = MultiHeadTargetAttention(8, num_heads=2)
        >>> layer(torch.randn(2, 8), torch.randn(2, 5, 8), lengths=torch.tensor([5, 2])).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        embedding_dim: int,
        attention_dim: int | None = None,
        num_heads: int = 1,
        use_scale: bool = True,
        use_projections: bool = True,
        top_k: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        width = embedding_dim if attention_dim is None else attention_dim
        for name, size in (("embedding_dim", embedding_dim), ("attention_dim", width), ("num_heads", num_heads)):
            check_size(name, size)
        if width % num_heads:
            raise ValueError(f"num_heads was {num_heads}; expected a divisor of attention_dim={width}")
        if top_k is not None:
            check_size("top_k", top_k)
        if not use_projections and width != embedding_dim:
            raise ValueError(f"attention_dim was {width}; without projections expected embedding_dim={embedding_dim}")
        self.embedding_dim = embedding_dim
        self.attention_dim = width
        self.num_heads = num_heads
        self.use_scale = use_scale
        self.use_projections = use_projections
        self.top_k = top_k
        self.backend = backend

        def projection(inputs: int, outputs: int) -> nn.Linear | None:
            return nn.Linear(inputs, outputs, bias=False) if use_projections else None

        self.W_q = projection(embedding_dim, width)
        self.W_k = projection(embedding_dim, width)
        self.W_v = projection(embedding_dim, width)
        self.W_o = projection(width, embedding_dim)

    def reset_parameters(self) -> None:
        """Starts again: all layers inside."""
        reset_children(self)

    def called(self) -> str:
        """Why a projection has to be called, and not its weight read; empty if none has to."""
        if not self.use_projections:
            return ""
        modules: Any = self._modules  # attributes of nn.Module are slow
        layers = modules["W_q"], modules["W_k"], modules["W_v"], modules["W_o"]
        names = "W_q", "W_k", "W_v", "W_o"
        if not all_plain(layers, LINEAR):
            return first_reason((name, layer, LINEAR) for name, layer in zip(names, layers, strict=True))
        for layer in layers:
            if layer._parameters.get("bias") is not None:
                return f"{names[layers.index(layer)]} has a bias"
        return ""

    @accepts_jagged("history")
    def forward(
        self,
        target: Tensor,
        history: Tensor,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Target [B, D] or [B, M, D] and history [B, L, D] or [N, D] to a result shaped like the target."""
        if reason := self.called():
            plain_form("dot_target_attention", self.backend, reason)
            layout = {"lengths": lengths, "mask": mask, "offsets": offsets}
            return plain.multi_head(self, target, history, layout, return_weights)
        w_q, w_k, w_v, w_o = (
            None if layer is None else layer.weight for layer in (self.W_q, self.W_k, self.W_v, self.W_o)
        )
        if not return_weights and is_direct(self.backend, target):
            many = target.dim() == 3 and projects(target, self.num_heads, w_k, w_v, self.top_k, False)
            scale = (self.attention_dim // self.num_heads) ** -0.5 if self.use_scale else 1.0
            options = w_q, w_k, w_v, w_o, self.num_heads, scale, self.top_k or 0
            found = None if many else fast_path.forward(
                INFER.compiled, (target, history), (offsets, lengths, mask), options, self, target, history
            )  # fmt: skip
            if found is not None:
                return found
        return dot_target_attention(
            target, history, num_heads=self.num_heads, w_q=w_q, w_k=w_k, w_v=w_v, w_o=w_o,
            scale=None if self.use_scale else 1.0, top_k=self.top_k, offsets=offsets, lengths=lengths, mask=mask,
            return_weights=return_weights, backend=self.backend,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, use_scale={self.use_scale}, top_k={self.top_k}, backend={self.backend!r}"
