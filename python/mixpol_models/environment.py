"""How threads wait and in which pages memory comes: read once, when torch is loaded, so set before it is imported.

    from mixpol_models.environment import prepare

    prepare()
    import torch

GNU's OpenMP, which torch runs on, lets the threads of a finished parallel region spin. Beside another busy process the
one that is waited for loses its core to those that wait, and a step of two threads takes several times as long. A
bounded spin costs a few percent on a quiet machine. docs/performance.md has the figures.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

SPIN = "GOMP_SPINCOUNT"  # rounds until a waiting thread gives its core away
POLICY = "OMP_WAIT_POLICY"  # OpenMP's own word for it, which the spin count would overrule
PAGES = "THP_MEM_ALLOC_ENABLE"  # torch's own: large tensors in huge pages
DEFAULTS = {SPIN: "10000", PAGES: "1"}


def unset(environment: Mapping[str, str]) -> dict[str, str]:
    """Those of DEFAULTS that the user has not decided, here or by OMP_WAIT_POLICY."""
    decided = {*environment, *([SPIN] if POLICY in environment else [])}
    return {name: value for name, value in DEFAULTS.items() if name not in decided}


def prepare() -> str:
    """Sets what is unset, for this process and those that it starts. Whatever the user has set stays.

    Returns:
        What cannot take effect in this process, and why; also printed, to standard error. Empty if all does.
    """
    missing = unset(os.environ)
    os.environ.update(missing)
    if not missing or "torch" not in sys.modules:
        return ""
    settings = " ".join(f"{name}={value}" for name, value in missing.items())
    words = f"{settings} does not take effect in this process: torch is imported already; set it before"
    print(words, file=sys.stderr)
    return words
