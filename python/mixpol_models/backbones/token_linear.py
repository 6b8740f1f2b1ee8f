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
        self.weight = nn.Parameter(torch.empty(n_tokens, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(n_tokens, 1, outputs)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights and biases as at the start."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, inputs] to [B, T, outputs]."""
        y = x.transpose(0, 1) @ self.weight
        return (y if self.bias is None else y + self.bias).transpose(0, 1)

    def extra_repr(self) -> str:
        tokens, inputs, outputs = self.weight.shape
        return f"n_tokens={tokens}, {inputs}, {outputs}, bias={self.bias is not None}"
