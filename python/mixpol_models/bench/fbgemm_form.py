"""FBGEMM's look-up as a form of the embedding, where it is installed: `pip install fbgemm-gpu-cpu`."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mixpol_kernels.nn import PolarityEmbedding

FBGEMM = "fbgemm"


def fbgemm_installed() -> bool:
    """Whether FBGEMM is installed. A release that does not fit this torch raises when the form is built."""
    return find_spec("fbgemm_gpu") is not None


class FbgemmBags(nn.Module):
    """Ids and polarity [N] to tokens [N, D]: bags of two rows, the item's and the polarity's, of one stacked table.

    That is the closest that FBGEMM has, and the fastest: one look-up with a sum, and one dense gradient. The rows of
    the bags are made beforehand and not timed. `layer`'s tables are moved into one block of memory, so that
    both forms read the same parameters.

    Args:
        layer: whose tables are read.
        ids, polarity: [N] int64.
    """

    def __init__(self, layer: PolarityEmbedding, ids: Tensor, polarity: Tensor) -> None:
        super().__init__()
        training = importlib.import_module("fbgemm_gpu.split_table_batched_embeddings_ops_training")
        items = len(layer.item_table)
        self.tables = layer
        with torch.no_grad():
            stacked = torch.cat([layer.item_table, layer.polarity_table])
            layer.item_table.data, layer.polarity_table.data = stacked[:items], stacked[items:]
        self.bags = training.DenseTableBatchedEmbeddingBagsCodegen([tuple(stacked.shape)], use_cpu=True)
        self.bags.weights.data = stacked.view(-1)
        self.rows = torch.stack([ids, polarity + items], dim=1).flatten()
        self.offsets = torch.arange(0, self.rows.numel() + 1, 2)

    def forward(self) -> Tensor:
        """Tokens [N, D]."""
        return _Split.apply(self.tables.item_table, self.tables.polarity_table, self)


class _Split(torch.autograd.Function):
    """Hands FBGEMM's one gradient on as those of the two tables."""

    @staticmethod
    def forward(ctx: Any, item_table: Tensor, polarity_table: Tensor, form: FbgemmBags) -> Tensor:
        ctx.form, ctx.split = form, item_table.numel()
        ctx.shapes = item_table.shape, polarity_table.shape
        with torch.set_grad_enabled(any(ctx.needs_input_grad)):
            ctx.inner = form.bags(form.rows, form.offsets)
        return ctx.inner.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (flat,) = torch.autograd.grad(ctx.inner, ctx.form.bags.weights, grad)
        of_items, of_polarity = ctx.shapes
        return flat[: ctx.split].view(of_items), flat[ctx.split :].view(of_polarity), None
