"""scikit-build-core as this project's build backend, with words where it is not installed."""

from __future__ import annotations

import sys

try:
    from scikit_build_core.build import *  # noqa: F403
except ModuleNotFoundError as error:
    sys.exit(
        f"building mixpol_kernels without build isolation needs {error.name}, which is not installed. Run:\n"
        '  pip install "torch>=2.10" scikit-build-core cmake ninja && pip install --no-build-isolation .'
    )
