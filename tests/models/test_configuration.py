"""Errors of configuration files: the file, the name, what it was and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from mixpol_models.configuration import load, shipped


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = Field(8, ge=1)
    name: str = "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"- 1\n", "holds a list, expected 'name: value' lines"),
        (b"1: 2\n", "holds a dict, expected 'name: value' lines"),
        (b"a: [\n", "not readable as YAML"),
        (b"\xff\xfe\n", "not readable as text .* at byte 0"),
        (b"widht: 8\n", "'widht' is no setting: did you mean 'width'"),
        (b"colour: 8\nwidth: 0\n", "width is 0, expected .*; 'colour' is no setting: mend the name"),
    ],
)
def test_errors(tmp_path: Path, text: bytes, message: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(text)
    with pytest.raises(ValueError, match=rf"x\.yaml: {message}"):
        load(Settings, file)


def test_what_is_given_overrides_the_file_and_none_does_not(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("width: 3\n")
    assert load(Settings, file, given={"name": "y", "width": None}) == Settings(width=3, name="y")
    file.write_text("")
    assert load(Settings, file) == Settings()


def test_names_of_the_package() -> None:
    assert list(shipped("pnfrec")) == ["ml1m_cpu", "ml1m_published"]
    with pytest.raises(ValueError, match=r"config is 'nothing', where there is no file; .*'ml1m_cpu'"):
        load(Settings, "nothing", "pnfrec")
