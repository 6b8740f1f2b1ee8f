"""A traffic model of target attention on a GPU: writes benchmarks/GPU_MODEL.md. Predictions; nothing here was measured.

python benchmarks/gpu_model.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REPORT = Path(__file__).parent / "GPU_MODEL.md"


@dataclass(frozen=True)
class Chip:
    """Peaks per second of a data sheet (NVIDIA A100 80 GB SXM, H100 SXM; dense matrix rates)."""

    name: str
    memory: float
    matrix: dict[str, float]


CHIPS = (
    Chip("A100", 2.039e12, {"bfloat16": 312e12, "tf32x3": 156e12 / 3, "float32": 19.5e12}),
    Chip("H100", 3.35e12, {"bfloat16": 989e12, "tf32x3": 494e12 / 3, "float32": 67e12}),
)
# Assumed shares of the peaks, and of what the level-two cache moves as a multiple of memory.
MEMORY, MATRIX, LIBRARY, CACHE = 0.8, 0.35, 0.7, 2.0
BYTES = {"bfloat16": 2, "tf32x3": 4, "float32": 4}


@dataclass(frozen=True)
class Cost:
    """Per token of a pass, and per target."""

    bytes: float
    operations: float
    target_cache_bytes: float = 0

    def seconds(self, chip: Chip, element: str, tokens: float, share: float) -> float:
        """Of one target with `tokens` tokens; memory and matrix units overlap, what each target repeats does not."""
        memory = tokens * self.bytes / (MEMORY * chip.memory)
        matrix = tokens * self.operations / (share * chip.matrix[element])
        return max(memory, matrix) + self.target_cache_bytes / (CACHE * MEMORY * chip.memory)


def fused(d: int, h: int, e: int) -> tuple[Cost, Cost]:
    """Forward: a token read, its weight written; G(t) reads the four blocks of W from the cache.

    Backward: token and weight read, gradient written; three products; G(t) again, three blocks of W for the target's
    gradient, and three sums [H, D] read and written in the program's slab, in the cache.
    """
    blocks = d * h * e
    return (
        Cost(d * e + 4, 2 * d * h, 4 * blocks),
        Cost(2 * d * e + 4, 6 * d * h, 7 * blocks + 3 * 8 * d * h),
    )


def concatenated(d: int, h: int, e: int) -> tuple[Cost, Cost]:
    """Plain PyTorch, op by op: t - x, t * x, cat, linear, activation, output, pooling; and autograd's backward."""
    forward = 2 * d + 2 * d + 7 * d + (4 * d + h) + 2 * h + h + d
    # pooling 2 D; output H; activation 3 H; layer: H read, 4 D written, H + 4 D read; t - x 2 D; t * x 5 D;
    # sums over tokens 3 D; three additions of gradients of x, 9 D
    backward = 2 * d + h + 3 * h + (h + 4 * d) + (h + 4 * d) + 2 * d + 5 * d + 3 * d + 9 * d
    return Cost(forward * e, 8 * d * h), Cost(backward * e, 16 * d * h)


def refactored(d: int, h: int, e: int) -> tuple[Cost, Cost]:
    """x · G(t) as a batched product, everything element-wise fused by torch.compile."""
    forward = (d + h) + h + d
    backward = d + 2 * h + (h + d) + (h + d) + 2 * d
    blocks = d * h * e
    return Cost(forward * e, 2 * d * h, 6 * blocks), Cost(backward * e, 4 * d * h, 8 * blocks)


FORMS = {
    "fused": (fused, MATRIX),
    "concat, eager": (concatenated, LIBRARY),
    "refactored, compile": (refactored, LIBRARY),
}


def from_ids(d: int) -> list[str]:
    """The bytes a token of `mixed_polarity_attention`: two launches a direction, beside one kernel that does both.

    An id and a polarity are 8 bytes, a weight 4; a looked-up row's gradient is float32, written, and read by the sums.
    Two launches: row read, token written and read again; in the backward the same once more, then its gradient written
    and read, and the row read for the gate.
    """
    lines = [
        "## From ids: one kernel or two launches, bytes per token",
        "| form | element | forward | backward | both |",
        "|---|---|---:|---:|---:|",
    ]
    for element in ("bfloat16", "float32"):
        row = d * BYTES[element]
        for name, forward, backward in (
            ("one kernel", row + 20, row + 20 + 8 * d),
            ("two launches", 3 * row + 20, 6 * row + 36 + 8 * d),
        ):
            lines.append(f"| {name} | {element} | {forward:,} | {backward:,} | {forward + backward:,} |")
    return [
        *lines,
        "",
        "One kernel would move less than half. The package has two launches all the same: in the backward either part",
        "alone takes 222 to 255 of the 255 registers of a thread (half, D = 64, sm_80, GPU_COMPILE.md), and both would",
        "hold two tables [D, D] and their sums at once. The eager form writes the looked-up and the fused tokens too,",
        "then what the first table counts. Serving has one kernel: the compiled CUDA forward.",
        "",
    ]


def rows(d: int, h: int, length: int) -> list[str]:
    """Forward and backward of 4096 users with `length` tokens at most, uniform: half of a padded batch is kept."""
    lines = []
    for chip in CHIPS:
        for element in BYTES:
            micros = {}
            for name, (costs, share) in FORMS.items():
                tokens = length / 2 if name == "fused" else length  # the others compute the pads
                both = [c.seconds(chip, element, tokens, share) for c in costs(d, h, BYTES[element])]
                micros[name] = [4096e6 * s for s in both]
            ours = micros["fused"]
            ratios = [f"{sum(micros[name]) / sum(ours):.1f}" for name in FORMS if name != "fused"]
            lines.append(
                f"| {chip.name} | {element} | {length} | {ours[0]:.0f} | {ours[1]:.0f} | " + " | ".join(ratios) + " |"
            )
    return lines


def main() -> None:
    """Writes the file."""
    d = h = 64
    lines = [
        "# Target attention on a GPU: a model of its traffic",
        "",
        "**Predictions**, not [measurements](../docs/results/h200.md). `python benchmarks/gpu_model.py` writes it and",
        "holds every formula. Bytes to and from device memory and operations of the matrix products, D = H = 64, one",
        f"hidden layer; data-sheet peaks. Assumed: {MEMORY:.0%} of the memory rate, {MATRIX:.0%} of the matrix rate in",
        f"the fused kernels and {LIBRARY:.0%} in library products, a level-two cache {CACHE:g} times as fast as",
        "memory. Launch costs, occupancy and latency are not in it.",
        "",
        "## Per token",
        "| form | element | forward: bytes, operations | backward: bytes, operations | cache bytes per target |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, (costs, _) in FORMS.items():
        for element in ("bfloat16", "float32"):
            f, b = costs(d, h, BYTES[element])
            lines.append(
                f"| {name} | {element} | {f.bytes:,.0f}, {f.operations:,.0f} | {b.bytes:,.0f}, {b.operations:,.0f} | "
                f"{f.target_cache_bytes:,.0f} + {b.target_cache_bytes:,.0f} |"
            )
    lines += [
        "",
        "With softmax the fused backward reads the history twice (Σ w · dw first), the second time mostly from cache.",
        "",
        *from_ids(d),
        "## Predicted time: 4096 users, lengths uniform up to L, so that half of a padded batch is kept",
        "Ratios are forward and backward together, over the fused form's; the other forms compute the pads too.",
        "",
        "| chip | element | L | forward, µs | backward, µs | × concat, eager | × refactored, compile |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for length in (50, 200, 1000):
        lines += rows(d, h, length)
    lines += [
        "",
        "What to look at first where a GPU is: whether IEEE float32 (no matrix instructions) is as slow as predicted",
        "beside tf32x3; and the slab of parameter sums, which per target moves more bytes through the cache than a",
        "history of 200 tokens moves through memory in bfloat16.",
        "",
    ]  # fmt: skip
    REPORT.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
