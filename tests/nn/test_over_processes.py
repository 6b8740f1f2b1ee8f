"""Norms over processes, and sharded layers: two processes on the CPU compute what one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from two_processes import run


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(run, (str(folder / "meeting"), str(folder / "found")), nprocs=2)
    return [torch.load(folder / f"found.{rank}") for rank in range(2)]


def test_synchronised_statistics(results: list[dict[str, Any]]) -> None:
    """With their gradients, and where one process has no token at all."""
    for found in results:
        assert len(found["synchronised"]) == 6
        assert max(found["synchronised"].values()) < 1e-5, found["synchronised"]


def test_sharded_layers(results: list[dict[str, Any]]) -> None:
    for found in results:
        sharded = found["sharded"]
        assert "mixed torch.Tensor and DTensor" in sharded.pop("weight_alone")  # nothing gathers it: PyTorch's words
        assert set(sharded) == {"fsdp2", "fsdp2_whole", "fsdp1", "fsdp1_whole", "tensor_parallel", "parts"}
        assert max(sharded.values()) < 1e-6, sharded
