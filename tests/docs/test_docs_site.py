"""The site builds without a warning, and links and anchors lead somewhere, there and in the repository."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pages import CONFIG, PAGES, ROOT, name, prose

LINK = re.compile(r"\]\(([^()\s]+)\)")


@pytest.mark.slow
def test_the_site(tmp_path: Path) -> None:
    """It builds without a warning, asks for nothing from elsewhere, and has every public name."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", CONFIG, "--site-dir", tmp_path]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    built = {str(page.relative_to(tmp_path)): page.read_text("utf-8") for page in tmp_path.rglob("*.html")}
    for path, text in built.items():
        assert not re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)"', text), path

    assert '<h1 id="mixpol_kernels"' in built["index.html"], "README.md is the home page"
    assert "examples/fuxictr_polarity.py.src.html" in built, "what pages link to is mounted"
    assert "no float atomics" in built["contracts.html"], "included from CONTRIBUTING.md"
    reference = "".join(text for path, text in built.items() if path.startswith("api/"))
    for module in ("mixpol_kernels", "mixpol_kernels.nn", "mixpol_kernels.drop_in"):
        public = set(importlib.import_module(module).__all__) - {"nn", "__version__"}
        assert not {word for word in public if f'id="{module}.{word}"' not in reference}


def anchors(page: Path) -> set[str]:
    """The anchors that the code host gives to a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*?) *$", prose(page.read_text(encoding="utf-8")), re.MULTILINE):
        text = unicodedata.normalize("NFKC", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)).lower()
        found.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return found


def leads_somewhere(url: str, page: Path) -> bool:
    """Whether a link of a page does, in the repository. Anchors of the generated reference are the build's to check."""
    parts = urlsplit(url)
    if parts.scheme:
        return True
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.exists() or not target.is_relative_to(ROOT):
        return False
    return not parts.fragment or target.parent.name == "api" or parts.fragment in anchors(target)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lists_are_lists(page: Path) -> None:
    """The site's Markdown wants an empty line before a list; without it the points run together."""
    lines = prose(page.read_text(encoding="utf-8")).split("\n")
    for before, line in pairwise(lines):
        if re.match(r"(-|\*|\d+\.) ", line):
            assert re.match(r"$| |(-|\*|\d+\.|#+) ", before), f"no empty line before {line!r}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_in_the_repository(page: Path) -> None:
    links = LINK.findall(prose(page.read_text(encoding="utf-8")))
    assert not [url for url in links if not leads_somewhere(url, page)]


@pytest.mark.parametrize("url", ["nowhere.md", "drop_in.md#what-differs", "#nothing", "../../outside.md"])
def test_a_broken_link_is_found(url: str) -> None:
    page = ROOT / "docs" / "faq.md"
    assert leads_somewhere("drop_in.md#what-differs-on-purpose", page)
    assert not leads_somewhere(url, page)


def test_environment_variables_are_documented() -> None:
    """Every variable of ours that Python or C++ code reads has a row."""
    read = re.compile(r"""(?:environ(?:\.get)?[\[(]|getenv\()["']([A-Z_]+)["']""")
    files = [*(ROOT / "csrc").rglob("*.cpp"), *ROOT.glob("mixpol_kernels/**/*.py"), *ROOT.glob("python/**/*.py")]
    files += ROOT.glob("tests/**/*.py")
    variables = {v for file in files for v in read.findall(file.read_text("utf-8")) if v.startswith("MIXPOL_")}
    rows = set(re.findall(r"`([A-Z_]+)`", (ROOT / "docs" / "environment.md").read_text("utf-8")))
    assert {"MIXPOL_BACKEND", "MIXPOL_CPU_ISA", "MIXPOL_CACHE"} <= variables
    assert variables <= rows
    assert {v for v in rows if v.startswith("MIXPOL_")} <= variables, "a row of a variable that nothing reads"
