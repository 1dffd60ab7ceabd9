"""Prompts to completions with vLLM. Every output is checked against its request."""

from __future__ import annotations

import enum
import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from boresight.errors import ConfigError, EngineError, EngineRestartedError
from boresight.rollout.outputs import EngineOutput, OutputReader
from boresight.rollout.synced import MAX_REDONE, SyncReport
from boresight.rollout.vllm.adapter import AdapterSync
from boresight.rollout.vllm.engine import Engine, Request
from boresight.rollout.vllm.protocol.messages import BANNED, EngineFacts, GetFacts
from boresight.rollout.vllm.sync import WeightSync
from boresight.sampling import Adapter, SamplingSettings, Weights
from boresight.types import EncodedImage, Group, ModelFacts, Prompt

logger = logging.getLogger(__name__)


class State(enum.Enum):
    """How an engine's weights compare with the policy's."""

    FRESH = "fresh"
    """Equal: it may sample."""
    STALE = "stale"
    """Older, random, or unknown: it must be synced before it samples."""
    MIXED = "mixed"
    """Equal, but the caches are those of older weights: they must be reset before the next batch."""
    ASLEEP = "asleep"
    """Not in memory: it must be woken and synced before it samples."""


class VLLMSampler:
    """Samples from a vLLM engine. It sends the policy's weights to the engine, and refuses to sample with older ones.

    Each prompt is one request for n completions, so prompt and images are processed once. The request has one placeholder per image. The
    engine returns the expanded prompt, which must equal the trainer's.

    Args:
        engine: an engine in this process, or a server.
        weights: the policy's weights.
        facts: stop ids and banned ids.
        tokenizer: decodes completions, and tokens for messages.
        decode_image: decodes an image as for the trainer's processor.
        name: the run's name; with the step it labels the weights of a server.
        sleeps: free the engine's memory between rollouts.
        structured: vLLM's structured outputs (`{"regex": …}`), for every completion.
        adapter: the policy's adapter, if it is sent alone at every sync. `weights` are then sent once, without it.
        renews: the policy's weights may be replaced by newer ones while completions are sampled (`SyncedSampler.renew`).
        pushes: whether this process sends the weights. If another does, pass their label to `adopt`.
    """

    def __init__(
        self,
        engine: Engine,
        weights: Weights,
        facts: ModelFacts,
        tokenizer: PreTrainedTokenizerBase,
        *,
        decode_image: Callable[[EncodedImage], Any],
        name: str,
        sleeps: bool = False,
        structured: dict[str, Any] | None = None,
        adapter: Adapter | None = None,
        renews: bool = False,
        pushes: bool = True,
    ) -> None:
        self.engine = engine
        self.where = engine.where
        self.reader = OutputReader(engine.where, facts, tokenizer)
        self.facts = facts
        self.decode_image = decode_image
        self.name = name
        self.sleeps = sleeps
        self.structured = structured
        self.renews = renews
        self.pushes = pushes
        self.state = State.STALE
        self.counts: Counter[str] = Counter()
        """Work done so far: prompt_tokens, completion_tokens, and restarts of the engine."""
        self._sync = AdapterSync(engine, weights, adapter) if adapter else WeightSync(engine, weights)
        self._num_syncs = 0
        self.version = ""
        """The label of the weights that the engine must hold."""
        self.engine_facts = self._checked_facts()

    @property
    def dtype(self) -> str:
        """The dtype that the engine computes in."""
        return self.engine_facts.dtype

    def _checked_facts(self) -> EngineFacts:
        """The engine's facts, after a check of its settings.

        Raises:
            ConfigError: a setting would make completions or log-probabilities wrong.
        """
        facts, where = self.engine.call(GetFacts()), self.engine.where
        if not facts.bans_ids:
            raise ConfigError(f"{where} lacks boresight's logits processor, so ids of images could be sampled.")
        if facts.logprobs_mode != "processed_logprobs":
            raise ConfigError(
                f"{where} has --logprobs-mode {facts.logprobs_mode}: start it with processed_logprobs, so that "
                "log-probabilities are those of the distribution that was sampled from."
            )
        return facts

    def _update_facts(self) -> None:
        """Read the engine's facts again, and count a restart if its instance id has changed."""
        before, self.engine_facts = self.engine_facts, self._checked_facts()
        if self.engine_facts.instance_id != before.instance_id:
            logger.warning("%s was restarted; all weights are sent again.", self.engine.where)
            self.counts["restarts"] += 1

    @property
    def is_fresh(self) -> bool:
        return self.state in (State.FRESH, State.MIXED)

    def outdate(self) -> None:
        """Mark the engine's weights as stale: the policy has changed, or the engine may have lost them."""
        if self.state in (State.FRESH, State.MIXED):
            self.state = State.STALE

    def sync(self, step: int, *, in_flight: bool = False) -> SyncReport | None:
        """Wake the engine and send it the policy's weights, if it does not have them. The sync is repeated if the engine restarts.

        Raises:
            SyncError: weights did not arrive as they were sent.
            EngineError: the engine did not recover.
        """
        for attempt in itertools.count():
            try:
                return self._sync_once(step, in_flight)
            except EngineRestartedError as error:
                if attempt == MAX_REDONE:
                    raise
                logger.warning("%s The weights are sent again.", error)
        raise AssertionError

    def _sync_once(self, step: int, in_flight: bool) -> SyncReport | None:
        if self.state is State.ASLEEP:
            self.engine.wake()
            self.state = State.STALE
        if self.state is State.FRESH:
            return None
        if self.state is State.MIXED:
            self.state = State.STALE
            self.engine.reset_caches(images=True)
            self.state = State.FRESH
            return None
        self._update_facts()
        # If the engine's label differs from that of the last sync, its weights are unknown, and all are sent.
        everything = self.engine.version() != self.version
        return self._push(f"{self.name}/{step}/{self._num_syncs}", everything=everything, in_flight=in_flight)

    def adopt(self, version: str) -> None:
        """Record that some process has sent the policy's weights to the engine under this label."""
        self.version = version
        if self.state is not State.MIXED:
            self.state = State.FRESH

    def _push(self, version: str, *, everything: bool = False, in_flight: bool = False) -> SyncReport:
        report = self._sync.push(version, everything=everything, in_flight=in_flight)
        self.state = State.MIXED if in_flight else State.FRESH
        self.adopt(version)
        self._num_syncs += 1
        return report

    def rest(self) -> None:
        """Put the engine to sleep, if it `sleeps`. Its weights are stale when it wakes."""
        if self.sleeps:
            self.engine.sleep()
            self.state = State.ASLEEP

    def sample(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Group]:
        """`settings.num_completions` completions of each prompt, prompts in order, with the engine's log-probabilities.

        Raises:
            EngineRestartedError: the engine restarted, or lost the policy's weights: sync, and sample again.
            EngineError: the weights are not the policy's, the engine read another prompt than the trainer, or its output does not match
                the request.
        """
        return self.completed(prompts, self.requests(prompts, settings), settings)

    def completed(
        self, prompts: Sequence[Prompt], requests: Sequence[Request], settings: SamplingSettings
    ) -> list[Group]:
        """As `sample`, with requests that are already built."""
        if self.state not in (State.FRESH, State.MIXED):
            raise EngineError(f"{self.engine.where} is {self.state.value}: it must be synced before it samples.")
        # A rank whose completions have all ended, while those of others go on, asks for nothing.
        outputs = self.engine.generate(requests) if requests else []
        found = self.engine.version()
        if found != self.version and not (self.renews and found.startswith(f"{self.name}/")):
            raise EngineRestartedError(f"{self.engine.where} holds the weights {found!r} instead of {self.version!r}.")
        groups = [self._group(*pair, settings) for pair in zip(prompts, outputs, strict=True)]
        self.counts["prompt_tokens"] += sum(len(prompt.ids) for prompt in prompts)
        self.counts["completion_tokens"] += sum(group.num_completion_tokens for group in groups)
        return groups

    def sampled_by(self, place: int) -> str:
        return self.where

    def is_up(self) -> bool:
        """Whether the engine can be called now."""
        return self.engine.is_up()

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()

    # ---- Requests ---------------------------------------------------------------------------------------------------------------

    def requests(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Request]:
        """The requests for these prompts.

        Raises:
            ConfigError: a request exceeds the engine's limits.
        """
        self.check(prompts, settings)
        common = self._common(settings)
        base = int(torch.randint(2**31, ())) if settings.seed is None else settings.seed
        seen: Counter[int] = Counter()
        requests = []
        for prompt in prompts:
            index = prompt.row.index
            # As in `HFSampler`, the seed depends on the row and how often it occurred before, not on the other prompts of the batch.
            name = f"{base} {index} {seen[index]}".encode()
            seen[index] += 1
            seed = int.from_bytes(hashlib.sha256(name).digest()[:4]) >> 1
            images = [self.decode_image(image) for each in prompt.image_sets for image in each.images]
            own = {"seed": seed, "max_tokens": prompt.room(settings.max_completion_length)}
            requests.append(Request(prompt.unexpanded_ids.tolist(), images, common | own))
        return requests

    def _common(self, settings: SamplingSettings) -> dict[str, Any]:
        options = {
            "n": _requested(settings),
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "min_p": settings.min_p or 0.0,
            "repetition_penalty": settings.repetition_penalty,
            "stop_token_ids": list(self.facts.stop_ids),
            "ignore_eos": True,  # stop_token_ids lists all end tokens
            "logprobs": 0,  # only of the sampled token
            "detokenize": False,
            "extra_args": {BANNED: list(self.facts.modality_ids)},
        }
        return options | ({"structured_outputs": self.structured} if self.structured else {})

    def check(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        """Check prompts against the engine's limits.

        Raises:
            ConfigError: a prompt or a setting exceeds them.
        """
        if settings.num_completions > self.engine_facts.max_num_seqs:
            raise ConfigError(
                f"num_generations={settings.num_completions}, but {self.engine.where} samples {self.engine_facts.max_num_seqs} at a time: "
                "raise its max_num_seqs."
            )
        for prompt in prompts:
            self._check_length(prompt, settings)

    def _check_length(self, prompt: Prompt, settings: SamplingSettings) -> None:
        longest, most = len(prompt.ids) + prompt.room(settings.max_completion_length), self.engine_facts.max_model_len
        if longest > most:
            raise ConfigError(
                f"row {prompt.row.index}: {len(prompt.ids)} tokens of prompt and max_completion_length={settings.max_completion_length} "
                f"exceed the {most} tokens that {self.engine.where} allows: raise vllm_max_model_length (a server: --max-model-len)."
            )

    def _group(self, prompt: Prompt, output: EngineOutput, settings: SamplingSettings) -> Group:
        group = self.reader.group(prompt, output, num_completions=_requested(settings))
        return Group(prompt, group.completions * (settings.num_completions // len(group.completions)))


def _requested(settings: SamplingSettings) -> int:
    """How many completions vLLM samples of each prompt. Greedy ones are all equal, so it samples one."""
    return settings.num_completions if settings.temperature else 1
