"""Options that all backbones share, and checks of those that a backbone has of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass


@dataclass(frozen=True)
class BackboneOptions:
    """Arguments of every backbone.

    Attributes:
        n_items, n_users, n_contexts: table sizes.
        embedding_dim: width D of items, users and tokens.
        context_dim: width of the context (tab).
        tower_units: hidden layers of the MLP; may be empty, which leaves a linear model.
        fusion: "none", "bias" or "tapf": how polarity marks a history event, before the first layer.
        dropout: probability in the MLP, and behind attention and feed-forward layers.
        user_embedding: have a learned vector per user.
        sparse: sparse gradients for the item and user tables.
        backend: of the fused ops: "auto" or a name in `mixpol_kernels.backend.BACKENDS`. Self-attention is PyTorch's.
    """

    n_items: int
    n_users: int
    n_contexts: int
    _: KW_ONLY
    embedding_dim: int = 32
    context_dim: int = 8
    tower_units: Sequence[int] = (128, 64)
    fusion: str = "bias"
    dropout: float = 0.0
    user_embedding: bool = True
    sparse: bool = True
    backend: str = "auto"


def check_heads(width: int, heads: int, name: str = "embedding_dim") -> None:
    """Raises ValueError unless `heads` divides the width of the attention."""
    if heads < 1 or width % heads:
        raise ValueError(f"heads is {heads}, expected a divisor of {width} ({name}): change one of them")


def check_at_least(least: int, **values: int) -> None:
    """Raises ValueError for a value below `least`."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
