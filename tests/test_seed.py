"""One seed a run: every process draws from it, and what a test draws hangs on it and on the test's name alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

CONFTEST = Path(__file__).with_name("conftest.py")
PROBE = """
import json, os, random
from pathlib import Path
import hypothesis, numpy as np, pytest, torch
from hypothesis import strategies as st

if "LOAD_MORE" in os.environ:
    import loaded_module

drawn_on_import = random.random()

@pytest.fixture(scope="module")
def shared():
    return random.random()

@pytest.mark.parametrize("word", ["a", "b"])
def test_same_name(word, shared, generator, source):
    found = {
        "import": drawn_on_import, "shared": shared, "random": random.random(), "numpy": np.random.rand(),
        "torch": float(torch.rand(())), "generator": int(torch.randint(2**31, (), generator=generator)),
        "source": source.random(),
    }
    Path(__file__).with_name(f"{Path(__file__).stem}-{word}.json").write_text(json.dumps(found))
    assert word == "a", "a failure says how it is repeated"

def test_examples():
    found = []

    @hypothesis.settings(max_examples=100)
    @hypothesis.given(st.integers() | st.text())
    def collect(value):
        found.append(value)

    collect()
    Path(__file__).with_name(f"{Path(__file__).stem}-examples.json").write_text(json.dumps(found))
"""
# A module of the project, whose constants hypothesis would try.
LOADED = f"NUMBERS = {[37**n for n in range(2, 40)]}\nWORDS = {[f'word {n}' for n in range(40)]}\n"


def drawn(folder: Path, *options: str, seed: str, **more: str) -> tuple[dict[str, Any], str]:
    """What two files' tests of one name drew, and what the run printed."""
    folder.mkdir()
    shutil.copy(CONFTEST, folder)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "loaded_module.py").write_text(LOADED)
    for name in ("one", "two"):
        (folder / f"test_{name}.py").write_text(PROBE)
    environment = {**os.environ, "MIXPOL_TEST_SEED": seed, "PYTHONPATH": str(folder), **more}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, str(folder)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
    assert run.returncode == 1, run.stdout + run.stderr
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}, run.stdout


def test_every_process_draws_from_the_run_s_seed(tmp_path: Path) -> None:
    """In a worker, with one file alone, whatever PYTHONHASHSEED is and whichever modules are loaded."""
    whole, text = drawn(tmp_path / "whole", "-n", "1", seed="7")
    assert "random inputs: MIXPOL_TEST_SEED=7 (a fresh one)" in text
    assert "MIXPOL_TEST_SEED=7 pytest 'test_one.py::test_same_name[b]'" in text
    examples = {name: whole.pop(name) for name in ("test_one-examples", "test_two-examples")}
    assert len(whole) == 4
    for kind in ("random", "numpy", "torch", "generator", "source"):
        assert len({found[kind] for found in whole.values()}) == 4, "tests of one name in two files draw differently"
    for kind in ("import", "shared"):
        assert len({found[kind] for found in whole.values()}) == 2
    alone, text = drawn(tmp_path / "alone", "-k", "test_two and not a]", seed="7", PYTHONHASHSEED="3", LOAD_MORE="1")
    assert alone == {"test_two-b": whole["test_two-b"], "test_two-examples": examples["test_two-examples"]}
    assert "MIXPOL_TEST_SEED=7" in text


def test_a_revision_has_one_seed(request: pytest.FixtureRequest, generator: torch.Generator) -> None:
    """The plugin's functions, in this run."""
    plugin = request.config.pluginmanager.get_plugin(str(CONFTEST))
    config = request.config
    assert config.stash[plugin.SEED] == getattr(config, "workerinput", {}).get("mixpol_seed", plugin.asked_seed())
    assert generator.initial_seed() == plugin.seed_of(config, request.node.nodeid)
    assert 0 <= plugin.seed_of(config, "x") < 2**32


@pytest.mark.parametrize("text", ["seven", "-1", "1.5"])
def test_a_seed_that_is_no_number(text: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = request.config.pluginmanager.get_plugin(str(CONFTEST))
    monkeypatch.setenv("MIXPOL_TEST_SEED", text)
    with pytest.raises(pytest.UsageError, match=f"MIXPOL_TEST_SEED was '{text}'; expected a whole number such as 20"):
        plugin.asked_seed()


def test_which_tests_draw(request: pytest.FixtureRequest, source: random.Random) -> None:
    plugin = request.config.pluginmanager.get_plugin(str(CONFTEST))
    assert plugin.draws(request.node)
    assert plugin.DRAWING_CALLS.search("x = torch.randn(3)")
    assert not plugin.DRAWING_CALLS.search("x = torch.ones(3)")
