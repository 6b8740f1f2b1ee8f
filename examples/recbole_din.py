"""RecBole's DIN on the part of MovieLens-100K that RecBole brings, accelerated.

python examples/recbole_din.py
"""

from __future__ import annotations

import argparse
import logging
import tempfile

import numpy as np
from compare import compare
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import DIN

# RecBole 1.2.1 asks for names that NumPy 2 took away.
for _name, _type in {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}.items():
    if not hasattr(np, _name):
        setattr(np, _name, _type)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    a = parser.parse_args()
    logging.disable(logging.CRITICAL)  # RecBole announces every setting
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1, "dynamic": False, "candidate_num": 0},
            "train_batch_size": a.batch,
            "checkpoint_dir": folder,
            "use_gpu": False,
            "show_progress": False,
        }
        config = Config("DIN", "ml-100k", config_dict=settings)
        train, _, _ = data_preparation(config, create_dataset(config))
        model = DIN(config, train.dataset)
        batch = next(iter(train))
    compare(model, lambda m: m.calculate_loss(batch), a.steps)


if __name__ == "__main__":
    main()
