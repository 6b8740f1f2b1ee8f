"""`python tests/mutants`: see `runner.py`."""

from __future__ import annotations

import signal
import sys

from faults import FAULTS
from runner import HERE, main

signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the copies are removed
sys.exit(main(HERE.parents[1], FAULTS))
