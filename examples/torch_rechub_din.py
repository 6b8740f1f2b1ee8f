"""torch-rechub's DIN, accelerated.

python examples/torch_rechub_din.py [--length 50]
"""

from __future__ import annotations

import argparse

import torch
from compare import compare
from torch.nn import functional as F
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.ranking import DIN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    a = parser.parse_args()
    items, width = 1000, 32
    model = DIN(
        features=[SparseFeature("user", 500, width)],
        history_features=[SequenceFeature("hist", items, width, pooling="concat", shared_with="item")],
        target_features=[SparseFeature("item", items, width)],
        mlp_params={"dims": [256, 128]},
        attention_mlp_params={"dims": [64, 32]},
    )
    x = {
        "user": torch.randint(500, (a.batch,)),
        "item": torch.randint(items, (a.batch,)),
        "hist": torch.randint(items, (a.batch, a.length)),
    }
    label = torch.randint(2, (a.batch,)).float()
    compare(model, lambda m: F.binary_cross_entropy(m(x), label), a.steps)


if __name__ == "__main__":
    main()
