"""Ahead-of-time compilation of one Triton kernel: its signature, its variants, and what the compiler made of it."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from mixpol_kernels.ops.dot_target_attention.triton import configs as dot
from mixpol_kernels.ops.polarity_fusion.triton import configs as fusion
from mixpol_kernels.ops.triton import devices

MATRIX = {"sm_80": r"mma\.sync", "sm_90": r"wgmma|mma\.sync", "sm_100": r"tcgen05\.mma|mma\.sync", "gfx942": r"v_mfma"}
# As the kernels number them, (activation, normalize, layout), (gate, 1 an extra table + 2 ids, layout) or
# (0, 1 the second kernel: weights, Σ w · dw, 2 with top_k, 3 rows of three times the columns; several blocks of rows;
# layout): what models use most, and the most demanding. Layouts 4 and 6: parts of long histories, jagged and with a
# mask.
PARTS = 4
VARIANTS: dict[str, dict[str, tuple[int, int, int]]] = {
    "dot_target_attention": {
        "one block, jagged": (0, 0, 0),
        "blocks, mask": (0, 1, 2),
        "blocks, parts, mask": (0, 1, 6),
        "wide rows, blocks, parts, mask": (3, 1, 6),
        "top_k, blocks, mask": (2, 1, 2),
        "second kernel, blocks, parts, mask": (1, 1, 6),
    },
    "target_attention": {
        "relu, none, jagged": (0, 0, 0),
        "dice, softmax, mask": (6, 1, 2),
        "dice, softmax, parts, mask": (6, 1, 6),
    },
    "polarity_fusion": {
        "product, jagged": (1, 0, 0),
        "product, ids, jagged": (1, 2, 0),
        "full, extra, mask": (2, 1, 2),
    },
}
# Kernels without matrix products or configurations of their own, and the layout of each.
SMALL = {
    "sum_slabs": 0,
    "combine_kernel": 0,
    "combine_kernel, softmax": 0,
    "rescale_kernel": 6,
    "mean_kernel": 6,
    "sum_runs": 0,
    "sum_runs, left": 0,
    "sum_few": 0,
    "look-up": 1,
    "check_kernel": 0,
    "plan_kernel": 0,
    "merge_kernel": 0,
}
# Not in the table, but compiled by the tests: M candidates, with a gradient of the weights and rows 16 elements apart.
CANDIDATES_OF_ONE_HISTORY = "prelu, sigmoid, lengths, candidates"


@dataclasses.dataclass(frozen=True)
class Job:
    """One compilation."""

    architecture: str
    direction: str
    element: str
    width: int
    units: tuple[int, ...]
    variant: str
    config: devices.Config
    op: str = "target_attention"

    @property
    def planned(self) -> bool:
        """Whether matrix instructions are meant to be used: not for IEEE float32 on NVIDIA, which has none."""
        return self.op != "small" and (self.element != "float32" or self.architecture == "gfx942")


def compile_one(job: Job) -> dict[str, Any]:
    """Registers, spills, shared memory, matrix instructions and widest load of one kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    describe = {
        "target_attention": _unit, "polarity_fusion": _fusion, "dot_target_attention": _dot, "small": _small
    }[job.op]  # fmt: skip
    kernel, constants, types = describe(job)
    names = kernel.arg_names
    constants |= {"ALIGN": 16, "TILE": job.config.tile, "PRECISION": "tf32x3" if job.element == "tf32x3" else "ieee"}
    layout = constants["LAYOUT"]
    cut, layout = layout >= PARTS, layout % PARTS
    given = {0, 1, layout} if cut else {layout}
    constants |= {"LAYOUT": layout, "PARTS": cut}
    constants |= {name: None for i, name in enumerate(("offsets", "lengths", "mask")) if i not in given}
    constants = {name: value for name, value in constants.items() if name in names}
    types = dict.fromkeys(("length", "user_units", "row_units", "users", "slab_stride"), "i32") | types
    types |= {"offsets": "*i64", "lengths": "*i32" if cut else "*i64", "mask": "*i1", "slabs": "*fp32"}
    element = "*bf16" if job.element == "half" else "*fp32"
    signature = {name: "constexpr" if name in constants else types.get(name, element) for name in names}
    # What the launcher specialises: tensors are aligned, and slabs are 16 floats times something apart.
    aligned = [i for i, name in enumerate(names) if signature[name][0] == "*" or name == "slab_stride"]
    source = ASTSource(
        kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    amd = job.architecture == "gfx942"
    number = 0 if amd else int(job.architecture.removeprefix("sm_"))
    target = GPUTarget("hip", "gfx942", 64) if amd else GPUTarget("cuda", number, 32)
    out = triton.compile(
        source, target=target, options={"num_warps": job.config.warps, "num_stages": job.config.stages}
    )
    text = out.asm["amdgcn" if amd else "ptx"]
    found: dict[str, Any] = {
        "shared": out.metadata.shared,
        "matrix": sorted(set(re.findall(MATRIX[job.architecture], text))),
    }
    if amd:
        found["registers"] = int(re.findall(r"\.vgpr_count:\s+(\d+)", text)[0])
        found["spills"] = int(re.findall(r"\.vgpr_spill_count:\s+(\d+)", text)[0])
        found["widest"] = max((4 * int(n) for n in re.findall(r"(?:global|buffer)_load_dwordx(\d)", text)), default=4)
        return found
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(out.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack, local = re.findall(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)[0]
    found |= {"registers": int(registers), "spills": int(stack) + int(local)}
    vectors = [int(n) * int(bits) // 8 for n, bits in re.findall(r"ld\.global\S*\.v(\d)\.b(\d+)", text)]
    copies = [int(size) for size in re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?, (?:0x)?(\d+)", text)]
    found["widest"] = max([*vectors, *copies, 0])
    return found


def _unit(job: Job) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """Kernel, constants and argument types of `target_attention`."""
    from mixpol_kernels.ops.target_attention.triton import kernels, launch

    several = job.variant == CANDIDATES_OF_ONE_HISTORY
    activation, normalize, layout = (1, 2, 1) if several else VARIANTS[job.op][job.variant]
    constants: dict[str, Any] = launch.sizes(job.width, job.units)
    constants |= {"ACT": activation, "NORM": normalize, "LAYOUT": layout}
    constants |= {"row_units": 1} if several else {"candidates": 1}  # Triton compiles for the integer 1
    for i in (1, 2, 3):
        if i > len(job.units):
            constants |= {f"w{i}": None, f"b{i}": None}
        if i > len(job.units) or activation not in (1, 6):
            constants[f"s{i}"] = None
    types = {"candidates": "i32", "attention": "*fp32", "grad_attention": "*fp32", "stats": "*fp32", "means": "*fp32"}
    types |= {"grad_history": "*fp32"} if several else {}
    if layout < PARTS:
        constants |= {"stats": None, "means": None}
    else:
        types |= {"pooled": "*fp32", "grad_target": "*fp32"}
    if job.direction == "forward":
        return kernels.forward_kernel, constants | {"SAVE": True}, types
    constants |= {"WEIGHTS": several, "ADD": several, "FLUSH": job.config.flush}
    return kernels.backward_kernel, constants | ({} if several else {"grad_attention": None}), types


def _fusion(job: Job) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """Kernel, constants and argument types of `polarity_fusion`."""
    from mixpol_kernels.ops.polarity_fusion.triton import kernels

    gate, extra, layout = VARIANTS[job.op][job.variant]
    constants: dict[str, Any] = {"D": job.width, "BD": devices.block(job.width), "GATE": gate, "LAYOUT": layout}
    constants |= {"EXTRA": extra == 1, "ITEMS": extra == 2} | ({} if extra == 2 else {"items": None})
    constants |= {} if extra == 1 else {"extra_ids": None, "extra_table": None}
    types = dict.fromkeys(("items", "polarity", "extra_ids", "reports"), "*i64")
    types |= dict.fromkeys(("table_rows", "polarities", "extras"), "i32")
    types |= {"grad_tokens": "*fp32"} if extra == 2 else {}
    if job.direction == "forward":
        return kernels.forward_kernel, constants, types
    constants.pop("extra_table", None)
    return kernels.backward_kernel, constants | {"ROWS": fusion.ROWS}, types


def _dot(job: Job) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """Kernel, constants and argument types of `dot_target_attention`."""
    from mixpol_kernels.ops.dot_target_attention.triton import kernels

    kind, blocks, layout = VARIANTS[job.op][job.variant]
    second, width = kind == 1, 3 * job.width if kind == 3 else job.width
    constants: dict[str, Any] = {"W": width, "BW": devices.block(job.width), "ROWS": dot.ROWS, "LAYOUT": layout}
    constants |= {"ADD": bool(blocks), "TOP": kind == 2}
    constants |= {} if blocks else {"groups": 1}  # Triton compiles for the integer 1
    types = {"groups": "i32", "rows": "i32", "top_k": "i32", "stats": "*fp32", "means": "*fp32"}
    types |= {"grad_history": "*fp32"} if blocks else {}
    if layout < PARTS:
        constants["means"] = None
    else:
        types |= {"pooled": "*fp32", "grad_queries": "*fp32"}
    if job.direction == "forward":
        return kernels.weights_kernel if second else kernels.forward_kernel, constants, types
    return kernels.mean_kernel if second else kernels.backward_kernel, constants, types


def _small(job: Job) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """Kernel, constants and argument types of what is in SMALL."""
    from mixpol_kernels.ops.target_attention.triton import kernels, launch
    from mixpol_kernels.ops.triton import parts, shared

    name, _, softmax = job.variant.partition(", ")
    if name in ("sum_runs", "sum_few", "look-up", "check_kernel", "plan_kernel", "merge_kernel"):
        return _of_ids(job)
    kernel = kernels.mean_kernel if name == "mean_kernel" else getattr(parts if hasattr(parts, name) else shared, name)
    constants: dict[str, Any] = {"LAYOUT": SMALL[job.variant], "D": 64, "BD": 64, "WEIGHTS": True}
    constants |= {"W": 64, "BW": 64, "SOFTMAX": bool(softmax)}
    constants |= {"stats": None, "merged": None} if job.variant == "combine_kernel" else {}
    constants |= {"ROWS": launch.SUM_ROWS, "COLUMNS": launch.SUM_COLUMNS} if name == "sum_slabs" else {}
    floats = ("attention", "grad_attention", "stats", "merged", "means", "totals", "slabs", "sums")
    types = dict.fromkeys(floats, "*fp32") | dict.fromkeys(("first", "users"), "*i64")
    return kernel, constants, types | dict.fromkeys(("candidates", "rows", "columns", "stride"), "i32")


def _of_ids(job: Job) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """Kernel, constants and argument types of table gradients, look-ups and merges."""
    from mixpol_kernels.ops.interleave.triton import kernels as merge
    from mixpol_kernels.ops.polarity_embedding.triton import kernels as embedding
    from mixpol_kernels.ops.triton import table_grad

    left = job.variant.endswith("left")
    kernel = {
        "sum_runs": table_grad.sum_runs, "sum_few": table_grad.sum_few, "look-up": embedding.forward_kernel,
        "check_kernel": merge.check_kernel, "plan_kernel": merge.plan_kernel, "merge_kernel": merge.merge_kernel,
    }[job.variant.partition(", ")[0]]  # fmt: skip
    constants: dict[str, Any] = {"LAYOUT": SMALL[job.variant], "D": 64, "BD": 64, "SORTED": not left, "EXTRA": True}
    constants |= {"RUN": table_grad.RUN, "ARGUMENT": 4, "LIMITED": True, "SHARE": False}
    constants |= {"order": None} if left else {}
    types = dict.fromkeys(("table_rows", "stride", "items", "polarities", "extras", *merge.INTEGERS), "i32")
    types |= dict.fromkeys(("item_units", "polarity_units", "extra_units"), "i32")
    types |= dict.fromkeys(("keys", "left_keys"), "*i32") | dict.fromkeys(("sums", "left", "slabs"), "*fp32")
    types |= dict.fromkeys(("item_ids", "polarity", "extra_ids", "order", "reports", "at", "taken", "counts"), "*i64")
    types |= dict.fromkeys(("source", "times", "positive_at", "negative_at"), "*i64")
    types |= dict.fromkeys(("positive_times", "negative_times"), "*i64")
    types |= {"rows": "*fp32"} if left else {}
    return kernel, constants, types
