"""Objects that options name: built-in ones by name alone, the user's by a dotted path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boresight.errors import ConfigError, nearest


def named_object(name: str, built_in: Mapping[str, str], kind: str) -> Any:
    """The object of a name.

    Args:
        name: of a built-in object, or a dotted path such as ``"my_module.my_reward"`` (the working directory is searched, as for a
            script).
        built_in: name → module.
        kind: what it is called in errors.

    Raises:
        ConfigError: there is no object of that name.
    """
    module, _, attribute = name.rpartition(".")
    if not module:
        if name not in built_in:
            raise ConfigError(
                f"{name!r} is not a built-in {kind}.{nearest(name, built_in)} Built in: {', '.join(built_in)}."
            )
        module = built_in[name]
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{kind} {name!r} cannot be loaded: {error}") from error
