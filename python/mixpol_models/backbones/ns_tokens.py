"""Non-sequential features as tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixpol_kernels.checks import check_choice
from mixpol_models.backbones.options import check_at_least

FORMS = ("split", "groups")


class NSTokens(nn.Module):
    """The two tokenisers of OneTrans (arXiv 2510.26104): NS = split(MLP([f_1 ; ... ; f_G]), T), or NS_g = MLP_g(f_g).

    The MLPs have one hidden layer as wide as their output, with ReLU; their depth is not public.

    Args:
        widths: of the features f_1 ... f_G.
        dim: width D of a token.
        form: "split" (Auto-Split) or "groups" (a token a feature).
        n_tokens: T of "split"; "groups" has G.

    Attributes:
        n_tokens: T, or G.
    """

    def __init__(self, widths: Sequence[int], dim: int, form: str = "split", n_tokens: int = 4) -> None:
        super().__init__()
        check_choice("ns_form", form, FORMS)
        check_at_least(1, ns_tokens=n_tokens)
        self.dim = dim
        self.form = form
        self.n_tokens = n_tokens if form == "split" else len(widths)
        shapes = [(sum(widths), n_tokens * dim)] if form == "split" else [(width, dim) for width in widths]
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs))
            for inputs, outputs in shapes
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """G features [B, width] to tokens [B, T, D]."""
        if self.form == "split":
            return self.mlps[0](torch.cat(list(features), dim=-1)).unflatten(-1, (self.n_tokens, self.dim))
        return torch.stack([mlp(part) for mlp, part in zip(self.mlps, features, strict=True)], dim=1)
