"""MkDocs hook: files of the repository as pages of the site, so that each text exists once.

- README.md is the home page. A file outside docs/ that the nav names, or that a page links to, is mounted under its own
  path: Markdown as a page, any other text as a page with its source, a folder as a page with links to its files.
- Links are written as they work in the repository; here they are turned to where the mounted page is.
- `<!-- include FILE#anchor -->` on a line of its own becomes that section of FILE, without its heading.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parents[2]
HOME = "README.md"
LINK = re.compile(r"\]\((?P<url>[^()\s]+)\)")
FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
INCLUDE = re.compile(r"^<!-- include (?P<path>[^#\s]+)#(?P<anchor>\S+) -->$", re.MULTILINE)
HEADING = re.compile(r"^(#+) +(.*?) *$")
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".cpp": "cpp", ".h": "cpp"}


def source(uri: str) -> str:
    """The repository's path of a page of the site."""
    if uri == "index.md":
        return HOME
    inside = posixpath.join("docs", uri)
    return inside if (REPOSITORY / inside).exists() else uri.removesuffix(".src.md")


def page_of(path: str) -> str:
    """The site's path of a file of the repository."""
    if path == HOME:
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path.endswith(".md") else f"{path}.src.md"


def resolved(url: str, base: str) -> str | None:
    """The repository's path that a link in the file `base` means; None for a link to elsewhere or within the page."""
    parts = urlsplit(url)
    if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(parts.path)))


def section(text: str, anchor: str) -> str | None:
    """What stands under the heading with this anchor, up to the next heading of its level or above."""
    lines, level, fenced = [], 0, False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        heading = None if fenced else HEADING.match(line)
        if heading and level and len(heading[1]) <= level:
            break
        if level:
            lines.append(line)
        elif heading and slugify(heading[2], "-") == anchor:
            level = len(heading[1])
    return "\n".join(lines).strip() if level else None


def relinked(text: str, base: str, place: Callable[[str], str], folder: str) -> str:
    """The links of a text that stands in the file `base`, relative to `folder`, where `place` puts their files."""

    def turn(link: re.Match[str]) -> str:
        path = resolved(link["url"], base)
        if path is None:
            return link[0]
        _, hash_mark, fragment = link["url"].partition("#")
        return f"]({posixpath.relpath(place(path), folder)}{hash_mark}{fragment})"

    parts = FENCED.split(text)  # code stands at odd places, and may hold what looks like a link
    return "".join(part if i % 2 else LINK.sub(turn, part) for i, part in enumerate(parts))


def links(text: str, base: str) -> list[str]:
    """The files of the repository that a text in the file `base` links to."""
    found = [resolved(link["url"], base) for part in FENCED.split(text)[::2] for link in LINK.finditer(part)]
    return [path for path in found if path]


def included(text: str, base: str) -> str:
    """The text with its includes, their links turned to where they are put."""

    def put(include: re.Match[str]) -> str:
        found = section((REPOSITORY / include["path"]).read_text(encoding="utf-8"), include["anchor"])
        if found is None:
            raise PluginError(f"{base} includes {include['path']}#{include['anchor']}, which is not there")
        return relinked(found, include["path"], str, posixpath.dirname(base))

    return INCLUDE.sub(put, text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is mounted: what the nav names, and what pages link to, again and again until nothing is new."""
    waiting = [HOME, *(source(uri) for uri in _nav(config.nav)), *(f"docs/{f.src_uri}" for f in files)]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        file = REPOSITORY / path
        if path in seen or path.startswith("..") or not file.exists():
            continue  # a link to nowhere is MkDocs's to report
        seen.add(path)
        uri = page_of(path)
        if path.endswith(".md"):
            text = included(file.read_text(encoding="utf-8"), path)
            waiting += links(text, path)
        elif path.startswith("docs/"):
            continue
        elif file.is_dir():
            within = sorted(f.name for f in file.iterdir() if f.is_file() and f.suffix in (*LANGUAGES, ".md"))
            text = f"# {path}/\n\n" + "".join(f"- [{name}]({posixpath.basename(path)}/{name})\n" for name in within)
            waiting += [f"{path}/{name}" for name in within]
        else:
            text = f"# {path}\n\n```{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text(encoding='utf-8')}\n```\n"
        if uri not in files.src_uris:
            added = File.generated(config, uri, content=text)
            added.inclusion = added.inclusion.NOT_IN_NAV if uri not in _nav(config.nav) else added.inclusion
            files.append(added)
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Puts includes in and turns links."""
    uri = page.file.src_uri
    base = source(uri)
    return relinked(included(markdown, base), base, page_of, posixpath.dirname(uri))


def _nav(entry: Any) -> list[str]:
    """Every path that the nav names."""
    if isinstance(entry, dict):
        entry = list(entry.values())
    return [uri for part in entry for uri in _nav(part)] if isinstance(entry, list) else [str(entry)]
