"""Options in a YAML file, read as if they had been typed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from boresight.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a file says."""

    path: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Option → value."""
    datasets: tuple[Mapping[str, Any], ...] = ()
    """The parts of a mixture, under TRL's `datasets`."""

    @property
    def nulls(self) -> list[str]:
        """Options that the file sets to nothing."""
        return [name for name, value in self.options.items() if value is None]

    def words(self) -> list[str]:
        """The command line that says the same, but for the nulls."""
        return [word for name, value in self.options.items() if value is not None for word in as_words(name, value)]


def read_config(path: str | Path, known: Mapping[str, Any]) -> ConfigFile:
    """Read a file of options.

    Args:
        path: of the file.
        known: the options that there are.

    Raises:
        ConfigError: the file is not there, is no mapping, or has an option that is unknown.
    """
    path = Path(path).expanduser()
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror} (looked in {Path.cwd()}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    if content is None:
        return ConfigFile(path)
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} holds a {type(content).__name__}: write one option a line, such as `learning_rate: 1e-6`."
        )
    options = {str(name).replace("-", "_"): value for name, value in content.items()}
    datasets = options.pop("datasets", None) or []
    for name in options:
        if name == "config" or name not in known:
            raise ConfigError(f"{path}: there is no option {name!r}.{nearest(name, known)}")
    if not isinstance(datasets, list) or not all(isinstance(part, dict) for part in datasets):
        raise ConfigError(f"{path}: datasets is a list of mappings, each with a path.")
    return ConfigFile(path, options, tuple(datasets))


def as_words(name: str, value: Any) -> Iterator[str]:
    """What one would type for it."""
    if isinstance(value, list | tuple) and not any(isinstance(item, dict | list) for item in value):
        yield f"--{name}"
        yield from map(as_word, value)
    else:
        yield f"--{name}={as_word(value)}"


def as_word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
