"""The hook of the site: sections that are included, and links of the repository turned to pages of the site."""

from __future__ import annotations

import posixpath
import runpy
from typing import Any

import pytest
from mkdocs.exceptions import PluginError
from pages import CONFIG

HOOK: dict[str, Any] = runpy.run_path(str(CONFIG.with_name("mount.py")))


def test_a_section_ends_where_the_next_one_of_its_level_begins() -> None:
    text = "# Title\n## First part\none\n```\n## not a heading\n```\n### Deeper\ntwo\n## Second\nthree\n"
    assert HOOK["section"](text, "first-part") == "one\n```\n## not a heading\n```\n### Deeper\ntwo"
    assert HOOK["section"](text, "third") is None


@pytest.mark.parametrize(
    ("link", "base", "uri", "expected"),
    [
        ("docs/drop_in.md#x", "README.md", "index.md", "drop_in.md#x"),
        ("../README.md#what", "docs/faq.md", "faq.md", "index.md#what"),
        ("../examples/a.py", "docs/drop_in.md", "drop_in.md", "examples/a.py.src.md"),
        ("../docs/results/l.md", "benchmarks/R.md", "benchmarks/R.md", "../results/l.md"),
        ("../maths.md", "docs/api/f.md", "api/f.md", "../maths.md"),
        ("#here", "docs/faq.md", "faq.md", "#here"),
        ("https://example.org/a.md", "docs/faq.md", "faq.md", "https://example.org/a.md"),
    ],
)
def test_links(link: str, base: str, uri: str, expected: str) -> None:
    relinked = HOOK["relinked"](f"see [this]({link}).", base, HOOK["page_of"], posixpath.dirname(uri))
    assert relinked == f"see [this]({expected})."


def test_code_is_left_alone() -> None:
    text = "```python\nlayers[0](x)\n```\n[a](x.md)\n"
    assert HOOK["relinked"](text, "docs/faq.md", HOOK["page_of"], "api") == text.replace("x.md", "../x.md")
    assert HOOK["links"](text, "docs/faq.md") == ["docs/x.md"]


def test_an_included_section_brings_its_links_along() -> None:
    found = HOOK["included"]("<!-- include README.md#what-the-demo-prints -->", "docs/faq.md")
    assert "](results/auc.png)" in found
    assert HOOK["relinked"]("[a](docs/b.md#c)", "README.md", str, "docs/api") == "[a](../b.md#c)", "with the anchor"


def test_an_include_of_nothing_is_an_error() -> None:
    with pytest.raises(PluginError, match=r"README\.md#nothing, which is not there"):
        HOOK["included"]("<!-- include README.md#nothing -->", "docs/faq.md")
