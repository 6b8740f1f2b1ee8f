"""The gated feed-forward layer with its norm and residual."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mixpol_models.backbones.token_linear import TokenLinear


class SwiGLU(nn.Module):
    """x + W_down(swish(W_gate x') * W_up x') with x' = RMS(x); GLU Variants Improve Transformer, arXiv 2002.05202.

    Args:
        dim: width D.
        hidden: of gate and up.
        n_tokens: None for one set of weights, or T for a set of its own for each of T tokens.
        dropout: probability behind it, before the residual.
    """

    def __init__(self, dim: int, hidden: int, n_tokens: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()

        def linear(inputs: int, outputs: int) -> nn.Module:
            if n_tokens is None:
                return nn.Linear(inputs, outputs, bias=False)
            return TokenLinear(n_tokens, inputs, outputs, bias=False)

        self.norm = nn.RMSNorm(dim)
        self.gate_up = linear(dim, 2 * hidden)
        self.down = linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] or, with own weights, [B, T, D], to the same."""
        gate, up = self.gate_up(self.norm(x)).chunk(2, dim=-1)
        return x + self.dropout(self.down(F.silu(gate) * up))
