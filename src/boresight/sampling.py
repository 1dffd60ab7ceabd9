"""What samples completions: how it is asked, and what an engine beside the policy receives.

Shape letters are those of `boresight.types`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from boresight.types import EncodedImage, Group, ModelFacts, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # slow to import, and reward workers read this file


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How completions are sampled. A checkpoint's own sampling defaults are never used."""

    num_completions: int = 8
    max_completion_length: int = 512
    """In tokens, including the end token, and the turns that a prompt already has (`Prompt.begun`)."""
    temperature: float = 1.0
    """0: greedy decoding."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all tokens."""
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    """None: torch's global generator, whose state checkpoints save."""
    continues: bool = False
    """Whether the completions may be continued (`Prompt.followed_by`): a sampler may then keep what it computed until `rest`."""


@dataclass(frozen=True, slots=True)
class Weight:
    """The facts about one tensor of a saved policy that a sync needs."""

    trained: bool
    """Whether training changes it."""
    images: bool
    """Whether image features depend on it: it belongs to the vision tower or to the projector."""
    computed: bool = False
    """Whether `Weights.tensors` computes it (a merged adapter) instead of giving the policy's own."""


class Weights(Protocol):
    """The policy's weights under the names of its saved folder."""

    @property
    def listed(self) -> Mapping[str, Weight]: ...

    def tensors(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """The current tensors of these names."""
        ...


class Adapter(Protocol):
    """The policy's low-rank adapter: it replaces a module's weight W by W + B A."""

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        ...

    @property
    def images(self) -> bool:
        """Whether image features depend on it."""
        ...

    def factors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """For each module: its name in a saved folder, and the current A [rank, in] and B [out, rank]; B includes the scaling."""
        ...


class Sampler(Protocol):
    """Samples completions from the policy, with transformers or with a separate engine."""

    counts: Counter[str]
    """Work done since it was last cleared, by name: `prompt_tokens`, `completion_tokens`, …"""

    def sample(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Group]:
        """`settings.num_completions` completions of each prompt, prompts in order, each with the sampler's log-probabilities.

        If the policy's weights have changed, they are sent to the engine first. All ranks call this together.

        Raises:
            EngineError: on all ranks, if the engine of any rank failed permanently.
        """
        ...

    def weights_moved(self) -> None:
        """Note that the policy's weights may have changed, through an optimizer step or a loaded checkpoint."""
        ...

    def rest(self) -> None:
        """Note that these weights are not sampled from again: memory may be freed until the next `sample`."""
        ...

    def close(self) -> None:
        """Release the engine, if any. The sampler cannot be used afterwards."""
        ...


@runtime_checkable
class Phases(Protocol):
    """Records the time of a step by phase."""

    def phase(self, name: str) -> AbstractContextManager[None]: ...


@runtime_checkable
class Totals(Protocol):
    """Collects counts for the next log line."""

    def sum(self, name: str, values: float) -> None: ...


@dataclass(frozen=True, slots=True)
class TrainingHooks:
    """The interface through which a sampler with a separate engine accesses training."""

    logp: Callable[[Sequence[Group]], list[Tensor]]
    """[K, C] for each group: log-probabilities under the policy's current weights, without gradient."""
    step: Callable[[], int]
    """Optimizer steps done so far."""
    timeline: Phases
    metrics: Totals
    log_once: Callable[[str], None]
    """Prints a line on one rank."""
    sending: Callable[[bool], AbstractContextManager[Any]] = lambda _: nullcontext()
    """A context in which this rank can send the policy's weights, if it says so (True). All ranks enter it together."""


@dataclass(frozen=True, slots=True)
class EngineInputs:
    """What an engine beside the policy is built from."""

    run: str
    """A name of this run, equal on all ranks; with the step it labels the weights on a server."""
    weights: Callable[[bool], Weights]
    """The policy's weights, with (True) or without (False) its adapters merged into them."""
    adapter: Callable[[], Adapter]
    """The policy's adapter alone.

    Raises:
        ConfigError: the policy has no adapter that an engine can apply.
    """
    save: Callable[[Path], None]
    """Writes all files of a saved model but the weights: config, generation config and processor."""
    facts: ModelFacts
    tokenizer: PreTrainedTokenizerBase
    decode_image: Callable[[EncodedImage], Any]
    """Decodes an image as for the trainer's processor."""
    dtype: str
    """The dtype that the policy computes in."""
    max_tokens: int | None
    """The most tokens of a prompt and its completion; None if not all rows were measured."""
    max_images: int | None
    """The most images of a prompt; None if not all rows were measured."""
    seed: int
    rank: int
    num_ranks: int
    output_dir: Path
    """For logs of the engine."""
