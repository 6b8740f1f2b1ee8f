"""What pages show runs: Python blocks, one namespace a page; commands exist, with the options given to them."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pages import PAGES, ROOT, SHELL, blocks, name, python

from mixpol_models.cli import app

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
# A page may name options that pytest plugins, pip or other tools bring: only our own commands are looked into.
INLINE = re.compile(r"`((?:make|mixpol|python -m|python) [^`\n]+)`")


@pytest.mark.parametrize("page", [page for page in PAGES if python(page)], ids=name)
def test_python_blocks(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in python(page):
        # Behind as many empty lines as stand before it in the page, so that a traceback names the page's line.
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)


def commands(page: Path) -> list[str]:
    """Command lines of the page: those of shell blocks, and those in the text between backquotes."""
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(block.text for block in blocks(text) if block.language in SHELL).replace("\\\n", " ")
    return [*(line.strip() for line in shell.splitlines()), *INLINE.findall(text)]


def problem(command: str) -> str:
    """What is wrong with a command line; empty if it could be run, or is none of ours."""
    try:
        words = shlex.split(command.replace("...", ""), comments=True)
    except ValueError:
        return ""  # a formula or a drawing
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if words[:1] == ["make"]:
        unknown = [w for w in words[1:] if "=" not in w and w not in TARGETS]
        return f"the Makefile has no target {', '.join(unknown)}" if unknown else ""
    if words[:1] == ["mixpol"]:
        return _unknown_option(typer.main.get_command(app), words[1:])
    if words[:2] == ["python", "-m"] and words[2:]:
        module = words[2]
        return "" if importlib.util.find_spec(module) else f"there is no module {module}"
    if words[:1] == ["python"] and words[1:] and words[1].endswith(".py"):
        return "" if (ROOT / words[1]).exists() else f"there is no file {words[1]}"
    return ""


def _unknown_option(command: Any, words: list[str]) -> str:
    """The first word that the command does not know: a subcommand, or an option."""
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        found = command.commands.get(words[0])
        if found is None:
            return f"mixpol {command.name or ''} has no command {words[0]}"
        command, words = found, words[1:]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    return f"mixpol {command.name} has no option {', '.join(unknown)}" if unknown else ""


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page: Path) -> None:
    problems = {command: found for command in commands(page) if (found := problem(command))}
    assert not problems


@pytest.mark.parametrize(
    "command",
    [
        "make tea",
        "mixpol dance",
        "mixpol train --colour red",
        "python -m mixpol_models.nothing",
        "python examples/no.py",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    assert problem(command)
