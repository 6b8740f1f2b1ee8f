"""Configurations in YAML: a user's file or one of the package, checked by a pydantic model."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def load(
    model: type[Model],
    file: str | Path,
    folder: str = "",
    given: Mapping[str, Any] | None = None,
    hint: str = ": mend the name",
) -> Model:
    """Defaults of the model, overridden by a YAML file, overridden by what is given and not None.

    Args:
        model: of the settings.
        file: path of a YAML file, or a name in `shipped(folder)`.
        folder: of the package's files, below configs/.
        given: settings by name.
        hint: behind "... is no setting", where no name is close to it.

    Raises:
        ValueError: no such file, not YAML, not a mapping, unknown names or values out of range; each is named.
    """
    settings = read(file, folder) | {name: value for name, value in (given or {}).items() if value is not None}
    try:
        return model(**settings)
    except ValidationError as error:
        raise ValueError(f"{file}: {explain(error, model, hint)}") from None


def read(file: str | Path, folder: str = "") -> dict[str, Any]:
    """The settings in a YAML file, {} if it is empty; see `load`."""
    path, names = Path(file), shipped(folder)
    source = path if path.is_file() else names.get(str(file))
    if source is None:
        raise ValueError(f"config is {str(file)!r}, where there is no file; expected a path or one of {tuple(names)}")
    try:
        settings = yaml.safe_load(source.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not readable as text ({error.reason} at byte {error.start})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not readable as YAML ({' '.join(str(error).split())})") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"{file}: holds a {type(settings).__name__}, expected 'name: value' lines")
    return settings


def shipped(folder: str = "") -> dict[str, Any]:
    """The files that come with the package below configs/, by name."""
    found = sorted((resources.files("mixpol_models") / "configs" / folder).iterdir(), key=lambda entry: entry.name)
    return {entry.name.removesuffix(".yaml"): entry for entry in found if entry.name.endswith(".yaml")}


def explain(error: ValidationError, model: type[BaseModel], hint: str = ": mend the name") -> str:
    """The errors of a model's settings: the name, what it was, what was expected."""
    parts = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            close = get_close_matches(name, model.model_fields, n=1)
            parts.append(f"{name!r} is no setting" + (f": did you mean {close[0]!r}?" if close else hint))
        elif item["type"] == "value_error":
            parts.append(message)
        elif item["type"] == "missing":
            parts.append(f"{name!r} is missing: add it")
        else:
            parts.append(f"{name} is {item['input']!r}, expected {message.removeprefix('Input should be ')}")
    return "; ".join(parts)
