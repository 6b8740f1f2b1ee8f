"""Imports point one way, without circles: `mixpol_models, drop_in -> nn -> ops -> triton`, CONTRIBUTING.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"mixpol_kernels": "mixpol_kernels", "mixpol_models": "python/mixpol_models", "benchmarks": "benchmarks"}
# From the bottom up: a module imports from its own layer and from those below. The longest prefix counts.
LAYERS = [
    ("mixpol_kernels.",),
    ("mixpol_kernels.ops.",),
    ("mixpol_kernels.nn",),
    ("mixpol_kernels",),
    ("mixpol_kernels.info", "mixpol_kernels.testing", "mixpol_kernels.drop_in"),
    ("mixpol_models",),
    ("mixpol_models.data",),
    ("mixpol_models.backbones",),
    ("mixpol_models.training", "mixpol_models.sharded"),
    ("mixpol_models.bench",),
    ("mixpol_models.experiments", "mixpol_models.pnfrec"),
    ("mixpol_models.cli", "mixpol_models.__main__"),
    ("benchmarks",),
]
RANKS = {prefix: rank for rank, prefixes in enumerate(LAYERS) for prefix in prefixes}
# An op that is made of others: its kernels' launchers call theirs.
COMPOSITIONS = {"mixed_polarity_attention"}

Arrow = tuple[str, str]


def sources() -> dict[str, Path]:
    """Every module and its file."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = file
    return found


def imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All that run, those in functions included; not those under `if TYPE_CHECKING`."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    checked = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    for child in node.orelse if checked else ast.iter_child_nodes(node):
        yield from imports(child)


@pytest.fixture(scope="module")
def arrows() -> set[Arrow]:
    """(importing, imported) modules of ours. `from package import module` imports the module."""
    modules, found = sources(), set()
    for name, file in modules.items():
        for node in imports(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                assert node.level == 0, f"{file} has a relative import"
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [target if target in modules else str(node.module) for target in inside]
            found |= {(name, target) for target in targets if target in modules and target != name}
    return found


def rank(module: str) -> int:
    """The layer of a module."""
    return RANKS[max((prefix for prefix in RANKS if module.startswith(prefix)), key=len)]


def op_of(module: str) -> str:
    """The op whose folder a module is in; empty for the others."""
    parts = module.split(".")
    return (
        parts[2] if parts[:2] == ["mixpol_kernels", "ops"] and (ROOT / "/".join(parts[:3]) / "api.py").is_file() else ""
    )


def is_backend(module: str) -> bool:
    return ".triton." in f"{module}."


def test_every_layer_has_modules() -> None:
    modules = sources()
    assert all(any(module.startswith(prefix) for module in modules) for prefix in RANKS)
    assert {op_of(module) for module in modules} >= COMPOSITIONS | {"target_attention", "interleave", ""}


def test_no_circles(arrows: set[Arrow]) -> None:
    follows: dict[str, set[str]] = {}
    for importing, imported in arrows:
        follows.setdefault(importing, set()).add(imported)
    # A module that imports nothing that is left is in no circle.
    while free := [module for module, targets in follows.items() if not targets & follows.keys()]:
        for module in free:
            del follows[module]
    circle = [min(follows)] if follows else []
    while circle and circle[-1] not in circle[:-1]:
        circle.append(min(follows[circle[-1]] & follows.keys()))
    assert not circle, circle[circle.index(circle[-1]) :]


def test_no_arrow_points_up(arrows: set[Arrow]) -> None:
    assert not sorted((a, b) for a, b in arrows if rank(a) < rank(b))


def test_kernels_stand_alone(arrows: set[Arrow]) -> None:
    """Nobody outside of an op imports its backend, but a composition; a backend imports no api and no autograd."""
    kernels = {(a, b) for a, b in arrows if a.startswith("mixpol_kernels")}
    others = {(a, b) for a, b in kernels if is_backend(b) and op_of(b) not in ("", op_of(a))}
    assert not sorted((a, b) for a, b in others if op_of(a) not in COMPOSITIONS)
    assert not sorted((a, b) for a, b in kernels if is_backend(a) and b.endswith((".api", ".autograd")))


def test_references_import_references_only(arrows: set[Arrow]) -> None:
    wrong = [(a, b) for a, b in arrows if a.endswith(".reference") and op_of(a) and not b.endswith(".reference")]
    assert not sorted(wrong)
