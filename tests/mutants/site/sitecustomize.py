"""In the environment of `runner.py`, child processes included: the packages come from the copy that PYTHONPATH names.

An editable install puts a finder of its own in front of that path.
"""

from __future__ import annotations

import sys

sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(getattr(finder, "__module__", ""))]
