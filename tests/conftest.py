"""One seed for the whole run, the same in every process; one thread a process. CONTRIBUTING.md, "Random inputs"."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch and for child processes too: the cores are shared by several test processes, and OpenMP threads that
# outnumber them wait for one another in loops (small models then train up to ten times as long).
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import torch
from hypothesis.internal.conjecture import providers

# Triton's interpreter is chosen when kernels are imported: its tests run when they are asked for by name.
INTERPRETED = Path(__file__).parent / "triton_kernels"
# What every run of a revision draws from, unless MIXPOL_TEST_SEED says otherwise (`make test-fresh` does).
REVISION_SEED = 20
# Who draws, for `--drawn`: tests with one of these fixtures, those of hypothesis, and files that call these by name.
DRAWING_FIXTURES = {"generator", "source"}
DRAWING_CALLS = re.compile(r"torch\.(rand|randn|randint|randperm)\(|backbone_cases")

SEED = pytest.StashKey[int]()
WORKERS = pytest.StashKey[dict[str, dict[str, Any]]]()

hypothesis.settings.register_profile("revision", derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("fresh", derandomize=False, database=None, deadline=None, print_blob=True)


def asked_seed() -> int:
    """MIXPOL_TEST_SEED, or the seed of the revision."""
    text = os.environ.get("MIXPOL_TEST_SEED") or str(REVISION_SEED)
    if not text.isdecimal():
        raise pytest.UsageError(f"MIXPOL_TEST_SEED was {text!r}; expected a whole number such as {REVISION_SEED}")
    return int(text)


def seed_of(config: pytest.Config, name: str) -> int:
    """The seed of one test, fixture or file: what it draws hangs on its name and the run's seed, on nothing else."""
    digest = hashlib.blake2b(f"{config.stash[SEED]}:{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, for libraries that draw from it
    torch.manual_seed(seed)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--drawn", action="store_true", help="only tests whose inputs or cases are drawn")


@pytest.hookimpl(tryfirst=True)  # before hypothesis' own, which reads its seed
def pytest_configure(config: pytest.Config) -> None:
    # A worker takes the controller's seed, not the environment's: one run, one seed.
    seed = getattr(config, "workerinput", {}).get("mixpol_seed")
    config.stash[SEED] = asked_seed() if seed is None else seed
    config.stash[WORKERS] = {}
    fresh = config.stash[SEED] != REVISION_SEED
    hypothesis.settings.load_profile("fresh" if fresh else "revision")
    if fresh and config.getoption("--hypothesis-seed", None) is None:
        config.option.hypothesis_seed = str(config.stash[SEED])
    # It would also draw constants of the modules loaded so far: others in each worker, in a test alone, in each folder.
    none = providers.Constants()
    providers._get_local_constants = lambda: none


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["mixpol_seed"] = node.config.stash[SEED]


def pytest_sessionfinish(session: pytest.Session) -> None:
    from mixpol_kernels.testing.budget import worst

    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput |= {"mixpol_seed": session.config.stash[SEED], "mixpol_worst": worst}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})
    if "mixpol_seed" in output:  # a worker that died says nothing
        node.config.stash[WORKERS][node.gateway.id] = output


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = any(Path(argument.partition("::")[0]).resolve().is_relative_to(INTERPRETED) for argument in config.args)
    return True if collection_path == INTERPRETED and not asked else None


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Files that draw parameters while they are imported draw the same ones in whatever order they are."""
    _seed_everything(seed_of(collector.config, collector.nodeid))
    yield


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Workers begin at the front and in the middle, and take over from the front's end: no long test starts last.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if config.getoption("--drawn"):
        config.hook.pytest_deselected(items=[item for item in items if not draws(item)])
        items[:] = [item for item in items if draws(item)]


def draws(item: pytest.Item) -> bool:
    """Whether a fresh seed changes what this test tries."""
    return (
        bool(DRAWING_FIXTURES & set(getattr(item, "fixturenames", ())))
        or getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        or _file_draws(item.path)
    )


@functools.cache
def _file_draws(path: Path) -> bool:
    return path.suffix == ".py" and bool(DRAWING_CALLS.search(path.read_text("utf-8")))


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[None]:
    """A fixture that tests share draws the same whichever of them asks first."""
    if fixturedef.scope == "function":
        yield
        return
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    _seed_everything(seed_of(request.config, f"{fixturedef.baseid}:{fixturedef.argname}"))
    yield
    random.setstate(before[0]), np.random.set_state(before[1]), torch.set_rng_state(before[2])  # noqa: NPY002


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    _seed_everything(seed_of(request.config, request.node.nodeid))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tests of several threads set their number, and need not set it back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.autograd.set_detect_anomaly(False)  # an import of RecBole turns it on
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _compiled_alone() -> Iterator[None]:
    """What an earlier test of the same process compiled decides neither shapes nor recompilations of the next."""
    yield
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.utils.counters:
        dynamo.reset()
        dynamo.utils.counters.clear()


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    """Random numbers of this test in this run."""
    return torch.Generator().manual_seed(seed_of(request.config, request.node.nodeid))


@pytest.fixture
def source(request: pytest.FixtureRequest) -> random.Random:
    """Random choices of this test in this run."""
    return random.Random(seed_of(request.config, request.node.nodeid))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        report.sections.append(("seed", f"repeat with {_command(item.config, item.nodeid)}"))


def _command(config: pytest.Config, *arguments: str) -> str:
    return f"MIXPOL_TEST_SEED={config.stash[SEED]} pytest {' '.join(repr(a) if '[' in a else a for a in arguments)}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from mixpol_kernels.testing.budget import worst

    config = terminalreporter.config
    workers = config.stash[WORKERS]
    shares = dict(worst)
    for output in workers.values():
        for name, share in output["mixpol_worst"].items():
            shares[name] = max(shares.get(name, 0.0), share)
    if shares:
        terminalreporter.section("largest share of the error budget used (1 is the limit)")
        for name, share in sorted(shares.items()):
            terminalreporter.line(f"{share:6.2f}  {name}")
    used = sorted({output["mixpol_seed"] for output in workers.values()} or {config.stash[SEED]})
    kind = "the revision's" if used == [REVISION_SEED] else "a fresh one"
    terminalreporter.line(f"random inputs: MIXPOL_TEST_SEED={', '.join(map(str, used))} ({kind})")
