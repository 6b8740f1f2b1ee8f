"""Every op's signature is pinned in csrc/schemas.inc: exported models and programs without Python rely on them."""

from __future__ import annotations

import re
from pathlib import Path

from mixpol_kernels.ops.unit import ACTIVATIONS
from mixpol_kernels.testing import schemas

PINNED = Path(__file__).parents[2] / "csrc" / "schemas.inc"


def test_signatures_are_the_pinned_ones() -> None:
    """The message says what changed and how to pin a change that is meant."""
    pinned = re.findall(r'^MIXPOL_SCHEMA\("(.*)"\)$', PINNED.read_text(), re.MULTILINE)
    now = schemas.signatures()
    changes = [f"  gone: {s}" for s in pinned if s not in now] + [f"  new:  {s}" for s in now if s not in pinned]
    assert not changes, (
        "signatures of ops changed; models that were exported with those that are gone no longer run.\n"
        + "\n".join(changes)
        + "\nIf that is meant: `make schemas`, rebuild, and say so in CHANGELOG.md."
    )


def test_the_file_is_what_the_command_writes() -> None:
    assert PINNED.read_text() == schemas.text(), "csrc/schemas.inc was edited by hand; run `make schemas`"


def test_activations_have_the_same_codes_in_cpp() -> None:
    listed = re.search(r"#define MIXPOL_ACTIVATIONS\(X\)(.*)", (PINNED.parent / "math" / "activations.h").read_text())
    assert listed
    assert tuple(re.findall(r"X\((\w+)\)", listed[1])) == ACTIVATIONS
