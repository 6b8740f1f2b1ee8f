"""The shapes that benchmarks run at: the four main cases at every length, and what public libraries and logs have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

LENGTHS = (10, 50, 200, 1000, 10_000)
QUICK_LENGTHS = (50, 200)
# Users are fewer where histories are long: so many padded tokens at most, unless a shape says otherwise.
_TOKENS = 256 * 1000


@dataclass(frozen=True)
class Shape:
    """One op at one size. Kept lengths are uniform in 1 ... `length`; what an op does not have is ignored.

    Attributes:
        case: what it is a size of; rows of one case make one curve.
        op: "target_attention", "mixed_polarity_attention", "dot_target_attention", "polarity_embedding",
            "polarity_fusion" or "interleave".
        length, batch, width: L, B and D.
        hidden, activation, normalize: of the activation unit. "dice" is in training, pads in the statistics.
        heads, candidates: H and M of dot-product attention.
        items: rows of the table.
        source: where the sizes are from.
    """

    case: str
    op: str
    length: int
    batch: int = 256
    width: int = 64
    hidden: tuple[int, ...] = (64,)
    activation: str = "relu"
    normalize: str = "none"
    heads: int = 4
    candidates: int = 1
    items: int = 10_000
    source: str = ""

    @property
    def name(self) -> str:
        """Unique in SHAPES."""
        return f"{self.case}, L={self.length}"

    @property
    def has_unit(self) -> bool:
        """Whether the op has an activation unit."""
        return self.op in ("target_attention", "mixed_polarity_attention")

    def small(self) -> Shape:
        """Two users, few items, histories of 130 tokens at most: the same code in little time."""
        return replace(
            self, batch=2, length=min(self.length, 130), items=min(self.items, 50), candidates=min(self.candidates, 3)
        )


# The activation unit with FuxiCTR 2.3.10's default width and DIN's units [64]; the same with Dice; the whole pass from
# ids; FuxiCTR's MultiHeadTargetAttention at the width of LongCTR's configurations, with more heads than their two.
MAIN = (
    Shape("DIN ReLU", "target_attention", 0, source="FuxiCTR DIN_Attention"),
    Shape("DIN Dice in training", "target_attention", 0, activation="dice", source="FuxiCTR DIN"),
    Shape("TAPF + DIN from ids", "mixed_polarity_attention", 0),
    Shape("softmax heads", "dot_target_attention", 0, source="FuxiCTR MultiHeadTargetAttention"),
)


def main_shapes(lengths: Sequence[int] = LENGTHS, batch: int = 256) -> list[Shape]:
    """The four main cases at these lengths, with fewer users than `batch` where they would be too many tokens."""
    return [
        replace(shape, length=length, batch=max(1, min(batch, _TOKENS // length)))
        for shape in MAIN
        for length in lengths
    ]


def _other_shapes() -> list[Shape]:
    unit, dot = "target_attention", "dot_target_attention"
    return [
        Shape("polarity embedding", "polarity_embedding", 200),
        Shape("TAPF alone", "polarity_fusion", 200),
        Shape("interleave", "interleave", 200, batch=4096),
        Shape("one request", unit, 50, batch=1),
        Shape("DeepCTR-Torch (80, 40)", unit, 50, width=32, hidden=(80, 40), activation="sigmoid",
              source="DeepCTR-Torch 0.3.0 AttentionSequencePoolingLayer"),
        Shape("DeepCTR-Torch DIN", unit, 50, width=32, hidden=(64, 16), activation="dice", source="DeepCTR-Torch DIN"),
        Shape("RecBole DIN", unit, 50, hidden=(256, 256, 256), activation="sigmoid", source="RecBole 1.2.1 DIN"),
        Shape("TorchEasyRec DIN", unit, 100, hidden=(256, 64), normalize="softmax",
              source="TorchEasyRec DINEncoder, a softmax always"),
        Shape("KuaiVideo", unit, 100, width=128, hidden=(512, 256), source="BARS KuaiVideo_x1, B = 8192 there"),
        Shape("KuaiRand-1K", unit, 200, batch=64, width=224, hidden=(512, 256),
              source="LongCTR DIN_kuairand_1k_x1, B = 8192 there"),
        Shape("KuaiRand-1K", unit, 1000, batch=16, width=224, hidden=(512, 256), source="the same, B = 1024 there"),
        Shape("KuaiRand-1K", unit, 10_000, batch=2, width=224, hidden=(512, 256), source="the same, B = 128 there"),
        Shape("LongCTR top 50", dot, 50, heads=2, source="LongCTR SIM, ETA, SDIM: attention_dim 64, 2 heads, k = 50"),
        Shape("100 candidates", dot, 1000, batch=4, candidates=100),
    ]  # fmt: skip


SHAPES: dict[str, Shape] = {shape.name: shape for shape in (*main_shapes(), *_other_shapes())}
