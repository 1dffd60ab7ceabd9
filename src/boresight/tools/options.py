"""The options of the tools room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from boresight.options import Range, option


@dataclass
class ToolOptions:
    """How the calls of a policy are run (`GRPOTrainer(tools=…, environment_factory=…)`). The first option is TRL's."""

    heading: ClassVar[str] = "tools"

    max_tool_calling_iterations: Annotated[int | None, Range(at_least=0)] = option(
        None,
        "How often a completion may call tools; the calls of one turn count once. None: as often as max_completion_length has room, which "
        "also counts the results of tools.",
    )
    tool_timeout: Annotated[float, Range(above=0)] = option(
        60.0,
        "Time limit of one call in seconds. A call above it is answered with an error, and its environment is replaced.",
    )
    tool_workers: Annotated[int, Range(at_least=0)] = option(
        4,
        "Processes of each rank that run sync functions of `tools`, and are killed at tool_timeout. Functions that refer to mutable "
        "objects outside themselves, and methods of environments, stay in the training process. 0: all do, as in TRL.",
    )
    max_tool_images: Annotated[int, Range(at_least=0)] = option(
        8, "Most images that tools may put into one completion. A result above it is answered with an error."
    )
    max_tool_result_chars: Annotated[int, Range(at_least=1)] = option(
        16_384, "Longest text of one result, in characters. A longer one is answered with an error, never cut."
    )
