"""Environments: objects with tools as methods and a state of their own, one for each completion (TRL's `environment_factory`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from boresight.errors import ConfigError, DataError

Factory = Callable[[], Any]
COLUMN = "environment"
"""The column that names a row's environment where there are several."""


def tool_schema(tool: Callable[..., Any]) -> dict[str, Any]:
    """A tool's description for the chat template, from its signature and docstring.

    Raises:
        ConfigError: the docstring or the type hints are incomplete.
    """
    # Slow to import, and only runs with tools need it.
    from transformers.utils import get_json_schema

    try:
        return get_json_schema(tool)
    except Exception as error:
        raise ConfigError(
            f"tools: {getattr(tool, '__name__', tool)!r} cannot be described to the model: {error} Give every argument a type hint and a "
            "line under `Args:` in the docstring."
        ) from error


def methods_of(instance: Any) -> dict[str, Callable[..., Any]]:
    """The tools of an environment: its public methods, without `reset` and `get_reward`."""
    names = [name for name, _ in inspect.getmembers(type(instance), predicate=inspect.isfunction)]
    return {
        name: getattr(instance, name)
        for name in names
        if name not in ("reset", "get_reward") and not name.startswith("_")
    }


class Environments:
    """The tools of a run, and a supply of environments. Instances are built once and reset often, as in TRL.

    Args:
        tools: functions that every completion may call.
        factory: makes an environment; or several by name, of which a row's column `environment` chooses one.

    Raises:
        ConfigError: something is no tool, or an environment has no `reset`.
    """

    def __init__(
        self, tools: Sequence[Callable[..., Any]] | None, factory: Factory | Mapping[str, Factory] | None
    ) -> None:
        self.tools = {_name_of(tool): tool for tool in tools or ()}
        if len(self.tools) < len(tools or ()):
            raise ConfigError("tools: two functions have the same name: give each its own.")
        self.is_named = isinstance(factory, Mapping)
        named: Mapping[Any, Factory] = (
            factory if isinstance(factory, Mapping) else {} if factory is None else {None: factory}
        )
        self.factories: dict[str | None, Factory] = dict(named)
        self._idle: dict[str | None, list[Any]] = {}
        self.schemas: dict[str | None, list[dict[str, Any]]] = {}
        """The descriptions of the tools that rows with this environment may call."""
        self.types: dict[type, Any] = {}
        """The classes of environments, each with an instance."""
        for name, make in self.factories.items():
            instance = make()
            if not callable(getattr(instance, "reset", None)):
                raise ConfigError(f"environment_factory: {type(instance).__name__} has no method reset.")
            self._idle[name] = [instance]
            self.types.setdefault(type(instance), instance)
            self.schemas[name] = [tool_schema(tool) for tool in (self.tools | methods_of(instance)).values()]
        if not self.factories:
            self.schemas[None] = [tool_schema(tool) for tool in self.tools.values()]

    def __bool__(self) -> bool:
        return bool(self.tools or self.factories)

    def name_of(self, columns: Mapping[str, Any], row: int) -> str | None:
        """The name of a row's environment; None where there is only one, or none.

        Raises:
            DataError: the row names none of the environments.
        """
        name = columns.get(COLUMN) if self.is_named else None
        if self.factories and name not in self.factories:
            raise DataError(
                f"row {row}: environment={name!r} is not one of {', '.join(map(repr, self.factories))}, which environment_factory has."
            )
        return name

    def take(self, columns: Mapping[str, Any], row: int) -> Any:
        """An environment for one completion; None where there are none. `give_back` returns it."""
        if not self.factories:
            return None
        name = self.name_of(columns, row)
        idle = self._idle[name]
        return idle.pop() if idle else self.factories[name]()

    def give_back(self, instances: Sequence[Any], columns: Sequence[Mapping[str, Any]]) -> None:
        """Instances that may be used again."""
        for instance, own in zip(instances, columns, strict=True):
            if instance is not None:
                self._idle[own.get(COLUMN) if self.is_named else None].append(instance)

    def tools_of(self, instance: Any) -> dict[str, Callable[..., Any]]:
        """The tools of a completion by name."""
        return self.tools | ({} if instance is None else methods_of(instance))

    @property
    def rewards(self) -> list[Callable[..., Any]]:
        """A reward function for each class of environments with a method `get_reward`, under the class's name."""
        return [reward_of(kind) for kind in self.types if callable(getattr(kind, "get_reward", None))]


def reward_of(kind: type) -> Callable[..., Any]:
    """A reward function that asks each completion's environment; it does not apply to environments of other classes."""
    if inspect.iscoroutinefunction(kind.get_reward):  # pyright: ignore[reportAttributeAccessIssue]

        async def asked(environments: Sequence[Any], **columns: Any) -> list[float | None]:
            return [await each.get_reward() if type(each) is kind else None for each in environments]

        asked.__name__ = kind.__name__
        return asked

    def own(environments: Sequence[Any], **columns: Any) -> list[float | None]:
        return [each.get_reward() if type(each) is kind else None for each in environments]

    own.__name__ = kind.__name__
    return own


def _name_of(tool: Any) -> str:
    if not callable(tool) or not hasattr(tool, "__name__"):
        raise ConfigError(f"tools: {tool!r} is no function. Pass functions with type hints and docstrings.")
    return tool.__name__
