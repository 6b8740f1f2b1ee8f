"""`TargetAttention`: the DIN activation unit with its layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from mixpol_kernels.backend import is_direct, plain_form
from mixpol_kernels.checks import check_choice
from mixpol_kernels.history import accepts_jagged
from mixpol_kernels.nn import fast_path, plain
from mixpol_kernels.nn.called import LINEAR, NORM, SLOPES, all_plain, first_reason
from mixpol_kernels.nn.sizes import check_size, check_widths
from mixpol_kernels.nn.starts import Slopes, reset_children
from mixpol_kernels.nn.unit import Unit
from mixpol_kernels.ops.target_attention.autograd import FORWARD
from mixpol_kernels.ops.unit import ACTIVATIONS, BLOCKS, NORMALIZERS, PUBLIC_ACTIVATIONS, check_dropout


class TargetAttention(nn.Module):
    """Target attention with the DIN activation unit; see `mixpol_kernels.target_attention` for the formula.

    With activation "dice" (Deep Interest Network, arXiv 1706.06978, equation 3) or `batch_norm` the hidden layers
    are normalised: in training by the statistics of the batch, which update the running ones, in evaluation by the
    running ones. The statistics are over all tokens of the batch (of all candidates), each layer's after the
    other's, one pass each. The running ones move as in `nn.BatchNorm1d`, momentum None and
    `track_running_stats=False` included, but a batch of fewer than two tokens leaves them and
    `num_batches_tracked` as they are. Behind `nn.SyncBatchNorm.convert_sync_batchnorm` the statistics are those of all
    processes, on a CPU too.

    A layer or norm that is more than its parameters (an adapter or other subclass, hooks, `weight_norm` and pruning by
    hooks, a quantised or sharded layer) is called: the module then runs in plain PyTorch, says so once in the log, and
    `explain` says why. With a kernel asked for by name that is an error. Parametrizations run fused.

    Args:
        embedding_dim: width D of target and history.
        hidden_units: widths of the one to three hidden layers.
        activation: of the hidden layers; `mixpol_kernels.ActivationUnit` lists them. "prelu" has one slope per unit,
            starting at 0.25, "dice" one alpha per unit, "dice_row" one per layer, starting at 0.
            RecBole's "dice" is "silu"; torch-rechub's is "dice_row", behind `batch_norm`.
        normalize: "none", "softmax" or "sigmoid".
        backend: "auto" or a name in `mixpol_kernels.backend.BACKENDS`, as in the op.
        negative_slope: of "leaky_relu".
        scale: multiplies the scores before they are normalised.
        blocks: inputs of the first layer in order, some of "t", "x", "t-x", "t*x".
        dropout: in training, probability that a hidden unit is set to 0 behind its activation. The seed of every call
            comes from torch's default generator. Not with `pads_in_norm` and several hidden layers.
        batch_norm: normalise each hidden layer before its activation; not with "dice", which normalises itself.
        norm_eps, norm_momentum, norm_affine: of Dice's or the batch norm's statistics. Frameworks differ: FuxiCTR's
            Dice has 1e-9, 0.01, False; DeepCTR-Torch's 1e-8, 0.1, True; TorchEasyRec's 1e-5, 0.1, False.
        row_eps: ε of "dice_row", whose statistics are those of one token's units. torch-rechub has 1e-3.
        pads_in_norm: count padded positions as zero tokens in the statistics, as those frameworks do. The
            statistics, and so the outputs in training, then depend on how far the batch is padded.

    Attributes:
        layers: ordinary `nn.Linear` in order: len(blocks) D to H_1, ..., H_last to 1.
        slopes: one parameter per hidden layer: [H_i] for "prelu" and "dice", [1] for "dice_row"; otherwise empty.
        norms: one `nn.BatchNorm1d` per hidden layer where they are normalised; otherwise empty.

    Raises:
        TypeError: `embedding_dim` or `hidden_units` are no whole numbers.
        ValueError: options out of range, or that contradict each other.

    Example:
        >>> import torch
        >>> from mixpol_kernels.nn import TargetAttention
        >>> layer = TargetAttention(8, [16], activation="dice")
        >>> layer(torch.randn(2, 8), torch.randn(2, 5, 8), lengths=torch.tensor([5, 2])).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        embedding_dim: int,
        hidden_units: Sequence[int] = (64,),
        activation: str = "relu",
        normalize: str = "none",
        backend: str = "auto",
        *,
        negative_slope: float = 0.01,
        scale: float = 1.0,
        blocks: Sequence[str] = BLOCKS,
        dropout: float = 0.0,
        batch_norm: bool = False,
        norm_eps: float = 1e-9,
        norm_momentum: float = 0.01,
        norm_affine: bool = False,
        row_eps: float = 1e-3,
        pads_in_norm: bool = False,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, PUBLIC_ACTIVATIONS)
        check_choice("normalize", normalize, NORMALIZERS)
        check_size("embedding_dim", embedding_dim)
        hidden_units = check_widths("hidden_units", hidden_units)
        if batch_norm and activation == "dice":
            raise ValueError("batch_norm was True with activation 'dice'; expected one of them: dice normalises itself")
        check_dropout(dropout, None)
        if dropout and pads_in_norm and len(hidden_units) > 1:
            raise ValueError(
                f"dropout was {dropout} with pads_in_norm and {len(hidden_units)} hidden layers; expected 0: behind a "
                "dropped layer no two pads are the same"
            )
        widths = [len(blocks) * embedding_dim, *hidden_units, 1]
        self.embedding_dim = embedding_dim
        self.activation = activation
        self.normalize = normalize
        self.backend = backend
        self.negative_slope = negative_slope
        self.scale = scale
        self.blocks = tuple(blocks)
        self.dropout = dropout
        self.row_eps = row_eps
        self.pads_in_norm = pads_in_norm
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        start = 0.25 if activation == "prelu" else 0.0
        sizes: Sequence[int] = hidden_units if activation in ("prelu", "dice") else [1] * len(hidden_units)
        self.slopes = Slopes(sizes if activation in ("prelu", "dice", "dice_row") else (), start)
        norms = hidden_units if batch_norm or activation == "dice" else ()
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(units, norm_eps, norm_momentum, affine=norm_affine) for units in norms
        )

    def reset_parameters(self) -> None:
        """Starts again: all layers inside."""
        reset_children(self)

    def called(self) -> str:
        """Why a layer or norm has to be called, and not its parameters read; empty if none has to."""
        modules: Any = self._modules  # attributes of nn.Module are slow
        layers, norms, slopes = modules["layers"]._modules, modules["norms"]._modules, modules["slopes"]
        if (
            all_plain(layers.values(), LINEAR)
            and (not norms or all_plain(norms.values(), NORM))
            and (not slopes._parameters or all_plain((slopes,), SLOPES))
        ):
            return ""
        parts = [(f"layers[{i}]", layer, LINEAR) for i, layer in enumerate(layers.values())]
        parts += [(f"norms[{i}]", norm, NORM) for i, norm in enumerate(norms.values())]
        return first_reason([*parts, ("slopes", slopes, SLOPES)])

    def unit(self) -> Unit:
        """The layers as they are now, with this module's options."""
        return Unit(
            linears=cast("list[nn.Linear]", list(self.layers)),
            activation=self.activation,
            slopes=list(self.slopes),
            norms=cast("list[nn.BatchNorm1d]", list(self.norms)),
            pads="zeros" if self.pads_in_norm else "none",
            negative_slope=self.negative_slope,
            normalize=self.normalize,
            scale=self.scale,
            blocks=self.blocks,
            dropout=self.dropout if self.training else 0.0,
            row_eps=self.row_eps,
            backend=self.backend,
        )

    def plain(self) -> tuple[Any, ...] | None:
        """Arguments of the compiled forward behind the layout; None where parameters have to be made."""
        activation, modules = self.activation, self._modules  # attributes of nn.Module take a microsecond each
        if (
            activation not in ACTIVATIONS
            or activation == "dice_row"
            or modules["norms"]
            or self.scale != 1.0
            or self.blocks != BLOCKS
            or (self.dropout and self.training)
        ):
            return None
        weights, biases = [], []
        for layer in modules["layers"]._modules.values():  # type: ignore[union-attr]
            parameters = layer._parameters  # type: ignore[union-attr]
            weight, bias = parameters.get("weight"), parameters.get("bias")
            if weight is None or bias is None:  # parametrised, or without a bias
                return None
            weights.append(weight)
            biases.append(bias)
        slopes = list(self.slopes) if activation == "prelu" else None
        codes = ACTIVATIONS.index(activation), NORMALIZERS.index(self.normalize)
        return weights, biases, slopes, *codes, 0.0, None, False, False

    @accepts_jagged("history")
    def forward(
        self,
        target: Tensor,
        history: Tensor,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
        pad_to: int | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Target [B, D] or [B, M, D] and history [B, L, D] or [N, D] to pooled, shaped like the target.

        `pad_to`: with `pads_in_norm`, the padded length behind a jagged history; L by default for a padded one.
        """
        if reason := self.called():
            plain_form("target_attention", self.backend, reason)
            layout = {"lengths": lengths, "mask": mask, "offsets": offsets}
            return plain.target_attention(self.unit(), target, history, layout, pad_to, return_weights)
        unit = self.plain() if not return_weights and is_direct(self.backend, target) else None
        if unit is not None:
            found = fast_path.forward(
                FORWARD.compiled, (target, history), (offsets, lengths, mask), unit, self, target, history
            )
            if found is not None:
                return found
        layout = {"lengths": lengths, "mask": mask, "offsets": offsets}
        return self.unit().attend(target, history, layout, pad_to, return_weights, fast=unit is None)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, normalize={self.normalize!r}, backend={self.backend!r}"
