"""`python -m mixpol_kernels.testing.schemas`: the signatures of all ops, as csrc/schemas.inc keeps them."""

from __future__ import annotations

import torch

from mixpol_kernels.library import NAMESPACE

HEADER = """\
// The signature of every op, one a line. Python declares them (mixpol_kernels/ops/*/autograd.py); this copy serves
// programs without Python (csrc/host.cpp), tells whether a compiled library is too old for the Python around it, and
// pins them: exported models call the ops by these signatures. Written by `make schemas`; a test compares.
"""


def signatures() -> list[str]:
    """`name(arguments) -> results` of every registered op, sorted."""
    names = {n.partition(".")[0] for n in torch._C._dispatch_get_all_op_names() if n.startswith(f"{NAMESPACE}::")}
    schemas = [str(s) for name in names for s in torch._C._jit_get_schemas_for_operator(name)]
    return sorted(s.removeprefix(f"{NAMESPACE}::") for s in schemas)


def text() -> str:
    """The whole file: one use of a macro per signature."""
    return HEADER + "".join(f'MIXPOL_SCHEMA("{signature}")\n' for signature in signatures())


def main() -> None:
    """Prints the file."""
    import mixpol_kernels  # noqa: F401, registers the ops

    print(text(), end="")


if __name__ == "__main__":
    main()
