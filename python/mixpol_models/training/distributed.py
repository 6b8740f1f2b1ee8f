"""One training run in several processes (Lightning's DDP), each with its part of every batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed
from lightning.pytorch.strategies import DDPStrategy
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from mixpol_models.data import ExampleSet
from mixpol_models.data.examples import EpochSampler
from mixpol_models.training.config import TrainConfig


def check_processes(config: TrainConfig, processes: int) -> None:
    """Refuses what would not train, or would train something else.

    Raises:
        ValueError: no process, more processes than examples in a batch, or sparse gradients where NCCL would have to
            add them up.
    """
    if not 1 <= processes <= config.batch_size:
        raise ValueError(
            f"processes is {processes}, expected 1 to batch_size={config.batch_size}: each takes a part of every batch"
        )
    on_gpu = config.accelerator == "gpu" or (config.accelerator == "auto" and torch.cuda.is_available())
    if processes > 1 and on_gpu and config.sparse_tables:
        raise ValueError(
            f"processes is {processes} on GPUs with sparse_tables, but NCCL does not add sparse gradients up: set "
            "sparse_tables to false, or accelerator to 'cpu' (gloo does)"
        )


def trainer_options(config: TrainConfig, processes: int) -> dict[str, Any]:
    """Trainer options of a run in several processes."""
    if processes == 1:
        return {"devices": 1}
    on_cpu = config.accelerator == "cpu" or not torch.cuda.is_available()
    backend = "gloo" if on_cpu else "nccl"
    return {"devices": processes, "strategy": SpawnedDDP(process_group_backend=backend, start_method="spawn")}


class SpawnedDDP(DDPStrategy):
    """Closes the process group with the training.

    Gloo's threads may hold tensors of its last operations; freed while the interpreter shuts down, they abort the
    process. Lightning closes NCCL's groups only.
    """

    def teardown(self) -> None:
        """Ends what `setup` began."""
        super().teardown()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def train_loader(examples: ExampleSet, config: TrainConfig, processes: int) -> DataLoader:
    """Batches in the order of (seed, epoch); of each, a process gets its part."""
    whole = examples.loader(config.batch_size, shuffle=True, seed=config.seed, num_workers=config.workers)
    if processes == 1:
        return whole
    return DataLoader(
        examples,
        batch_size=None,
        sampler=PartSampler(whole.sampler, processes),
        collate_fn=whole.collate_fn,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )


class PartSampler(Sampler[NDArray[np.int64]]):
    """Every `processes`-th index of each batch, from this process's rank on.

    All parts of a batch are equally long, so that the mean of the processes' gradients is the gradient of the batch's
    mean loss. A last batch that does not divide loses up to processes - 1 examples.

    Args:
        batches: the same one in all processes.
        processes: how many.
    """

    def __init__(self, batches: EpochSampler, processes: int) -> None:
        self.batches, self.processes = batches, processes

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        full, rest = divmod(self.batches.n, self.batches.batch_size)
        return full + (rest >= self.processes and not self.batches.drop_last)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        for index in self.batches:
            even = len(index) - len(index) % self.processes
            if even:
                yield index[rank : even : self.processes]
