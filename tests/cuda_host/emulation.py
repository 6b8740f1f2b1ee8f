"""Builds the CUDA kernels for the CPU and runs them: what the launchers do on a GPU, through harness.cpp."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixpol_kernels.history import canonical
from mixpol_kernels.ops.unit import ACTIVATIONS, NORMALIZERS, ActivationUnit
from mixpol_kernels.testing.inputs import Case
from mixpol_kernels.testing.layouts import Placement

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMMON = ("-std=c++20", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off")
SANITIZERS = {
    "asan": ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "tsan": ("-O1", "-fsanitize=thread"),
}
ID_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
SHARED_LIMIT = 163 * 1024  # of a block on sm_80


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def build(source: str, sanitizer: str, *flags: str) -> Path:
    """Compiles a program of this folder with the scheduler; kept in build/cuda_host until a source changes."""
    sources = [*HERE.glob("*.h"), *HERE.glob("*.cpp"), *ROOT.glob("csrc/cuda/*.cuh"), *ROOT.glob("csrc/math/*.h")]
    text = "\0".join([source, sanitizer, *flags, compiler(), *(path.read_text() for path in sorted(sources))])
    folder = ROOT / "build" / "cuda_host"
    program = folder / f"{Path(source).stem}-{sanitizer}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    include = (f"-I{ROOT / 'csrc'}", f"-I{HERE}")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        scheduler, linked = Path(scratch) / "scheduler.o", Path(scratch) / "program"
        _compile(*COMMON, "-O2", *include, "-c", HERE / "cuda_host.cpp", "-o", scheduler)
        _compile(*COMMON, *SANITIZERS[sanitizer], *flags, *include, HERE / source, scheduler, "-o", linked)
        linked.replace(program)
    for old in folder.glob(f"{Path(source).stem}-{sanitizer}-*"):
        if old != program and not flags:
            old.unlink(missing_ok=True)
    return program


def _compile(*arguments: str | Path) -> None:
    command = [compiler(), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{' '.join(command)}\n{run.stderr}"


class RefusedError(RuntimeError):
    """A kernel refused its inputs, or its threads wait for ever; a GPU would print this and stop."""


def execute(program: Path, request: Mapping[str, Any]) -> dict[str, bytes]:
    """Runs the harness; anything that a sanitizer reports is an AssertionError."""
    scratch = Path(tempfile.mkdtemp(prefix="mixpol-cuda-host-"))
    try:
        (scratch / "request").write_bytes(b"".join(_entry(name, value) for name, value in request.items()))
        command = [program, scratch / "request", scratch / "result"]
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if run.returncode == 2 and run.stderr.startswith("refused: "):
            raise RefusedError(run.stderr.removeprefix("refused: ").strip())
        assert run.returncode == 0, run.stderr
        return _entries((scratch / "result").read_bytes())
    finally:
        shutil.rmtree(scratch)


def _entry(name: str, value: Any) -> bytes:
    if isinstance(value, Tensor):
        data = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    else:
        data = value.encode() if isinstance(value, str) else struct.pack("q", value)
    return struct.pack("q", len(name)) + name.encode() + struct.pack("q", len(data)) + data


def _entries(data: bytes) -> dict[str, bytes]:
    found, at = {}, 0

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        return data[at - count : at]

    while at < len(data):
        name = take(struct.unpack("q", take(8))[0]).decode()
        found[name] = take(struct.unpack("q", take(8))[0])
    return found


def tensor(data: bytes, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes of a result in a shape; -1 is a size that they tell."""
    if not data:
        return torch.empty([max(size, 0) for size in shape], dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(tuple(shape))


def rows(name: str, values: Tensor) -> dict[str, Any]:
    """Rows of floats at any stride: the memory that they span, from an address as aligned as theirs."""
    if values.stride(-1) != 1 and values.shape[-1] != 1:
        values = values.contiguous()
    lead = values.storage_offset() % 4
    extent = 1 + sum((n - 1) * s for n, s in zip(values.shape, values.stride(), strict=True)) if values.numel() else 0
    memory = torch.full((lead + extent,), torch.nan)
    memory[lead:] = values.as_strided((extent,), (1,))
    strides = {f"{name}.row_stride": values.stride(-2), f"{name}.user_stride": 0}
    if values.dim() == 3:
        strides[f"{name}.user_stride"] = values.stride(0)
    return {name: memory, f"{name}.lead": lead, **strides}


def ids(name: str, values: Tensor) -> dict[str, Any]:
    return {name: values, f"{name}.type": ID_TYPES.index(values.dtype)}


def history(shape: Sequence[int], users: int, arguments: Mapping[str, Tensor]) -> dict[str, Any]:
    index = [arguments.get(name) for name in ("offsets", "lengths", "mask")]
    found = dict(zip(("offsets", "lengths", "mask"), canonical(*index), strict=True))
    size: dict[str, Any] = {"users": users, "positions": shape[0] if len(shape) == 1 else shape[0] * shape[1]}
    if len(shape) == 2:
        size["length"] = shape[1]
    return size | {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Emulation:
    """The kernels in a program."""

    program: Path
    shared_limit: int = SHARED_LIMIT
    backwards: bool = False  # the order in which the scheduler runs the threads of a block

    def __call__(self, op: str, **request: Any) -> dict[str, bytes]:
        return execute(self.program, {"op": op, "backwards": int(self.backwards), **request})

    def attention(
        self, case: Case, arguments: Mapping[str, Any], *, save_attention: bool = False, save_bits: bool = False
    ) -> dict[str, Tensor]:
        """`target_attention` or `mixed_polarity_attention` with the arguments of the public function."""
        target = arguments["target"]
        width, users = target.shape[-1], target.shape[0]
        candidates = target.shape[1] if target.dim() == 3 else 1
        named = ("weights", "biases", "activation", "slopes", "scale", "blocks")
        unit = ActivationUnit(**{name: arguments[name] for name in named}).canonical(width)
        weights, biases, slopes, activation = unit.weights, unit.biases, unit.slopes, unit.activation
        tokens = arguments["history"] if case.config.has_tokens else arguments["item_ids"]
        shape = tokens.shape[: tokens.dim() - case.config.has_tokens]
        request = {
            **history(shape, users, arguments),
            "width": width,
            "candidates": candidates,
            "target": target,
            "activation": ACTIVATIONS.index(activation),
            "normalize": NORMALIZERS.index(arguments["normalize"]),
            "layers": len(weights) - 1,
            "save_attention": int(save_attention),
            "save_bits": int(save_bits),
            "shared_limit": self.shared_limit,
        }
        if case.config.has_tokens:
            request |= rows("history", tokens)
        else:
            table = arguments["item_table"]
            request |= ids("item_ids", tokens) | rows("item_table", table) | {"items": table.shape[0]}
            request |= self._fusion(arguments)
        for name, values in (("weights", weights), ("biases", biases), ("slopes", slopes)):
            request |= {f"{name}[{i}]": value for i, value in enumerate(values)}
        request |= {f"units[{i}]": weight.shape[0] for i, weight in enumerate(weights[:-1])}
        out = self("attention", **request)
        saved = (*shape, candidates)
        return {
            "pooled": tensor(out["pooled"], target.shape),
            "attention": tensor(out["attention"], saved if save_attention else (0,)),
            "bits": tensor(out["bits"], (*saved, (weights[0].shape[0] + 7) // 8) if save_bits else (0,), torch.uint8),
            "resident": tensor(out["resident"], (), torch.int64),
        }

    def polarity_fusion(self, arguments: Mapping[str, Any]) -> Tensor:
        target, tokens = arguments["target"], arguments["tokens"]
        out = self(
            "polarity_fusion", **history(tokens.shape[:-1], target.shape[0], arguments), **rows("tokens", tokens),
            **self._fusion(arguments), target=target, width=target.shape[-1], shared_limit=self.shared_limit,
        )  # fmt: skip
        return tensor(out["fused"], tokens.shape)

    def polarity_embedding(self, arguments: Mapping[str, Any]) -> Tensor:
        item_ids, table = arguments["item_ids"], arguments["item_table"]
        tables = rows("item_table", table) | rows("polarity_table", arguments["polarity_table"])
        request = self._lookup(item_ids, arguments) | ids("polarity", arguments["polarity"]) | tables
        request |= {"items": table.shape[0], "polarity_rows": arguments["polarity_table"].shape[0]}
        if arguments.get("extra_table") is not None:
            extra = arguments["extra_table"]
            request |= ids("extra_ids", arguments["extra_ids"]) | rows("extra_table", extra)
            request |= {"extra_rows": extra.shape[0]}
        out = self("polarity_embedding", **request, width=table.shape[1])
        return tensor(out["tokens"], (*item_ids.shape, table.shape[1]))

    def table_grad(
        self, item_ids: Tensor, grads: Tensor, table_rows: int, sparse: bool, arguments: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(unique ids, their rows), or without `sparse` (nothing, all rows)."""
        width = grads.shape[-1]
        request = self._lookup(item_ids, arguments) | rows("grad_tokens", grads)
        out = self("table_grad", **request, width=width, items=table_rows, sparse=int(sparse))
        return tensor(out["unique"], (-1,), torch.int64), tensor(out["grad"], (-1, width))

    def interleave(self, arguments: Mapping[str, Any], budget: int | None, n_negative: int | None) -> list[Tensor]:
        times = {name: arguments[f"{name}_times"] for name in ("positive", "negative")}
        offsets = {f"{name}_offsets": arguments[f"{name}_offsets"].long() for name in times}
        limits = {name: v for name, v in (("budget", budget), ("n_negative", n_negative)) if v is not None}
        out = self(
            f"interleave {str(times['positive'].dtype).removeprefix('torch.')}",
            positive_times=times["positive"], negative_times=times["negative"], **offsets, **limits,
            users=offsets["positive_offsets"].shape[0] - 1,
            positives=times["positive"].shape[0], negatives=times["negative"].shape[0],
        )  # fmt: skip
        types = {"source": torch.int64, "polarity": torch.uint8, "offsets": torch.int64}
        return [tensor(out[name], (-1,), dtype) for name, dtype in types.items()]

    @staticmethod
    def _lookup(item_ids: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """As the launchers read ids: in one dimension without offsets, every position is kept."""
        offsets = arguments.get("offsets")
        shape = (1, *item_ids.shape) if item_ids.dim() == 1 and offsets is None else tuple(item_ids.shape)
        users = shape[0] if offsets is None else offsets.shape[0] - 1
        return history(shape, users, arguments) | ids("item_ids", item_ids)

    @staticmethod
    def _fusion(arguments: Mapping[str, Any]) -> dict[str, Any]:
        if arguments["polarity_table"] is None:
            return {}
        table, gate = arguments["polarity_table"], arguments["gate"]
        sign = arguments.get("sign")
        request = ids("polarity", arguments["polarity"]) | {
            "polarity_table": table,
            "polarity_rows": table.shape[0],
            "sign": torch.ones(table.shape[0]) if sign is None else sign,
            "full_gate": int(bool(gate) and gate[0].shape[1] != table.shape[1]),
        }
        if arguments.get("extra_table") is not None:
            extra = arguments["extra_table"]
            request |= ids("extra_ids", arguments["extra_ids"]) | {"extra_table": extra, "extra_rows": extra.shape[0]}
        return request | {f"gate[{i}]": tensor for i, tensor in enumerate(gate)}

    def output(self, case: Case, arguments: Mapping[str, Any]) -> Tensor:
        """The result of the public function."""
        if case.config.op == "polarity_embedding":
            return self.polarity_embedding(arguments)
        if case.config.op == "polarity_fusion":
            return self.polarity_fusion(arguments)
        return self.attention(case, arguments)["pooled"]

    def outputs(self, case: Case, where: Placement, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """{"out": output in ragged form}."""
        out = self.output(case, case.arguments(where, dtype))
        return {"out": out if case.config.has_unit else where.gather(out)}
