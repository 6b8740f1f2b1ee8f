"""How the compiled CPU kernels multiply bfloat16 tokens in this process."""

from __future__ import annotations

import os

from mixpol_kernels.library import library

# In pairs of bfloat16, so that results differ from those of float32 by more than their own rounding.
IN_PAIRS = library.isa() == "avx512_bf16" or os.environ.get("MIXPOL_EMULATE_BF16") == "1"
