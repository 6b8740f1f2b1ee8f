"""What `test_distributed.py` runs in two processes of one gloo group."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from mixpol_kernels.nn import MixedPolarityAttention, TargetAttention

KINDS: list[dict[str, Any]] = [
    {"activation": "dice"},
    {"batch_norm": True, "norm_affine": True},
    {"activation": "dice", "pads_in_norm": True, "norm_momentum": None},
]


def run(rank: int, meeting: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found = {"synchronised": synchronised(rank), "sharded": sharded()}
    torch.save(found, f"{results}.{rank}")
    dist.destroy_process_group()


def problem() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    target, history = (torch.randn(*shape, generator=generator) for shape in ((6, 4), (6, 5, 4)))
    return target, history, torch.tensor([5, 2, 0, 3, 1, 4])


def synchronised(rank: int) -> dict[str, float]:
    """Largest difference to one process with the whole batch: outputs, added-up gradients, running statistics."""
    target, history, lengths = problem()
    weight = torch.linspace(-1, 1, 24).view(6, 4)
    differences = {}
    for kind in KINDS:
        for first in ([0, 1, 2, 3], [2]):  # the second leaves one process without a token
            mine = first if rank == 0 else [i for i in range(6) if i not in first]
            torch.manual_seed(0)
            whole = TargetAttention(4, [8, 3], **kind)
            layer = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(whole))
            out, want = (
                layer(target[mine], history[mine], lengths=lengths[mine]),
                whole(target, history, lengths=lengths),
            )
            (out * weight[mine]).sum().backward()
            (want * weight).sum().backward()
            pairs = [(out, want[mine])]
            for p, q in zip(layer.parameters(), whole.parameters(), strict=True):
                total = p.grad.clone()
                dist.all_reduce(total)
                pairs.append((total, q.grad))
            pairs += zip(layer.buffers(), whole.buffers(), strict=True)
            differences[f"{kind}, {len(first)} users"] = max(float((a - b).detach().abs().max()) for a, b in pairs)
    return differences


def sharded() -> dict[str, Any]:
    """Largest difference to the layer as it was, or what was said, by the way in which it was sharded."""
    target, history, lengths = problem()
    torch.manual_seed(0)
    base, mesh = TargetAttention(4, [8, 3]), init_device_mesh("cpu", (2,))
    want = base(target, history, lengths=lengths)
    want.sum().backward()

    def fsdp2(layer: nn.Module) -> nn.Module:
        fully_shard(layer.layers[0])
        return layer

    def fsdp2_whole(layer: nn.Module) -> nn.Module:
        return fully_shard(layer)

    def fsdp1(layer: nn.Module) -> nn.Module:
        layer.layers[0] = FullyShardedDataParallel(layer.layers[0], device_id=torch.device("cpu"), use_orig_params=True)
        return layer

    def fsdp1_whole(layer: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(layer, device_id=torch.device("cpu"))

    def tensor_parallel(layer: nn.Module) -> nn.Module:
        return parallelize_module(layer, mesh, {"layers.0": ColwiseParallel(), "layers.1": RowwiseParallel()})

    def weight_alone(layer: nn.Module) -> nn.Module:
        layer.layers[0].weight = nn.Parameter(distribute_tensor(layer.layers[0].weight.detach(), mesh, [Shard(0)]))
        return layer

    found: dict[str, Any] = {}
    for change in (fsdp2, fsdp2_whole, fsdp1, fsdp1_whole, tensor_parallel, weight_alone):
        layer = change(copy.deepcopy(base))
        try:
            out = layer(target, history, lengths=lengths)
        except RuntimeError as error:
            found[change.__name__] = str(error)
            continue
        out.sum().backward()
        found[change.__name__] = float((out - want).detach().abs().max())
    torch.manual_seed(0)
    mixed = MixedPolarityAttention(10, 4, [8])
    ids, polarity = torch.arange(6).view(2, 3), torch.ones(2, 3, dtype=torch.int64)
    expected = mixed(target[:2], ids, polarity)
    fully_shard(mixed.item_embedding)
    fully_shard(mixed.attention)
    found["parts"] = float((mixed(target[:2], ids, polarity) - expected).detach().abs().max())
    return found
