"""Compiles the staged kernels ahead of time for the units that people use, and reads what the compiler made of them.

    python benchmarks/gpu_staged.py             compile all, write benchmarks/GPU_STAGED.md
    python benchmarks/gpu_staged.py sm_90       print what one architecture gives, for the most demanding units

No GPU is needed: the launchers run on the CPU with launches recorded in place of made, so that what is compiled is what
they ask for. The compiler runs in a subprocess per architecture; TRITON_CACHE_DIR keeps its results.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPORT = Path(__file__).parent / "GPU_STAGED.md"
SOURCES = ("staged_kernels.py", "staged.py", "moments.py", "rows.py", "activations.py")
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")
# What every NVIDIA GPU from compute capability 8.0 on has for one program, and what a gfx942 has.
SHARED = {"gfx942": 64 * 1024}
SMALLEST = 99 * 1024
SPILLED = 16  # bytes: ptxas gives up a few registers of far fewer than it could have, for another block an SM
# D and units, activation, candidates, dropout, whether batch statistics too: defaults of frameworks, and wider ones.
Unit = tuple[int, tuple[int, ...], str, int, float, bool]
UNITS: tuple[Unit, ...] = (
    (8, (36,), "dice_row", 1, 0.0, True),
    (64, (80, 40), "dice", 1, 0.0, True),
    (256, (256, 128), "gelu", 3, 0.2, False),
)
MORE: tuple[Unit, ...] = (
    (16, (64,), "prelu", 1, 0.0, False),
    (64, (64,), "dice_row", 1, 0.1, False),
    (32, (200, 80), "sigmoid", 1, 0.0, False),
    (64, (256, 64), "relu", 1, 0.0, False),
    (128, (512, 256), "silu", 1, 0.0, False),
    (32, (256, 256, 256), "tanh", 1, 0.0, False),
)
_ELEMENTS = {"half": ("bfloat16", "highest"), "float32": ("float32", "highest"), "tf32x3": ("float32", "high")}
_MATRIX = r"mma\.sync|wgmma|tcgen05\.mma|v_mfma"


def elements(architecture: str) -> tuple[str, ...]:
    """What the launcher asks for; gfx942 multiplies float32 as it is."""
    return tuple(e for e in _ELEMENTS if architecture != "gfx942" or e != "tf32x3")


def _record() -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Launches of this process go to a list from here on."""
    from triton.runtime import jit

    launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append((self, args, kwargs))

    jit.JITFunction.run = run
    return launches


def _call(element: str, unit: Unit) -> None:
    """Attention, statistics of its last layer and, of one layer, Dice in training: both directions of each."""
    import torch

    from mixpol_kernels.ops.registry import Arguments
    from mixpol_kernels.ops.target_attention.triton import moments, staged, support
    from mixpol_kernels.ops.unit import ACTIVATIONS

    width, units, activation, candidates, dropout, statistics = unit
    dtype, precision = _ELEMENTS[element]
    torch.set_float32_matmul_precision(precision)
    support._known, support.fused = (lambda _: True), (lambda *_: False)
    users, length, kind = 8, 64, getattr(torch, dtype)

    def new(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=kind)

    rows = {"prelu": (), "dice": (3,), "dice_row": (2,)}.get(activation)
    widths = (4 * width, *units)
    target = new(users, width) if candidates == 1 else new(users, candidates, width)
    a = Arguments(
        target=target, history=new(users, length, width), offsets=None, lengths=None,
        mask=torch.ones(users, length, dtype=torch.bool),
        weights=[new(o, i) for i, o in zip(widths, units, strict=False)],
        biases=[new(o) for o in units], slopes=[] if rows is None else [new(*rows, o) for o in units],
        activation=ACTIVATIONS.index(activation), normalize=1, dropout=dropout,
        seed=torch.tensor([5]) if dropout else None, save_attention=True, save_bits=False, pad_to=-1,
    )  # fmt: skip
    gradients: dict[str, Any] = {"grad_pooled": target, "grad_attention": None}
    gradients["attention"] = torch.zeros(users, length, candidates)
    whole = a.but(weights=[*a.weights, new(1, units[-1])], biases=[*a.biases, new(1)])
    staged.forward(whole)
    staged.backward(whole.but(**gradients))
    if not statistics:
        return
    last = torch.zeros(units[-1])
    measured = a.but(slopes=a.slopes[:-1], dropout=0.0, pad_to=80)
    moments.statistics_forward(measured)
    moments.statistics_backward(measured.but(grad_mean=last, grad_variance=last, mean=last, mean_rest=last))
    if len(units) == 1:
        affine = {"alpha": last, "norm_weight": last, "norm_bias": last, "eps": 0.0, "pad_to": 80}
        moments.dice_forward(whole.but(**affine))
        moments.dice_backward(whole.but(**affine, **gradients, slopes=torch.zeros(6, units[0])))


def _source(launch: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> tuple[Any, dict[str, int]]:
    """A launch as the ahead-of-time compiler takes it, specialised as the launcher would."""
    from triton.compiler import ASTSource

    kernel, args, kwargs = launch
    given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    open_sizes = set(kernel.do_not_specialize or ())
    types = {"float32": "fp32", "bfloat16": "bf16", "int64": "i64", "int32": "i32", "bool": "i1"}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        name, value = parameter.name, given[parameter.name]
        fixed = name not in open_sizes
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and fixed):
            signature[name], constants[(i,)] = "constexpr", value
        elif isinstance(value, int):
            signature[name] = "i32"
            if fixed and value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "*" + types[str(value.dtype).removeprefix("torch.")]
            attributes[(i,)] = [["tt.divisibility", 16]]
    options = {name: kwargs[name] for name in ("num_warps", "num_stages") if name in kwargs}
    return ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes), options


def _facts(source: Any, options: dict[str, int], architecture: str) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget

    amd = architecture == "gfx942"
    number = 0 if amd else int(architecture.removeprefix("sm_"))
    target = GPUTarget("hip", "gfx942", 64) if amd else GPUTarget("cuda", number, 32)
    out = triton.compile(source, target=target, options=options)
    text = out.asm["amdgcn" if amd else "ptx"]
    facts = {"shared": out.metadata.shared, "matrix": bool(re.search(_MATRIX, text))}
    if amd:
        registers, spills = (re.findall(rf"\.{name}:\s+(\d+)", text)[0] for name in ("vgpr_count", "vgpr_spill_count"))
        return facts | {"registers": int(registers), "spills": int(spills)}
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(out.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = re.findall(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)[0]
    return facts | {"registers": int(registers), "spills": int(stack) + int(local)}


def work(architecture: str, wanted: list[list[Any]]) -> None:
    """The subprocess: a line of facts for each kernel that the units of `wanted` launch."""
    launches, seen = _record(), set()
    for element in elements(architecture):
        for width, units, *options_of_unit in wanted:
            launches.clear()
            _call(element, (width, tuple(units), *options_of_unit))
            for launch in launches:
                source, options = _source(launch)
                name = launch[0].__name__
                key = (name, str(source.signature), str(source.constants), str(source.attrs), str(options))
                if key in seen:
                    continue
                seen.add(key)
                unit = f"{width} : {' × '.join(map(str, units))}"
                try:
                    facts = _facts(source, options, architecture)
                except Exception as error:
                    facts = {"error": f"{type(error).__name__}: {str(error)[-200:]}"}
                print(json.dumps({"kernel": name, "element": element, "unit": unit, **facts}), flush=True)


def run(architecture: str, wanted: Any = UNITS) -> Iterator[dict[str, Any]]:
    """Facts about every kernel. A compiler that dies leaves a line that says so."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty:
        environment.setdefault("TRITON_CACHE_DIR", empty)
        command = [sys.executable, __file__, "--worker", architecture, json.dumps(wanted)]
        with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env=environment) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                yield json.loads(line)
        if worker.returncode:
            yield {"kernel": "?", "element": "?", "unit": "?", "error": f"the compiler exited with {worker.returncode}"}


def failures(architecture: str, facts: dict[str, Any]) -> list[str]:
    """What the gate says: four registers spilled at most, shared memory of the smallest GPU that the code runs on."""
    if "error" in facts:
        return [facts["error"]]
    most = SHARED.get(architecture, SMALLEST)
    lines = [f"{facts['spills']} bytes spilled"] if facts["spills"] > SPILLED else []
    return lines + ([f"{facts['shared']} bytes of shared memory of {most}"] if facts["shared"] > most else [])


def digest() -> str:
    """Of what the table depends on."""
    from mixpol_kernels.ops.target_attention import triton
    from mixpol_kernels.ops.triton import shared

    folder = Path(triton.__file__).parent
    sha = hashlib.sha256(repr((UNITS, MORE)).encode())
    for path in (*(folder / name for name in SOURCES), Path(shared.__file__)):
        sha.update(path.name.encode() + path.read_bytes())
    return sha.hexdigest()[:16]


def _named(wanted: Any) -> str:
    return ", ".join(f"{width} : {' × '.join(map(str, units))}" for width, units, *_ in wanted)


def report() -> int:
    """Writes the table: of each kernel the most that any unit takes; returns how many fail."""
    import triton

    lines = [
        "# What the compiler makes of the staged kernels",
        "",
        f"Written by `python benchmarks/gpu_staged.py` with Triton {triton.__version__}, without a GPU: facts about",
        "machine code, no timings. Each row is the most that any of the units takes, in registers a thread and bytes",
        f"of shared memory. D : units {_named(UNITS)}; on sm_90 also {_named(MORE)}.",
        f"Gate: at most {SPILLED} bytes spilled, and of shared memory {SMALLEST}, on gfx942 {SHARED['gfx942']}.",
        "",
        f"- Sources: `{digest()}`",
        "",
    ]  # fmt: skip
    bad = 0
    for architecture in ARCHITECTURES:
        rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for facts in run(architecture, [*UNITS, *MORE] if architecture == "sm_90" else UNITS):
            rows.setdefault((facts["kernel"], facts["element"]), []).append(facts)
            if wrong := failures(architecture, facts):
                print(architecture, facts, wrong, flush=True)
        lines += [f"## {architecture}", "", "| kernel | element | forms | registers | spills | shared | matrix |"]
        lines += ["|---|---|---:|---:|---:|---:|---|"]
        for (kernel, element), forms in sorted(rows.items()):
            wrong = sorted({line for facts in forms for line in failures(architecture, facts)})
            bad += bool(wrong)
            names = ("registers", "spills", "shared")
            numbers = " | ".join(str(max(facts.get(name, 0) for facts in forms)) for name in names)
            matrix = "yes" if any(facts.get("matrix") for facts in forms) else "–"
            row = f"| {kernel} | {element} | {len(forms)} | {numbers} | {matrix} |"
            lines.append(row[:-1] + f"**fails: {'; '.join(wrong)}** |" if wrong else row)
        lines.append("")
    REPORT.write_text("\n".join(lines))
    return bad


def main() -> int:
    """The command line."""
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], json.loads(sys.argv[3]))
        return 0
    if len(sys.argv) > 1:
        for facts in run(sys.argv[1]):
            print(facts, *failures(sys.argv[1], facts))
        return 0
    return 1 if report() else 0


if __name__ == "__main__":
    raise SystemExit(main())
