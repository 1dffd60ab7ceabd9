"""Options in a YAML file, read as if they were typed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from boresight.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The content of a file of options."""

    path: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Option → value."""
    datasets: tuple[Mapping[str, Any], ...] = ()
    """The parts of a mixture, under TRL's `datasets`."""

    @property
    def nulls(self) -> list[str]:
        """Options that the file sets to null."""
        return [name for name, value in self.options.items() if value is None]

    def words(self) -> list[str]:
        """The equivalent command line, without the nulls."""
        return [word for name, value in self.options.items() if value is not None for word in as_words(name, value)]


def read_config(path: str | Path, known: Mapping[str, Any]) -> ConfigFile:
    """Read a file of options.

    Args:
        path: the file.
        known: all options of the command.

    Raises:
        ConfigError: the file does not exist, is not a mapping, or has an unknown option.
    """
    options = read_yaml(path)
    path = Path(path).expanduser()
    datasets = options.pop("datasets", None) or []
    if "streaming" in options:  # TRL's name in a file with `datasets`
        options["dataset_streaming"] = options.pop("streaming")
    for name in options:
        if name == "config" or name not in known:
            raise ConfigError(f"{path}: there is no option {name!r}.{nearest(name, known)}")
    if not isinstance(datasets, list) or not all(isinstance(part, dict) for part in datasets):
        raise ConfigError(f"{path}: datasets must be a list of mappings, each with a path.")
    return ConfigFile(path, options, tuple(datasets))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Option → value of a YAML file, without its `env`, whose variables are put into the environment.

    Raises:
        ConfigError: the file does not exist or is not a mapping.
    """
    path = Path(path).expanduser()
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror} (looked in {Path.cwd()}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} contains a {type(content).__name__}: write one option per line, such as `learning_rate: 1e-6`."
        )
    _set_environment(path, content)
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _set_environment(path: str | Path, content: dict[str, Any]) -> None:
    """Remove `env` from a file's options and put its variables into the environment.

    Raises:
        ConfigError: it is not a mapping of names to values.
    """
    variables = content.pop("env", {})
    if not isinstance(variables, dict):
        raise ConfigError(
            f"{path}: env must be a mapping of environment variables, such as `env: {{WANDB_PROJECT: boresight}}`."
        )
    os.environ.update({str(name): str(value) for name, value in variables.items()})


def as_words(name: str, value: Any) -> Iterator[str]:
    """The words that set an option on the command line."""
    if isinstance(value, list | tuple) and not any(isinstance(item, dict | list) for item in value):
        yield f"--{name}"
        yield from map(as_word, value)
    else:
        yield f"--{name}={as_word(value)}"


def as_word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
