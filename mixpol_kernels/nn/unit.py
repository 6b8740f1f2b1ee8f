"""An activation unit as the parts of a module, whichever module they belong to, and attention by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mixpol_kernels.backend import is_direct
from mixpol_kernels.nn import fast_path
from mixpol_kernels.nn.statistics import needs_sync, synchronised, takes_batch, update
from mixpol_kernels.ops.target_attention._dice.api import dice_attention
from mixpol_kernels.ops.target_attention._statistics.api import unit_statistics
from mixpol_kernels.ops.target_attention.api import target_attention
from mixpol_kernels.ops.target_attention.autograd import FORWARD
from mixpol_kernels.ops.unit import ACTIVATIONS, BLOCKS, NORMALIZERS, draw_seed

Parameters = tuple[list[Tensor], list[Tensor], list[Tensor]]  # weights, biases, slopes


@dataclass(slots=True)  # made anew in every call: frozen would take three times as long
class Unit:
    """The layers of a DIN activation unit and what else the ops want to know.

    Attributes:
        linears: hidden layers, then the output layer.
        activation: of the hidden layers, as in `mixpol_kernels.target_attention`.
        slopes: [H_i] per hidden layer for "prelu" and "dice"; otherwise empty.
        norms: one per hidden layer where they are normalised, before the activation or inside of Dice; a norm in
            training mode takes the statistics of the batch and updates its own, see `statistics`.
        pads: how padded positions count in those statistics: "none", as "zeros", or "given": all of them, whatever they
            hold.
        row_eps: of "dice_row", whose slopes are one [1] or [H_i] per hidden layer.
        negative_slope, normalize, scale, blocks, dropout, backend: as in `mixpol_kernels.target_attention`.
    """

    linears: Sequence[nn.Linear]
    activation: str
    slopes: Sequence[Tensor] = ()
    norms: Sequence[nn.BatchNorm1d] = ()
    pads: str = "none"
    negative_slope: float = 0.01
    normalize: str = "none"
    scale: float = 1.0
    blocks: Sequence[str] = BLOCKS
    dropout: float = 0.0
    row_eps: float = 1e-3
    backend: str = "auto"

    @property
    def needs_statistics(self) -> bool:
        """Whether a call reads the statistics of its own batch."""
        return any(takes_batch(norm) for norm in self.norms)

    def attend(
        self,
        target: Tensor,
        history: Tensor,
        layout: Mapping[str, Tensor | None],
        pad_to: int | None = None,
        return_weights: bool = False,
        fast: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Target attention; `layout` has offsets, lengths and mask, `pad_to` the padded length behind offsets.

        `fast`: whether the fast path may be taken.
        """
        seed = None
        if self.needs_statistics:
            if target.is_meta:
                raise NotImplementedError(
                    "target is on the meta device, where there are no tokens to take batch statistics of; .eval() the "
                    "layer for its shapes, or move it: .to_empty(device=...), then load_state_dict or reset_parameters"
                )
            alone = len(self.norms) == 1 and not needs_sync(self.norms[0])
            if self.activation == "dice" and alone and self.pads != "given" and not self.dropout:
                return self._dice(target, history, layout, pad_to, return_weights)
            seed = draw_seed() if self.dropout else None  # one for the statistics and what they are for
            weights, biases, slopes = self._by_batch(target, history, layout, pad_to, seed)
        else:
            weights, biases, slopes = self.by_running_statistics()
            known = self.activation in ACTIVATIONS and self.scale == 1.0 and self.blocks == BLOCKS and not self.dropout
            if fast and known and not return_weights and is_direct(self.backend, target):
                codes = ACTIVATIONS.index(self.activation), NORMALIZERS.index(self.normalize)
                found = fast_path.forward(
                    FORWARD.compiled, (target, history),
                    (layout.get("offsets"), layout.get("lengths"), layout.get("mask")),
                    (weights, biases, slopes or None, *codes, 0.0, None, False, False), self._attend_by_name, target,
                    history,
                )  # fmt: skip
                if found is not None:
                    return found
        where: dict[str, Any] = {**self.options(), **layout}
        return target_attention(
            target, history, weights, biases, slopes=slopes, seed=seed, return_weights=return_weights,
            backend=self.backend, **where,
        )  # fmt: skip

    def _attend_by_name(self, target: Tensor, history: Tensor, **layout: Tensor | None) -> object:
        return self.attend(target, history, layout)

    def with_normalize(self, normalize: str) -> Unit:
        """The same unit with another normalisation of its scores."""
        return replace(self, normalize=normalize)

    def with_scale(self, scale: float) -> Unit:
        """The same unit with its scores multiplied before they are normalised."""
        return replace(self, scale=scale)

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `target_attention` beside the parameters."""
        return {
            "activation": self.activation,
            "negative_slope": self.negative_slope,
            "normalize": self.normalize,
            "scale": self.scale,
            "blocks": self.blocks,
            "dropout": self.dropout,
        }

    def parameters(self) -> Parameters:
        """Weights, biases and slopes before any normalisation."""
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        for linear in self.linears:
            weight, bias = linear.weight, linear.bias  # each a look-up in nn.Module
            weights.append(weight)
            biases.append(weight.new_zeros(linear.out_features) if bias is None else bias)
        if self.activation != "dice_row":
            return weights, biases, list(self.slopes)
        slopes = [
            torch.stack([slope.expand(bias.shape), torch.full_like(bias, self.row_eps)])
            for slope, bias in zip(self.slopes, biases[:-1], strict=True)
        ]
        return weights, biases, slopes

    def by_running_statistics(self) -> Parameters:
        """Weights, biases and slopes as the op takes them."""
        parameters = self.parameters()
        for i, norm in enumerate(self.norms):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            self._normalise(i, norm.running_mean, norm.running_var, parameters)
        return parameters

    def padded_length(self, history: Tensor, layout: Mapping[str, Tensor | None], pad_to: int | None) -> int | None:
        """The length that the statistics count every history with; None: its own."""
        if self.pads == "none":
            return None
        if pad_to is None and layout.get("offsets") is not None:
            raise ValueError("pad_to was None; expected the padded length: pads_in_norm counts it, offsets hide it")
        return history.shape[1] if pad_to is None else pad_to

    def _dice(
        self,
        target: Tensor,
        history: Tensor,
        layout: Mapping[str, Tensor | None],
        pad_to: int | None,
        return_weights: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One hidden layer with Dice by this batch's statistics, in one op; updates the running statistics."""
        weights, biases, (alpha,) = self.parameters()
        (norm,) = self.norms
        where: dict[str, Any] = dict(layout)
        found = dice_attention(
            target, history, weights, biases, alpha, norm_weight=norm.weight, norm_bias=norm.bias, eps=norm.eps,
            normalize=self.normalize, scale=self.scale, blocks=self.blocks,
            pad_to=self.padded_length(history, layout, pad_to), return_weights=return_weights, backend=self.backend,
            **where,
        )  # fmt: skip
        update(norm, found.mean, found.variance, found.rows)
        return found.pooled if found.attention is None else (found.pooled, found.attention)

    def _by_batch(
        self,
        target: Tensor,
        history: Tensor,
        layout: Mapping[str, Tensor | None],
        pad_to: int | None,
        seed: Tensor | None,
    ) -> Parameters:
        """As `by_running_statistics`, by this batch's where a norm trains; updates its running statistics."""
        counted: dict[str, Any] = {} if self.pads == "given" else dict(layout)
        length = None if self.pads == "given" else self.padded_length(history, layout, pad_to)
        parameters = weights, biases, slopes = self.parameters()
        for i, norm in enumerate(self.norms):
            if not takes_batch(norm):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                self._normalise(i, norm.running_mean, norm.running_var, parameters)
                continue
            found = unit_statistics(
                target, history, weights[: i + 1], biases[: i + 1], slopes=slopes[:i], activation=self.activation,
                negative_slope=self.negative_slope, blocks=self.blocks, dropout=self.dropout, seed=seed,
                pad_to=length, backend=self.backend, **counted,
            )  # fmt: skip
            mean, variance, rows = synchronised(norm, *found) if needs_sync(norm) else found
            self._normalise(i, mean, variance, parameters)
            update(norm, mean.detach(), variance.detach(), rows)
        return parameters

    def _normalise(self, i: int, mean: Tensor, variance: Tensor, parameters: Parameters) -> None:
        """Puts layer i's normalisation n(x) = scale * x + shift where the op has room for it."""
        weights, biases, slopes = parameters
        norm = self.norms[i]
        scale = torch.rsqrt(variance + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -mean * scale
        if norm.bias is not None:
            shift = shift + norm.bias
        if self.activation == "dice":
            slopes[i] = torch.stack([slopes[i], scale, shift])
        else:  # an affine map behind a linear layer is another linear layer
            weights[i] = weights[i] * scale.unsqueeze(1)
            biases[i] = biases[i] * scale + shift
