"""The table of who runs what, against the registered ops and the page that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixpol_kernels import info
from mixpol_kernels.backend import BACKENDS, KERNELS

ROOT = Path(__file__).parent.parent
# The first op of each, in both libraries.
FORWARDS = {op: f"{op}_fwd" for op in KERNELS}
FORWARDS |= {"interleave": "interleave", "dot_target_attention": "dot_attention_fwd"}


def test_the_page_shows_it() -> None:
    assert info.coverage() in (ROOT / "docs/backends.md").read_text("utf-8")


@pytest.mark.parametrize("op", KERNELS)
def test_it_is_what_is_registered(op: str) -> None:
    name = FORWARDS[op]
    assert set(KERNELS[op]) < set(BACKENDS)
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"mixpol::{name}", "CPU") == ("cpu" in KERNELS[op])
    registered = hasattr(torch.ops.mixpol_triton, name)
    assert registered == ("triton" in KERNELS[op])
    backward = hasattr(torch.ops.mixpol, name.replace("_fwd", "_bwd")) and name.endswith("_fwd")
    assert KERNELS[op]["cpu"].backward == (backward or op == "polarity_embedding")  # whose backward is table_grad's


def test_cuda_sources_implement_it() -> None:
    source = (ROOT / "csrc/cuda/register.cu").read_text("utf-8")
    for op, name in FORWARDS.items():
        assert (f'"{name}"' in source) == ("cuda" in KERNELS[op]), op
