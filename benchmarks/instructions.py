"""Instructions that the CPU kernels take at small fixed shapes, counted by callgrind: a guard that no noise moves.

    python benchmarks/instructions.py            count, and compare with benchmarks/instructions.json
    python benchmarks/instructions.py --write    count, and write the file

A time on a shared machine cannot show a loss of three percent; a count can. It does not see caches, memory or clock:
`mixpol bench --compare` does. The levels are base and avx2: valgrind does not know AVX-512. Counts are those of a
compiler, so that the file names it and is compared only with what the same compiler made. Built with CMakeLists.txt's
flags where the editable package was (build/Release), so that little is built twice, else in build/instructions.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "instructions.json"
BUILD, PACKAGE = ROOT / "build" / "instructions", ROOT / "build" / "Release"
LEVELS = ("base", "avx2")
TOLERANCE = 0.03
REFRESH = "refresh it with `make instructions`"


class CannotCountError(RuntimeError):
    """This machine cannot count, or its counts are no others' to compare with."""


@dataclass(frozen=True)
class Counts:
    """Instructions by "level/case/kernel", and the compiler that the kernels are from."""

    compiler: str
    instructions: Mapping[str, int]

    @classmethod
    def read(cls, path: Path = TABLE) -> Counts:
        """The counts on file."""
        document = json.loads(path.read_text(encoding="utf-8"))
        return cls(document["compiler"], document["instructions"])

    def write(self, path: Path = TABLE) -> None:
        """Puts the counts on file."""
        document = {"compiler": self.compiler, "instructions": dict(self.instructions)}
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def compare(counted: Counts, expected: Counts, tolerance: float = TOLERANCE) -> list[str]:
    """One line for each kernel that takes more or fewer instructions than on file, or is on one side only.

    Fewer is a fault too: the file would let the gain be lost again.

    Raises:
        CannotCountError: the compilers differ.
    """
    if counted.compiler != expected.compiler:
        raise CannotCountError(
            f"{TABLE.name} has the counts of {expected.compiler}, here is {counted.compiler}; "
            f"to compare with it, {REFRESH} before your change"
        )
    faults = []
    for name in sorted(counted.instructions.keys() | expected.instructions.keys()):
        now, before = counted.instructions.get(name), expected.instructions.get(name)
        if now is None or before is None:
            faults.append(f"{name} is {'not counted any more' if now is None else 'not on file'}; {REFRESH}")
        elif abs(now - before) > tolerance * before:
            faults.append(
                f"{name} takes {now:,} instructions, {100 * (now / before - 1):+.1f} % of {before:,} on file; if that "
                f"is meant, {REFRESH}"
            )
    return faults


def count() -> Counts:
    """Builds the kernels and counts.

    Raises:
        CannotCountError: valgrind, its headers, cmake or ninja is missing.
        RuntimeError: a build or the run failed.
    """
    missing = [name for name in ("valgrind", "cmake", "ninja") if not _tool(name)]
    if missing:
        raise CannotCountError(f"{missing[0]} was not found; counting instructions needs it")
    program, compiler = _build()
    with tempfile.TemporaryDirectory(prefix="mixpol-instructions-") as scratch:
        options = ["--tool=callgrind", "--collect-atstart=no", f"--callgrind-out-file={scratch}/out"]
        _run("valgrind", *options, str(program))
        found = {}
        for path in sorted(Path(scratch).glob("out.*"), key=lambda path: int(path.suffix[1:])):
            text = path.read_text(encoding="utf-8")
            name = re.search(r"^desc: Trigger: Client Request: (.+)$", text, re.MULTILINE)
            total = re.search(r"^(?:summary|totals): (\d+)$", text, re.MULTILINE)
            if name and total:
                found[name[1]] = int(total[1])
    if not found:
        raise RuntimeError("callgrind wrote no counts")
    return Counts(compiler, found)


def _build() -> tuple[Path, str]:
    """The program, and which compiler built it."""
    BUILD.mkdir(parents=True, exist_ok=True)
    folder = PACKAGE if (PACKAGE / "build.ninja").exists() else BUILD
    if not (folder / "build.ninja").exists():
        configure = ("-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release")
        _run("cmake", *configure, f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}")
    _run("cmake", "--build", str(folder), "--target", *(f"kernels_{level}" for level in LEVELS))
    cache = (folder / "CMakeCache.txt").read_text(encoding="utf-8")
    found = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.+)$", cache, re.MULTILINE)
    assert found, "CMake always has a compiler"
    compiler, program = found[1], BUILD / "instructions"
    objects = [str(path) for level in LEVELS for path in (folder / f"CMakeFiles/kernels_{level}.dir").rglob("*.o")]
    driver = Path(__file__).with_suffix(".cpp")
    header = subprocess.run(
        [compiler, "-x", "c++", "-E", "-", "-o", os.devnull],
        input="#include <valgrind/callgrind.h>\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    if header.returncode:
        raise CannotCountError("valgrind/callgrind.h was not found; counting instructions needs valgrind's headers")
    _run(compiler, "-std=c++20", "-O1", f"-I{ROOT / 'csrc'}", str(driver), *objects, "-o", str(program))
    return program, re.sub(r"^c\+\+ ", "g++ ", _run(compiler, "--version").splitlines()[0])  # the same by another name


def _tool(name: str) -> str | None:
    """A program of this environment, or of the machine."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _run(program: str, *arguments: str) -> str:
    command = [_tool(program) or program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    """Counts; writes the file or compares. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the file")
    options = parser.parse_args()
    counted = count()
    if options.write:
        counted.write()
        print(f"{TABLE}: {len(counted.instructions)} kernels, {counted.compiler}")
        return 0
    faults = compare(counted, Counts.read())
    print("\n".join(faults) or f"{len(counted.instructions)} kernels as on file")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
