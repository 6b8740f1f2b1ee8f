"""`python tests/mutants`: see `runner.py`."""

from __future__ import annotations

import sys

from faults import FAULTS
from runner import HERE, main

sys.exit(main(HERE.parents[1], FAULTS))
