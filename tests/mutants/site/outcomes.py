"""A pytest plugin: writes what happened, line by line, to the file that MIXPOL_OUTCOMES names.

Line by line, so that something is known of a process that crashes.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest


def _write(kind: str, text: str = "") -> None:
    with open(os.environ["MIXPOL_OUTCOMES"], "a") as file:
        file.write(f"{kind} {text}".rstrip().replace("\n", " ") + "\n")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write("broken", f"collecting {report.nodeid}: {_last_line(report.longreprtext)}")


def pytest_collection_finish(session: pytest.Session) -> None:
    root = Path(os.environ["MIXPOL_MUTANT_ROOT"]).resolve()
    for package in os.environ["MIXPOL_MUTANT_PACKAGES"].split(","):
        spec = importlib.util.find_spec(package)
        origin = spec.origin if spec else None
        if origin is None or not Path(origin).resolve().is_relative_to(root):
            _write("broken", f"{package} comes from {origin}, expected a file in {root}")


def pytest_runtest_call(item: pytest.Item) -> None:
    _write("call", item.nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed and report.when == "call":
        _write("caught", report.nodeid)
    elif report.failed:
        _write("broken", f"{report.when} of {report.nodeid}: {_last_line(report.longreprtext)}")
    elif report.when == "call":
        _write("skipped" if report.skipped else "passed", report.nodeid)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
