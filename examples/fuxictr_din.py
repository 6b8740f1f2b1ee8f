"""DIN out of FuxiCTR's layers (embedding with a padding row, DIN_Attention with Dice, MLP_Block), accelerated.

FuxiCTR's model zoo is not part of its package; with a model of it, the two lines are the same:
`model = DIN(feature_map, **params)` and `accelerate(model)`.

    python examples/fuxictr_din.py [--length 100] [--vocabulary 100000]
"""

from __future__ import annotations

import argparse

import torch
from compare import compare
from fuxictr.pytorch.layers import DIN_Attention, MLP_Block
from torch import Tensor, nn
from torch.nn import functional as F


class DIN(nn.Module):
    def __init__(self, vocabulary: int, width: int = 64) -> None:
        super().__init__()
        self.items = nn.Embedding(vocabulary, width, padding_idx=0)
        nn.init.normal_(self.items.weight[1:], std=1e-4)
        self.attention = DIN_Attention(width, [64], "Dice")
        self.tower = MLP_Block(2 * width, [512, 128, 64], "ReLU", output_dim=1)

    def forward(self, target: Tensor, history: Tensor) -> Tensor:
        item = self.items(target)
        pooled = self.attention(item, self.items(history), history != 0)
        return self.tower(torch.cat([item, pooled], dim=-1)).squeeze(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=100, help="padded length; lengths are uniform in 1 ... LENGTH")
    parser.add_argument("--vocabulary", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    a = parser.parse_args()
    lengths = torch.randint(1, a.length + 1, (a.batch, 1))
    history = torch.randint(1, a.vocabulary, (a.batch, a.length)) * (torch.arange(a.length) < lengths)
    target, label = torch.randint(1, a.vocabulary, (a.batch,)), torch.randint(2, (a.batch,)).float()
    compare(
        DIN(a.vocabulary),
        lambda model: F.binary_cross_entropy_with_logits(model(target, history), label),
        a.steps,
    )


if __name__ == "__main__":
    main()
