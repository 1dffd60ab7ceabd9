"""A saved model's answers with tools, for the comparison: the turns of training, at the settings of the comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from boresight.data.encode import Encoder
from boresight.data.turns import check_template
from boresight.option_checks import check_options
from boresight.options import declarations
from boresight.sampling import Sampler
from boresight.tools.environments import Environments
from boresight.tools.named import load_environment, load_tools, source_of_tools, tool_name
from boresight.tools.options import ToolOptions
from boresight.trainer.rollouts.turns import ToolLoop


@dataclass(frozen=True, slots=True)
class ToolSettings:
    """Which tools the models may call, as in `GRPOTrainer`."""

    tools: tuple[str | Callable[..., Any], ...] = ()
    """Functions, or their names (`tools.named`)."""
    environment_factory: Any = None
    """What makes environments, or its name."""
    options: ToolOptions = field(default_factory=ToolOptions)
    """Limits of calls and of their results."""

    def __post_init__(self) -> None:
        check_options(self.options)

    def __bool__(self) -> bool:
        return bool(self.tools or self.environment_factory)

    def environments(self) -> Environments:
        """The tools and environments themselves.

        Raises:
            ConfigError: there is none of a name, or something is no tool or no environment.
        """
        return Environments(load_tools(self.tools), load_environment(self.environment_factory))

    def described(self) -> dict[str, str]:
        """What an answer depends on, under readable names: the tools, a digest of their source, and limits that are not the default."""
        if not self:
            return {}
        functions, factory = load_tools(self.tools), load_environment(self.environment_factory)
        found = {"tools": " ".join(map(tool_name, self.tools))} if self.tools else {}
        if factory is not None:
            found["environment_factory"] = tool_name(self.environment_factory)
        classes = [] if factory is None else list(factory.values()) if isinstance(factory, dict) else [factory]
        found["source of the tools"] = source_of_tools([*functions, *classes])
        given = {each.name: getattr(self.options, each.name) for each in declarations(ToolOptions)}
        del given["tool_workers"]  # where a tool runs changes no answer
        default = ToolOptions()
        return found | {name: f"{value:g}" for name, value in given.items() if value != getattr(default, name)}


class NoTimes:
    """A timeline that records nothing."""

    def phase(self, name: str) -> Any:
        return nullcontext()


@contextmanager
def tool_loop(
    sampler: Sampler, encoder: Encoder, environments: Environments, options: ToolOptions
) -> Iterator[ToolLoop]:
    """The loop of turns, whose workers end with the context.

    Raises:
        ModelError: the chat template does not render tools.
    """
    check_template(encoder.texts)
    loop = ToolLoop(sampler, encoder, environments, options, NoTimes())
    try:
        yield loop
    finally:
        loop.workers.close()
