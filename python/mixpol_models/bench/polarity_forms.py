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


class _Fusion(nn.Module):
    """Target [B, D], tokens [B, L, D], polarity and extra_ids [B, L] to tokens [B, L, D]."""

    def __init__(self, layer: PolarityFusion) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, target: Tensor, tokens: Tensor, polarity: Tensor, extra_ids: Tensor | None = None) -> Tensor:
        if self.layer.fusion == "none":
            return tokens
        fused = tokens + F.embedding(polarity, self.layer.polarity_table)
        if self.layer.fusion == "tapf":
            pull = self.layer.target_projection(target).unsqueeze(1)
            fused = fused + self.layer.sign[polarity].unsqueeze(-1) * self.gate(target, tokens) * pull
        return fused if extra_ids is None else fused + F.embedding(extra_ids, self.layer.extra_table)

    def gate(self, target: Tensor, tokens: Tensor) -> Tensor:
        raise NotImplementedError


class EagerFusion(_Fusion):
    """The formula as models write it."""

    def gate(self, target: Tensor, tokens: Tensor) -> Tensor:
        t = target.unsqueeze(1)
        inputs = tokens * t
        if self.layer.gate_inputs == "full":
            inputs = torch.cat([tokens, t.expand_as(tokens), inputs], dim=-1)
        return torch.sigmoid(self.layer.gate(inputs))


class RefactoredFusion(_Fusion):
    """TAPF with the target folded into the gate's weight: W_g (x * t) = (W_g diag t) x, one matrix a user."""

    def gate(self, target: Tensor, tokens: Tensor) -> Tensor:
        weight, constant = self.layer.gate.weight, self.layer.gate.bias
        if self.layer.gate_inputs == "product":
            matrix = target.unsqueeze(2) * weight.t()
        else:
            of_token, of_target, of_product = weight.split(weight.shape[0], dim=1)
            matrix = target.unsqueeze(2) * of_product.t() + of_token.t()
            constant = F.linear(target, of_target, constant).unsqueeze(1)
        return torch.sigmoid(torch.bmm(tokens, matrix) + constant)


class Composed(nn.Module):
    """Look-up, fusion, activation unit: target [B, D], ids, polarity and extra_ids [B, L] to pooled [B, D]."""

    def __init__(self, layer: MixedPolarityAttention, fusion: type[nn.Module], unit: type[nn.Module]) -> None:
        super().__init__()
        self.table = layer.item_embedding
        self.fusion = fusion(layer.fusion)
        self.unit = unit(layer.attention)

    def forward(
        self, target: Tensor, ids: Tensor, polarity: Tensor, padding: Padding, extra_ids: Tensor | None = None
    ) -> Tensor:
        tokens = self.fusion(target, self.table(ids), polarity, extra_ids)
        pooled: Tensor = self.unit(target, tokens, padding)
        return pooled
