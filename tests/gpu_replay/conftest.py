"""benchmarks/gpu_replay as a package. Its tests need no GPU, but Triton's compiler."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks"), str(Path(__file__).parent)]
