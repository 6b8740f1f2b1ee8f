"""DeepCTR-Torch's DIN, accelerated.

python examples/deepctr_torch_din.py [--length 50]
"""

from __future__ import annotations

import argparse

import torch
from compare import compare
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
from deepctr_torch.models import DIN
from torch.nn import functional as F


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    a = parser.parse_args()
    items, width = 1000, 32
    columns = [
        SparseFeat("user", 500, width),
        SparseFeat("item", items, width),
        DenseFeat("score", 1),
        VarLenSparseFeat(
            SparseFeat("hist_item", items, width, embedding_name="item"), a.length, length_name="seq_length"
        ),
    ]
    model = DIN(columns, ["item"], att_weight_normalization=False)
    # One float matrix, a column group per feature, in the order of model.feature_index.
    lengths = torch.randint(1, a.length + 1, (a.batch, 1))
    history = torch.randint(1, items, (a.batch, a.length)) * (torch.arange(a.length) < lengths)
    features = {
        "user": torch.randint(500, (a.batch, 1)),
        "item": torch.randint(1, items, (a.batch, 1)),
        "score": torch.rand(a.batch, 1),
        "hist_item": history,
        "seq_length": lengths,
    }
    x = torch.cat([features[name].float() for name in model.feature_index], dim=1)
    label = torch.randint(2, (a.batch, 1)).float()
    compare(model, lambda m: F.binary_cross_entropy(m(x), label), a.steps)


if __name__ == "__main__":
    main()
