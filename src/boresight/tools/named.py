"""Tools and environments that a command names."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from boresight.dotted import named_object
from boresight.errors import ConfigError

BUILT_IN_TOOLS = {"calculator": "boresight.tools.arithmetic"}
"""Tools that may be given by name alone, and their modules."""
BUILT_IN_ENVIRONMENTS = {
    "ImageTools": "boresight.tools.looking",
    "PixelImageTools": "boresight.tools.looking",
    "RelativeImageTools": "boresight.tools.looking",
}
"""Environments that may be given by name alone, and their modules."""


def load_tools(tools: Iterable[str | Callable[..., Any]] | None) -> list[Callable[..., Any]]:
    """The functions themselves, imported where they are given by name.

    Raises:
        ConfigError: there is no tool of that name.
    """
    return [named_object(tool, BUILT_IN_TOOLS, "tool") if isinstance(tool, str) else tool for tool in tools or ()]


def load_environment(factory: Any) -> Any:
    """What makes environments, imported where it is given by name: a class or a function, or a dict of several by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if not isinstance(factory, str):
        return factory
    found = named_object(factory, BUILT_IN_ENVIRONMENTS, "environment")
    if not callable(found) and not isinstance(found, Mapping):
        raise ConfigError(
            f"environment_factory {factory!r} is a {type(found).__name__}: name a class, a function that makes environments, or a dict of "
            "them by name."
        )
    return found


def tool_name(tool: Any) -> str:
    """The name of a function or a class, as `load_tools` reads it if it is in a module."""
    if isinstance(tool, str):
        return tool
    name = getattr(tool, "__qualname__", type(tool).__qualname__)
    return f"{getattr(tool, '__module__', '')}.{name}"


def source_of_tools(tools: Iterable[Any]) -> str:
    """A digest of the source code of functions and classes, eight characters; of the name alone where there is no source."""
    digest = hashlib.sha256()
    for tool in tools:
        try:
            text = inspect.getsource(tool)
        except (OSError, TypeError):
            text = tool_name(tool)
        digest.update(text.encode())
    return digest.hexdigest()[:8]
