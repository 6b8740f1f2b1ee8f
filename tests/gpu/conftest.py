"""The GPU kernels on a real GPU: `make test-gpu`. Each module skips itself where torch finds none."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "ops"))  # for dot_cases
sys.path.insert(0, str(Path(__file__).parent))  # for on_gpu
