"""Item and user tables in TorchRec, split over processes; the rest of a backbone is copied to each.

TorchRec is no requirement of this package; 1.8 goes with torch 2.13, on FBGEMM 1.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

_FEATURE = "ids"
# Fewer rows than this are not worth a round trip between processes: such tables stay copies.
SMALL = 1000


class TorchRecTable(nn.Module):
    """An `nn.Embedding` as a TorchRec collection of one table, which `split_tables` can split.

    Args:
        table: gives the rows; copied.
        name: of the table in TorchRec's plan.

    Raises:
        ImportError: TorchRec is not installed.
    """

    def __init__(self, table: nn.Embedding, name: str) -> None:
        super().__init__()
        from torchrec import EmbeddingCollection, EmbeddingConfig

        self.embedding_dim = table.embedding_dim
        self.name = f"table_{name}"  # alone, a name like "items" is taken by nn.ModuleDict
        config = EmbeddingConfig(
            name=self.name,
            num_embeddings=table.num_embeddings,
            embedding_dim=table.embedding_dim,
            feature_names=[_FEATURE],
        )
        self.collection = EmbeddingCollection(tables=[config], device=table.weight.device)
        with torch.no_grad():
            self.collection.embeddings[self.name].weight.copy_(table.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [*shape, D] of ids [*shape]."""
        from torchrec import KeyedJaggedTensor

        flat = ids.reshape(-1).long()
        # One row of all ids: processes may then have different numbers of them.
        lengths = torch.full((1,), flat.numel(), dtype=torch.int32, device=flat.device)
        found = self.collection(KeyedJaggedTensor(keys=[_FEATURE], values=flat, lengths=lengths))
        rows: Tensor = found[_FEATURE].values()
        return rows.view(*ids.shape, self.embedding_dim)


def with_torchrec_tables(model: nn.Module, least_rows: int = SMALL) -> nn.Module:
    """Replaces the item and user tables of a backbone, in place, by `TorchRecTable`s with the same rows.

    Args:
        model: any of `mixpol_models.backbones`.
        least_rows: smaller tables stay as they are.

    Returns:
        The model.

    Raises:
        ImportError: TorchRec is not installed.
        ValueError: no table is that large.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Embedding) and name in ("item_embedding", "user_embedding")
    ]
    large = [entry for entry in found if entry[2].num_embeddings >= least_rows]
    if not large:
        rows = sorted(child.num_embeddings for _, _, child in found)
        raise ValueError(f"least_rows was {least_rows}, but the item and user tables have {rows} rows; pass fewer")
    for parent, name, child in large:
        setattr(parent, name, TorchRecTable(child, name.removesuffix("_embedding")))
    return model


def split_tables(
    model: nn.Module,
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adagrad,
    options: Mapping[str, Any] | None = None,
    sharding: str = "row_wise",
    device: torch.device | None = None,
) -> nn.Module:
    """A model whose TorchRec tables are split over the processes of the default group; call it in each of them.

    A table's optimizer runs inside the backward, on the rows that a batch touches; the gradient is that of the mean of
    the processes' losses, as of everything else. Parameters of the rest, for an optimizer of your own:
    `[p for n, p in model.named_parameters() if "collection" not in n]`.

    Args:
        model: from `with_torchrec_tables`, the same on every process.
        optimizer: of the tables: one that FBGEMM has (SGD, Adagrad, Adam; `torchrec.optim.RowWiseAdagrad`).
        options: its arguments; default {"lr": 0.01}.
        sharding: "row_wise" (rows of each table over all processes) or "table_wise" (whole tables).
        device: of this process; default the CPU.

    Returns:
        TorchRec's `DistributedModelParallel` around the model.

    Raises:
        ImportError: TorchRec is not installed.
        RuntimeError: there is no process group.
        ValueError: unknown sharding, or a model without such tables.
    """
    if sharding not in ("row_wise", "table_wise"):
        raise ValueError(f"sharding was {sharding!r}; expected 'row_wise' or 'table_wise'")
    tables = [module for module in model.modules() if isinstance(module, TorchRecTable)]
    if not tables:
        raise ValueError("the model has no TorchRec tables; pass what `with_torchrec_tables` returned")
    if not torch.distributed.is_initialized():
        raise RuntimeError(
            "there is no process group; call torch.distributed.init_process_group first, in every process"
        )
    from torch.distributed.optim import _apply_optimizer_in_backward
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology

    device = torch.device("cpu") if device is None else device
    for table in tables:
        _apply_optimizer_in_backward(optimizer, table.collection.parameters(), dict(options or {"lr": 0.01}))
    sharders = [EmbeddingCollectionSharder()]
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=torch.distributed.get_world_size(), compute_device=device.type),
        constraints={table.name: ParameterConstraints(sharding_types=[sharding]) for table in tables},
    )
    plan = planner.collective_plan(model, sharders, torch.distributed.group.WORLD)
    split: nn.Module = DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)
    return split
