"""A layer of its own for each of a fixed number of tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TokenLinear(nn.Module):
    """y_n = W_n x_n + b_n, one batched product for all tokens.

    Args:
        n_tokens: T.
        inputs, outputs: widths of every token.
        bias: with b_n.

    Attributes:
        weight: [T, inputs, outputs]; `nn.Linear`'s start.
        bias: [T, 1, outputs], or None.

    Example:
        >>> import torch
        >>> TokenLinear(4, 8, 6)(torch.randn(2, 4, 8)).shape
        torch.Size([2, 4, 6])
    """

    def __init__(self, n_tokens: int, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(n_tokens, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_tokens, 1, outputs).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, inputs] to [B, T, outputs]."""
        y = x.transpose(0, 1) @ self.weight
        return (y if self.bias is None else y + self.bias).transpose(0, 1)

    def extra_repr(self) -> str:
        tokens, inputs, outputs = self.weight.shape
        return f"n_tokens={tokens}, {inputs}, {outputs}, bias={self.bias is not None}"
