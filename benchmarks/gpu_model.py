"""What is predicted of target attention on a GPU: writes benchmarks/GPU_MODEL.md, from gpu_replay's record and bytes.

python benchmarks/gpu_model.py
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

RECORD = Path(__file__).parent / "gpu_replay.json"
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
        "### From ids: one kernel or two launches, bytes per token",
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


def paragraph(text: str) -> list[str]:
    """A text of several source lines, wrapped."""
    return [*textwrap.wrap(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False), ""]


def replayed() -> list[str]:
    """What `gpu_replay` recorded: its error where there are measurements, and the kernels as they are now."""
    record = json.loads(RECORD.read_text())
    measured = record["measured"]
    ratios = [row["predicted"] / row["measured"] for row in measured.values()]
    rms = (sum((ratio - 1) ** 2 for ratio in ratios) / len(ratios)) ** 0.5
    lines = [
        "## The fused kernels on an H200: a replay of their machine code",
        *paragraph("""
            `make gpu-replay` compiles what the ops launch, follows the integers of whole blocks to every address
            and trip count, counts wavefronts, sectors and cache misses, and issues the instructions of one SM cycle
            by cycle by the compiler's own stall counts and barriers (`benchmarks/gpu_replay/`). Of the SMs it
            replays the one that ends last, at 1.98 GHz. A launch costs 3 µs more, which is all that is assumed
            about it.
        """),
        *paragraph(f"""
            **Its error**, on the {len(ratios)} kernel times [measured](../docs/results/h200.md) that are Triton's,
            with the machine code that ran there: {min(ratios):.2f} to {max(ratios):.2f} of the measurement,
            {rms:.1%} rms. One set of latencies and rates, fitted to them, stands behind all rows.
        """),
        "| kernel | L | measured, µs | predicted, µs | predicted / measured |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in measured.items():
        kernel, _, length = name.partition(", ")
        ratio = row["predicted"] / row["measured"]
        lines.append(f"| {kernel} | {int(length)} | {row['measured']:,.0f} | {row['predicted']:,.0f} | {ratio:.2f} |")
    lines += [
        "",
        *paragraph("""
            **It knows** bank conflicts, occupancy, the pipelines that the compiler made, spills, instruction
            counts, barriers, L1 as the cache of one SM, the tail of uneven blocks. **It does not know** misses of
            the instruction cache, conflicts of register banks, contention of SMs for L2 beyond an equal share, what
            an earlier kernel left in L2, clocks that fall under load, or what the host does between launches; warps
            of a block are taken to go the same way, so the CUDA C++ kernels are not replayed. One chip, one width,
            one activation and one version of Triton were measured. Believe ratios between variants of one kernel,
            and differences above 10 %.
        """),
        *paragraph("""
            Kernels of now, predicted: D = H = 64, one hidden layer, ReLU, 4,096 users with lengths uniform in 1 …
            L, µs at L = 50 / 200 / 1000, the sums of parameter gradients included.
        """),
        "| products | Triton | forward | backward |",
        "|---|---|---:|---:|",
    ]
    named = {"half": "bfloat16", "tf32x3": "float32 in three TensorFloat32 products", "float32": "float32, IEEE"}
    for title in sorted(title for title in record if title.startswith("times, ")):
        for element, products in named.items():
            found = [record[title][f"{element}, {length:4}"] for length in (50, 200, 1000)]
            times = [" / ".join(f"{row[way]:,.0f}" for row in found) for way in ("forward", "backward")]
            lines.append(f"| {products} | {title.partition(', ')[2]} | {times[0]} | {times[1]} |")
    return [*lines, ""]


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
        "# Target attention on a GPU: what is predicted",
        "",
        *paragraph("""
            **Predictions**, not [measurements](../docs/results/h200.md). `python benchmarks/gpu_model.py` writes
            this page: the fused kernels from `gpu_replay.json`, the comparison with other forms and chips from
            formulas of its own.
        """),
        *replayed(),
        "## Other forms, other chips: a model of the traffic",
        *paragraph(f"""
            Bytes to and from device memory and operations of the matrix products, D = H = 64, one hidden layer;
            data-sheet peaks. Assumed: {MEMORY:.0%} of the memory rate, {MATRIX:.0%} of the matrix rate in the fused
            kernels and {LIBRARY:.0%} in library products, a level-two cache {CACHE:g} times as fast as memory.
            Launch costs, occupancy and latency are not in it: where the replay has a time, that one counts, and
            what is left to this table are the ratios.
        """),
        "### Per token",
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
        "### Time: 4096 users, lengths uniform up to L, so that half of a padded batch is kept",
        "Ratios are forward and backward together, over the fused form's; the other forms compute the pads too.",
        "",
        "| chip | element | L | forward, µs | backward, µs | × concat, eager | × refactored, compile |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for length in (50, 200, 1000):
        lines += rows(d, h, length)
    REPORT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
