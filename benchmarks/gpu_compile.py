"""Compiles every Triton kernel and every shipped configuration ahead of time, and reads what the compiler made.

    python benchmarks/gpu_compile.py                  compile what changed, write benchmarks/GPU_COMPILE.md
    python benchmarks/gpu_compile.py --search sm_90   choose configurations: the first candidate that passes the gate
    python benchmarks/gpu_compile.py --check          exit 1 if GPU_COMPILE.md is of other sources

No GPU is needed. The compiler runs in subprocesses, which survive its assertions; TRITON_CACHE_DIR keeps its results.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpu_kernels import SMALL, VARIANTS, Job, compile_one

from mixpol_kernels.ops.dot_target_attention.triton import configs as dot
from mixpol_kernels.ops.polarity_fusion.triton import configs as fusion
from mixpol_kernels.ops.target_attention.triton import configs as attention
from mixpol_kernels.ops.triton import devices

REPORT = Path(__file__).parent / "GPU_COMPILE.md"
FOLDERS = {"target_attention": attention.FOLDER, "polarity_fusion": fusion.FOLDER, "dot_target_attention": dot.FOLDER}
ARCHITECTURES = devices.ARCHITECTURES
# Shared memory that one program can have, in bytes: CUDA C++ programming guide, table of technical specifications
# (163 KiB and 227 KiB a block); AMD CDNA 3 instruction set architecture (64 KiB of LDS).
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
# Tried in this order: tile, warps, stages, flush; by direction and whether the shape is larger than the op's first.
# Only the activation unit knows flush. IEEE products on NVIDIA need many registers.
CANDIDATES = {
    ("forward", False): [(64, 4, 3, 0), (64, 4, 2, 0), (32, 4, 2, 0), (32, 8, 1, 0)],
    ("forward", True): [(64, 4, 3, 0), (64, 8, 2, 0), (32, 4, 2, 0), (16, 8, 1, 0)],
    ("backward", False): [(64, 4, 2, 1), (32, 4, 2, 1), (32, 8, 1, 1), (32, 8, 1, 2), (16, 8, 1, 2)],
    ("backward", True): [(32, 8, 1, 2), (16, 8, 1, 2), (16, 4, 1, 2)],
}
IEEE_CANDIDATES = {
    ("forward", False): [(64, 8, 2, 0), (32, 8, 2, 0), (16, 8, 1, 0)],
    ("forward", True): [(32, 8, 2, 0), (16, 8, 1, 0)],
    ("backward", False): [(32, 8, 1, 1), (16, 8, 1, 1), (16, 8, 1, 2), (16, 8, 2, 1)],
    ("backward", True): [(16, 8, 1, 2)],
}
# 64 lanes a warp: four warps have 512 registers a lane.
AMD_CANDIDATES = {
    **CANDIDATES,
    ("backward", False): [(32, 4, 1, 1), (16, 4, 1, 1), (16, 4, 1, 2)],
    ("backward", True): [(16, 4, 1, 1), (16, 4, 1, 2)],
}
# Of `dot_target_attention`, whatever the element: a tile of 64 tokens is what Hopper's instructions take at once.
DOT_CANDIDATES = {
    "forward": [(64, 4, 3, 0), (64, 4, 2, 0), (32, 4, 2, 0), (16, 4, 1, 0), (32, 8, 1, 0)],
    "backward": [
        (64, 4, 2, 0), (64, 4, 1, 0), (64, 8, 1, 0), (32, 4, 2, 0), (16, 4, 1, 0), (32, 8, 1, 0), (16, 8, 1, 0)
    ],
}  # fmt: skip
Shape = tuple[int, tuple[int, ...]]


def elements(architecture: str, op: str) -> tuple[str, ...]:
    """Precision of float32 products: split but on AMD, whose matrix units take IEEE float32."""
    return tuple(element for element in devices.ELEMENTS if architecture != "gfx942" or element != "tf32x3")


def small_jobs(architecture: str) -> Iterator[Job]:
    """The kernels in SMALL."""
    for name in SMALL:
        config = devices.Config(tile=64, warps=1 if name.startswith("sum_runs") else 4, stages=1)
        yield Job(architecture, "either", "half", 64, (), name, config, "small")


def shapes(op: str) -> list[Shape]:
    """D and hidden units that configurations are made for."""
    if op == "target_attention":
        return list(attention.SHAPES)
    return [(width, ()) for width in (fusion if op == "polarity_fusion" else dot).WIDTHS]


def key(op: str, direction: str, element: str, shape: Shape) -> str:
    """The name of a configuration."""
    return attention.key(direction, element, *shape) if shape[1] else devices.width_key(direction, element, shape[0])


def shipped(op: str, architecture: str) -> dict[str, devices.Config]:
    """The configurations on file; none if there is no file."""
    return devices.shipped(FOLDERS[op], architecture) if (FOLDERS[op] / f"{architecture}.json").exists() else {}


def shipped_jobs(architecture: str, op: str = "target_attention") -> Iterator[Job]:
    """Every shipped configuration of an op in every variant."""
    for name, config in shipped(op, architecture).items():
        direction, element, shape = name.split("/")
        width, _, units = shape.partition(":")
        for variant in VARIANTS[op]:
            many = tuple(map(int, units.split("x"))) if units else ()
            job = Job(architecture, direction, element, int(width), many, variant, config, op)
            if not special(job):
                yield job
            elif job.width == dot.WIDTHS[0] and (element != "tf32x3" or not variant.startswith("top_k")):
                yield dataclasses.replace(job, config=dot.SPECIAL[direction][element])


def special(job: Job) -> bool:
    """Whether the op launches the variant with one configuration for all."""
    return job.op == "dot_target_attention" and VARIANTS[job.op][job.variant][0] >= 2


def failures(job: Job, found: dict[str, Any]) -> list[str]:
    """Objections of the gate to a result of `run`."""
    if "error" in found:
        return [found["error"]]
    lines = []
    if found["spills"]:
        lines.append(f"{found['spills']} spilled")
    if found["shared"] > SHARED[job.architecture]:
        lines.append(f"{found['shared']} bytes of shared memory, the chip has {SHARED[job.architecture]}")
    if job.planned and not found["matrix"]:
        lines.append("no matrix instructions")
    if found["widest"] < 16 and job.op != "small":
        lines.append(f"loads of at most {found['widest']} bytes")
    return lines


def run(jobs: Iterable[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Results in order. A compiler that dies takes one job with it."""
    pending = list(jobs)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    while pending:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty:
            cache = environment.get("TRITON_CACHE_DIR", empty)
            worker = subprocess.Popen(
                [sys.executable, __file__, "--worker"], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, env={**environment, "TRITON_CACHE_DIR": cache},
            )  # fmt: skip
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("".join(json.dumps(dataclasses.asdict(job)) + "\n" for job in pending))
            worker.stdin.close()
            done = 0
            try:
                for line in worker.stdout:
                    yield pending[done], json.loads(line)
                    done += 1
            finally:  # whoever asked may have seen enough
                if done < len(pending) and worker.poll() is None:
                    worker.kill()
                worker.wait()
        if done < len(pending):
            yield pending[done], {"error": f"the compiler exited with {worker.returncode}"}
            done += 1
        pending = pending[done:]


def work() -> None:
    """The subprocess: a job per line of stdin, a result per line of stdout."""
    for line in sys.stdin:
        fields = json.loads(line)
        fields["config"] = devices.Config(**fields["config"])
        fields["units"] = tuple(fields["units"])
        try:
            found = compile_one(Job(**fields))
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {str(error)[-200:]}"}
        print(json.dumps(found), flush=True)


def digest(op: str) -> str:
    """Of everything that the op's rows of the table depend on."""
    if op == "small":
        shared, unit = Path(devices.__file__).parent, FOLDERS["target_attention"].parent
        paths = [shared / f"{name}.py" for name in ("shared", "parts", "table_grad", "ids")]
        folders = [shared.parent / op / "triton" for op in ("polarity_embedding", "interleave")]
        paths += [folder / "kernels.py" for folder in (*folders, unit)]
    else:
        folder = FOLDERS[op].parent
        paths = [folder.parent.parent / "triton" / "shared.py", *sorted(folder.glob("activations.py"))]
        paths += [folder.parent.parent / "triton" / ("ids.py" if op == "polarity_fusion" else "parts.py")]
        paths += [folder / "kernels.py", *sorted(folder.glob("configs/*.json"))]
    sha = hashlib.sha256(repr(SMALL if op == "small" else VARIANTS[op]).encode())
    for path in paths:
        sha.update(path.name.encode() + path.read_bytes())
    return sha.hexdigest()[:16]


def sources() -> list[str]:
    """A line for each op that says which sources its rows are of."""
    return [f"- Sources of {op}: `{digest(op)}`" for op in (*FOLDERS, "small")]


def search(architecture: str, op: str) -> None:
    """Adds to a file of configurations: per shape, the first candidate that passes in every variant."""
    path = FOLDERS[op] / f"{architecture}.json"
    chosen: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for element, direction, shape in itertools.product(elements(architecture, op), devices.DIRECTIONS, shapes(op)):
        name = key(op, direction, element, shape)
        if name in chosen:
            continue
        table = AMD_CANDIDATES if architecture == "gfx942" else IEEE_CANDIDATES if element == "float32" else CANDIDATES
        candidates = table[direction, shape != shapes(op)[0]]
        if op == "dot_target_attention":
            candidates = DOT_CANDIDATES[direction]
        tries = [devices.Config(*candidate) for candidate in candidates]
        if op != "target_attention":
            tries = [dataclasses.replace(config, flush=0) for config in tries]
        # What another architecture took is likely to do here too, but on AMD.
        others = [shipped(op, a) for a in ARCHITECTURES if architecture != "gfx942"]
        tries = [entries[name] for entries in others if name in entries] + tries
        chosen[name] = None
        for config in dict.fromkeys(tries):
            jobs = [Job(architecture, direction, element, *shape, v, config, op) for v in reversed(VARIANTS[op])]
            jobs = [job for job in jobs if not special(job)]
            bad = next(filter(None, (failures(job, found) for job, found in run(jobs))), [])
            print(architecture, name, dataclasses.astuple(config), "; ".join(bad) or "passes", flush=True)
            if not bad:
                chosen[name] = dataclasses.asdict(config)
                break
        rows = [f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted(chosen.items())]
        path.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def report(architectures: Iterable[str]) -> int:
    """Compiles what is shipped and not in the table, and writes it; returns the number of rows that fail the gate."""
    import triton

    bad = 0
    lines = [
        "# What the compiler makes of the Triton kernels",
        "",
        f"Written by `python benchmarks/gpu_compile.py` with Triton {triton.__version__}, without a GPU: facts about",
        "machine code, no timings. Every shipped configuration, compiled ahead of time in several variants per",
        "op: what models use most, and the most demanding. Gate: no spills, shared memory within the chip,",
        "matrix instructions where planned (not for IEEE float32 on NVIDIA, which has none), 16-byte loads.",
        "`tests/triton_kernels/test_aot.py` compiles a sample again and checks that this table is of these sources.",
        "Configuration: tokens a tile / warps / stages / flush; registers per thread; shared memory and widest load in",
        "bytes. Small: kernels without configurations of their own, which multiply no matrices.",
        "",
        *sources(),
        "",
    ]  # fmt: skip
    before = REPORT.read_text() if REPORT.exists() else ""
    for architecture, op in itertools.product(architectures, (*FOLDERS, "small")):
        section = f"## {op}, {architecture}\n"
        if f"`{digest(op)}`" in before and section in before:  # what was compiled once need not be again
            kept = section + before.partition(section)[2].partition("\n## ")[0].rstrip("\n") + "\n"
            lines += kept.split("\n")
            bad += kept.count("**fails")
            continue
        lines += [
            f"## {op}, {architecture}",
            "",
            "| kernel | D : units | variant | configuration | registers | spills | shared | matrix | load |",
            "|---|---|---|---|---:|---:|---:|---|---:|",
        ]
        for job, found in run(small_jobs(architecture) if op == "small" else shipped_jobs(architecture, op)):
            wrong = failures(job, found)
            bad += bool(wrong)
            c = job.config
            shape = f"{job.width} : {' × '.join(map(str, job.units))}" if job.units else str(job.width)
            config = f"{c.tile} / {c.warps} / {c.stages} / {c.flush}"
            row = [f"{job.direction} {job.element}", shape, job.variant, config]
            if "error" in found:
                row += [found["error"].replace("\n", " "), "", "", "", ""]
            else:
                row += [str(found["registers"]), str(found["spills"]), str(found["shared"])]
                row += [", ".join(found["matrix"]) or "–", str(found["widest"])]
            lines.append("| " + " | ".join(row) + (f" **fails: {'; '.join(wrong)}** |" if wrong else " |"))
            print(lines[-1], flush=True)
        if op == "small":
            lines.append("")
            continue
        wanted = itertools.product(elements(architecture, op), devices.DIRECTIONS, shapes(op))
        names = [key(op, direction, element, shape) for element, direction, shape in wanted]
        missing = [name for name in names if name not in shipped(op, architecture)]
        refused = ", ".join(missing) or "nothing"
        lines += ["", f"Refused, since no candidate passed in one of the directions: {refused}.", ""]
    REPORT.write_text("\n".join(lines))
    return bad


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", metavar="ARCHITECTURE", choices=ARCHITECTURES)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
    elif options.search:
        for op in FOLDERS:
            search(options.search, op)
    elif options.check:
        if any(line not in REPORT.read_text() for line in sources()):
            print("GPU_COMPILE.md is of other sources: run `python benchmarks/gpu_compile.py`")
            return 1
    else:
        return 1 if report(ARCHITECTURES) else 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
