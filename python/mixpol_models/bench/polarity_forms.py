"""Polarity embedding, fusion and the whole pass from ids as PyTorch compositions: the suites' baselines.

Each composition takes the module of `mixpol_kernels.nn` whose parameters it shares. The eager forms are as a
model would have them; the refactored ones use the algebra of the target-conditioned linear layer. Pads are
not masked before the pooling: nothing reads them, and the baselines need not pay for it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixpol_kernels.nn import MixedPolarityAttention, PolarityEmbedding, PolarityFusion
from mixpol_models.bench.padding import Padding


class SumOfLookups(nn.Module):
    """Item row + polarity row, jagged: ids and polarity [N] to tokens [N, D]."""

    def __init__(self, layer: PolarityEmbedding) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, ids: Tensor, polarity: Tensor) -> Tensor:
        return F.embedding(ids, self.layer.item_table) + F.embedding(polarity, self.layer.polarity_table)


class EagerFusion(nn.Module):
    """TAPF as its formula reads: target [B, D], tokens [B, L, D], polarity [B, L] to tokens [B, L, D]."""

    def __init__(self, layer: PolarityFusion) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, target: Tensor, tokens: Tensor, polarity: Tensor) -> Tensor:
        t = target.unsqueeze(1)
        gate = torch.sigmoid(self.layer.gate(tokens * t))
        residual = self.layer.sign[polarity].unsqueeze(-1) * gate * self.layer.target_projection(t)
        return tokens + F.embedding(polarity, self.layer.polarity_table) + residual


class RefactoredFusion(nn.Module):
    """TAPF with the target folded into the gate's weight: W_g (x * t) = (W_g diag t) x, one matrix a user."""

    def __init__(self, layer: PolarityFusion) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, target: Tensor, tokens: Tensor, polarity: Tensor) -> Tensor:
        matrix = target.unsqueeze(2) * self.layer.gate.weight.t()
        gate = torch.sigmoid(torch.bmm(tokens, matrix) + self.layer.gate.bias)
        pull = self.layer.target_projection(target).unsqueeze(1)
        residual = self.layer.sign[polarity].unsqueeze(-1) * gate * pull
        return tokens + F.embedding(polarity, self.layer.polarity_table) + residual


class Composed(nn.Module):
    """Look-up, fusion, activation unit: target [B, D], ids and polarity [B, L] to pooled [B, D]."""

    def __init__(self, layer: MixedPolarityAttention, fusion: type[nn.Module], unit: type[nn.Module]) -> None:
        super().__init__()
        self.table = layer.item_embedding
        self.fusion = fusion(layer.fusion)
        self.unit = unit(layer.attention)

    def forward(self, target: Tensor, ids: Tensor, polarity: Tensor, padding: Padding) -> Tensor:
        tokens = self.fusion(target, self.table(ids), polarity)
        pooled: Tensor = self.unit(target, tokens, padding)
        return pooled
