"""`ActivationUnit`: the layers and options of a DIN activation unit, checked and made canonical in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixpol_kernels import backend as backends
from mixpol_kernels.checks import check_choice, check_float, check_shape

ACTIVATIONS = ("relu", "prelu", "sigmoid", "silu", "tanh", "gelu", "dice", "dice_row")
PUBLIC_ACTIVATIONS = (*ACTIVATIONS, "leaky_relu")
NORMALIZERS = ("none", "softmax", "sigmoid")
BLOCKS = ("t", "x", "t-x", "t*x")
_SLOPE_ROWS: dict[str, tuple[int, ...]] = {"prelu": (), "dice": (3,), "dice_row": (2,)}
_SLOPE_WORDS = {"dice": "alpha, scale and shift", "dice_row": "alpha and epsilon"}


class ActivationUnit(NamedTuple):
    """A DIN activation unit: one to three hidden layers, an output layer, and what the scores become.

    The formula is in `mixpol_kernels.target_attention`, which takes these as keywords; the fused op of ids,
    `mixpol_kernels.mixed_polarity_attention`, takes the unit as one argument.

    Attributes:
        weights: hidden layers [H_1, len(blocks) D], [H_2, H_1], ..., then the output layer [1, H_last].
        biases: [H_1], ..., [1], one per weight.
        activation: of the hidden layers: "relu", "prelu", "leaky_relu", "sigmoid", "silu", "tanh", "gelu" (exact),
            "dice" or "dice_row".
        slopes: one per hidden layer: [H_i] for "prelu", [3, H_i] for "dice" (alpha, scale, shift), [2, H_i] for
            "dice_row" (alpha, epsilon); otherwise empty.
        negative_slope: of "leaky_relu".
        normalize: of the scores: "none", "softmax" or "sigmoid".
        scale: multiplies the scores before they are normalised.
        blocks: inputs of the first layer in order, some of "t", "x", "t-x", "t*x".
        dropout: probability that a hidden unit is set to 0 behind its activation.

    Example:
        >>> import torch, mixpol_kernels as mk
        >>> unit = mk.ActivationUnit([torch.randn(16, 32), torch.randn(1, 16)], [torch.zeros(16), torch.zeros(1)])
        >>> unit.activation, len(unit.weights)
        ('relu', 2)
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    activation: str = "relu"
    slopes: Sequence[Tensor] = ()
    negative_slope: float = 0.01
    normalize: str = "none"
    scale: float = 1.0
    blocks: Sequence[str] = BLOCKS
    dropout: float = 0.0

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Weights, biases, then slopes; `split_parameters` undoes it."""
        return (*self.weights, *self.biases, *self.slopes)

    @property
    def codes(self) -> tuple[int, int, float]:
        """Activation, normalisation and dropout as the ops take them, of the canonical form."""
        return ACTIVATIONS.index(self.activation), NORMALIZERS.index(self.normalize), self.dropout

    @property
    def keeps_bits(self) -> bool:
        """Whether the forward keeps a bit per unit of the last hidden layer, which spares the backward that layer.

        Up to 64 units, so that attention weights and bits stay within 12 bytes a token.
        """
        return self.activation == "relu" and self.weights[-2].shape[0] <= 64 and not self.dropout

    def canonical(self, width: int) -> ActivationUnit:
        """The unit as the ops know it: four blocks in the usual order, the scale in the output layer, no leaky_relu.

        Done on the parameters, which are small, so that no kernel has to know these options.
        """
        check_choice("activation", self.activation, PUBLIC_ACTIVATIONS)
        if self.activation != "leaky_relu" and self.scale == 1.0 and tuple(self.blocks) == BLOCKS:
            return self
        weights, biases = self.weights, self.biases
        if not weights:
            raise ValueError("weights has 0 entries; expected hidden layers and then the output layer")
        _check_pairs(weights, biases)
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):  # products would make floats of integers
            check_float(weights[0], "weights[0]", **{f"weights[{i}]": weight, f"biases[{i}]": bias})
        unit = self
        if self.activation == "leaky_relu":
            if len(self.slopes):
                raise ValueError(f"slopes has {len(self.slopes)} entries; leaky_relu takes none, but negative_slope")
            dtype, slope = weights[0].dtype, self.negative_slope
            if math.isfinite(slope) and abs(slope) > torch.finfo(dtype).max:
                raise ValueError(f"negative_slope was {slope}; expected a number that {dtype} can hold")
            slopes = [weight.new_full(weight.shape[:1], slope) for weight in weights[:-1]]
            unit = unit._replace(activation="prelu", slopes=slopes)
        if tuple(self.blocks) != BLOCKS:
            blocks = self.blocks
            if not blocks or len(set(blocks)) != len(blocks) or not set(blocks) <= set(BLOCKS):
                expected = ", ".join(map(repr, BLOCKS))
                raise ValueError(f"blocks was {tuple(blocks)}; expected some of {expected}, each once")
            shape = (*weights[0].shape[:1], len(blocks) * width)
            check_shape("weights[0]", weights[0], shape, "units, one D per block")
            given = dict(zip(blocks, weights[0].split(width, dim=1), strict=True))
            absent = weights[0].new_zeros(weights[0].shape[0], width)
            weights = [torch.cat([given.get(block, absent) for block in BLOCKS], dim=1), *weights[1:]]
        if self.scale != 1.0:
            weights, biases = [*weights[:-1], weights[-1] * self.scale], [*biases[:-1], biases[-1] * self.scale]
        return unit._replace(weights=weights, biases=biases, scale=1.0, blocks=BLOCKS)

    def check(self, target: Tensor) -> None:
        """Validates the canonical form against a target [..., D].

        Raises:
            ValueError: numbers of layers or shapes that do not fit, unknown options.
            TypeError: dtypes other than the target's.
        """
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("normalize", self.normalize, NORMALIZERS)
        layers = len(self.weights)
        if not 2 <= layers <= 4:
            raise ValueError(
                f"weights has {layers} entries; expected one to three hidden layers and then the output layer"
            )
        self.check_layers(target, layers - 1, 1)

    def check_layers(self, target: Tensor, activated: int, outputs: int | None) -> None:
        """Validates a chain of layers, `activated` with an activation; `outputs`: the last one's width, or None."""
        _check_pairs(self.weights, self.biases)
        layers, slopes = len(self.weights), self.slopes
        rows = _SLOPE_ROWS.get(self.activation)
        expected = 0 if rows is None else activated
        if len(slopes) != expected:
            raise ValueError(f"slopes has {len(slopes)} entries; activation={self.activation!r} expects {expected}")
        width, dtype, device = 4 * target.shape[-1], target.dtype, target.device
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if not weight.numel() and weight.dim() == 2 and not weight.shape[0]:
                raise ValueError(f"weights[{i}] has shape {list(weight.shape)}; expected at least one unit")
            out = outputs if outputs and i == layers - 1 else weight.shape[0] if weight.dim() == 2 else -1
            group = (weight, bias, slopes[i]) if i < len(slopes) else (weight, bias)
            for tensor in group:  # messages are made only when something is wrong: this runs in every call
                if tensor.dtype != dtype or tensor.device != device:
                    names = (f"weights[{i}]", f"biases[{i}]", f"slopes[{i}]")
                    check_float(target, "target", **dict(zip(names, group, strict=False)))
                shape = (out, width) if tensor is weight else (out,) if tensor is bias else (*(rows or ()), out)
                if tensor.shape != shape:
                    check_shape(f"weights[{i}]", weight, (out, width), "units, inputs; the first layer has 4 D")
                    check_shape(f"biases[{i}]", bias, (out,), "one per unit")
                    check_shape(f"slopes[{i}]", tensor, shape, _SLOPE_WORDS.get(self.activation, "one per unit"))
            width = out

    def cuda_refusal(self, target: Tensor) -> str:
        """Why the compiled CUDA forwards cannot take this unit; empty if they can."""
        if self.activation == "dice_row":
            return "it has no activation 'dice_row'; use backend='reference'"
        if self.dropout:
            return f"it has no dropout and got {self.dropout}; use backend='reference'"
        return backends.beyond_chip(target.shape[-1], *(weight.shape[0] for weight in self.weights[:-1]))

    def saved_bytes(self, tokens: int, new_seed: bool) -> int:
        """Bytes that the CPU form keeps for backward beyond its inputs, for `tokens` times candidates."""
        bits = (self.weights[-2].shape[0] + 7) // 8 if self.keeps_bits else 0
        return tokens * (4 + bits) + (8 if self.dropout and new_seed else 0)


def _check_pairs(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    if len(biases) != len(weights):
        raise ValueError(f"biases has {len(biases)} entries and weights {len(weights)}; expected one bias per weight")


def split_parameters(parameters: Sequence[Tensor], layers: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Undoes `ActivationUnit.parameters`: weights, biases, slopes."""
    return list(parameters[:layers]), list(parameters[layers : 2 * layers]), list(parameters[2 * layers :])


def check_target(target: Tensor) -> None:
    """[B, D] or [B, M, D]."""
    if target.dim() not in (2, 3):
        raise ValueError(f"target has shape {list(target.shape)}; expected [B, D] or [B, M, D]")


def with_candidates(target: Tensor) -> Tensor:
    """[B, D] as [B, 1, D], for the references; the compiled ops take both."""
    return target if target.dim() == 3 else target.unsqueeze(1)


def check_dropout(dropout: float, seed: Tensor | int | None) -> Tensor | None:
    """The seed as the ops take it, [1] int64 on the CPU; None without dropout or without a seed.

    A tensor rather than a number: compiled graphs then draw a new one in every call.
    """
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout was {dropout}; expected 0 <= dropout < 1")
    if not dropout or seed is None:
        return None
    if not isinstance(seed, Tensor):
        seed = torch.tensor([seed])
    if seed.dtype != torch.int64:
        raise TypeError(f"seed has dtype {seed.dtype}; expected int64")
    if seed.numel() != 1 or seed.device.type != "cpu":
        raise ValueError(f"seed has shape {list(seed.shape)} on {seed.device}; expected one value on the CPU")
    return seed


def draw_seed() -> Tensor:
    """A seed from torch's default generator: `torch.manual_seed` repeats it."""
    return torch.randint(2**63 - 1, (1,))


def attention_result(
    pooled: Tensor, attention: Any, target: Tensor, return_weights: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """Pooled, with the weights [..., M] if asked for: in the target's dtype, without M where the target has none."""
    if not return_weights:
        return pooled
    attention = attention.to(target.dtype)  # float32 for the backward
    return pooled, attention[..., 0] if target.dim() == 2 else attention
