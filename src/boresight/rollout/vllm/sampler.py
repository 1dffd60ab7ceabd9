"""Prompts to completions by vLLM, with every answer checked against what was asked."""

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
from boresight.rollout.vllm.adapter import AdapterSync
from boresight.rollout.vllm.engine import Answer, Engine, Request
from boresight.rollout.vllm.names import BANNED
from boresight.rollout.vllm.sync import SyncReport, WeightSync
from boresight.types import Adapter, Completion, EncodedImage, Group, ModelFacts, Prompt, SamplingSettings, Weights

logger = logging.getLogger(__name__)

MAX_REDONE = 3
"""How often one sync, or one batch, is done anew because the engine went away meanwhile."""


class State(enum.Enum):
    """What an engine's weights are."""

    FRESH = "fresh"
    """The policy's."""
    STALE = "stale"
    """The policy's of an earlier step, or nobody's."""
    ASLEEP = "asleep"
    """Put away."""


class VLLMSampler:
    """Samples from a vLLM engine, which is sent the policy's weights and refuses to sample with older ones.

    One request a prompt, with n completions: prompt and images are read once. The prompt goes out with one placeholder an image and must
    come back as the trainer expanded it.

    Args:
        engine: in this process or a server.
        weights: the policy's.
        facts: stop ids and banned ids.
        tokenizer: decodes completions, and names tokens in messages.
        decode_image: the image as the trainer's processor gets it.
        name: of this run; a server's weights are called by it and the step.
        sleeps: put the engine's memory away between draws.
        structured: vLLM's structured outputs (`{"regex": …}`), for every completion.
        adapter: goes to the engine by itself, after the weights without it, which are sent once.
        pushes: whether this process sends the weights; where another does, `adopt` says what they are called.
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
        pushes: bool = True,
    ) -> None:
        self.engine = engine
        self.facts = facts
        self.tokenizer = tokenizer
        self.decode_image = decode_image
        self.name = name
        self.sleeps = sleeps
        self.structured = structured
        self.pushes = pushes
        self.state = State.STALE
        self.counts: Counter[str] = Counter()
        """Work done so far: prompt_tokens, completion_tokens, and restarts of the engine that were mended."""
        self._sync = AdapterSync(engine, weights, adapter) if adapter else WeightSync(engine, weights)
        self._num_syncs = 0
        self.version = ""
        """What the weights are called that the engine must hold."""
        self._life = ""
        self._ask()

    def _ask(self) -> None:
        """What the engine is set to, and whether it is still the process that it was.

        Raises:
            ConfigError: it cannot be relied on.
        """
        engine = self.engine
        told = engine.call("boresight_facts")
        if self._life not in ("", told["life"]):
            logger.warning("%s was started anew, and is sent all weights.", engine.where)
            self.counts["restarts"] += 1
        self._life = told["life"]
        self.max_model_len, self.max_num_seqs = told["max_model_len"], told["max_num_seqs"]
        if not told["bans"]:
            raise ConfigError(f"{engine.where} lacks boresight's logits processor, so ids of images could be sampled.")
        if told["logprobs_mode"] != "processed_logprobs":
            raise ConfigError(
                f"{engine.where} has --logprobs-mode {told['logprobs_mode']}: start it with processed_logprobs, so that "
                "log-probabilities are those of the distribution that was sampled from."
            )
        self.dtype: str = told["dtype"]

    def outdate(self) -> None:
        """The policy has moved on, or the engine's weights are in doubt."""
        if self.state is State.FRESH:
            self.state = State.STALE

    def sync(self, step: int) -> SyncReport | None:
        """Wake the engine and send it the policy's weights, if it does not have them; again, when it goes away meanwhile.

        Raises:
            SyncError: they did not arrive as they were sent.
            EngineError: the engine is gone for good.
        """
        for attempt in itertools.count():
            try:
                return self._sync_once(step)
            except EngineRestartedError as error:
                if attempt == MAX_REDONE:
                    raise
                logger.warning("%s The weights are sent again.", error)
        raise AssertionError

    def _sync_once(self, step: int) -> SyncReport | None:
        if self.state is State.ASLEEP:
            self.engine.wake()
            self.state = State.STALE
        if self.state is State.FRESH:
            return None
        self._ask()
        # One that holds other weights than it was sent last gets all of them, whoever changed them.
        everything = self.engine.version() != self.version
        return self._push(f"{self.name}/{step}/{self._num_syncs}", everything=everything)

    def adopt(self, version: str) -> None:
        """The engine was sent the policy's weights under this name, by whichever process."""
        self.version, self.state = version, State.FRESH

    def _push(self, version: str, *, everything: bool = False) -> SyncReport:
        report = self._sync.push(version, everything=everything)
        self.adopt(version)
        self._num_syncs += 1
        return report

    def rest(self) -> None:
        """Put the engine to sleep, where it was asked for. What it holds is stale when it wakes."""
        if self.sleeps:
            self.engine.sleep()
            self.state = State.ASLEEP

    def sample(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Group]:
        """`settings.num_completions` completions of each prompt, prompts in order, with the engine's log-probabilities.

        Raises:
            EngineRestartedError: the engine went away, or lost the policy's weights: sync, and sample again.
            EngineError: the weights are not the policy's, the engine read another prompt than the trainer, or broke its word in
                another way.
        """
        return self.completed(prompts, self.requests(prompts, settings), settings)

    def completed(
        self, prompts: Sequence[Prompt], requests: Sequence[Request], settings: SamplingSettings
    ) -> list[Group]:
        """As `sample`, given what goes to the engine."""
        if self.state is not State.FRESH:
            raise EngineError(f"{self.engine.where} is {self.state.value}: it must be synced before it samples.")
        answers = self.engine.generate(requests)
        found = self.engine.version()
        if found != self.version:
            raise EngineRestartedError(f"{self.engine.where} holds the weights {found!r} instead of {self.version!r}.")
        groups = [self._group(*pair, settings) for pair in zip(prompts, answers, strict=True)]
        self.counts["prompt_tokens"] += sum(len(prompt.ids) for prompt in prompts)
        self.counts["completion_tokens"] += sum(group.num_completion_tokens for group in groups)
        return groups

    def close(self) -> None:
        """Let go of the engine."""
        self.engine.close()

    # ---- Out --------------------------------------------------------------------------------------------------------------------

    def requests(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Request]:
        """What goes to the engine.

        Raises:
            ConfigError: the engine cannot take it.
        """
        if settings.num_completions > self.max_num_seqs:
            raise ConfigError(
                f"num_generations={settings.num_completions}, but {self.engine.where} samples {self.max_num_seqs} at a time: "
                "raise its max_num_seqs."
            )
        common = self._common(settings)
        base = int(torch.randint(2**31, ())) if settings.seed is None else settings.seed
        seen: Counter[int] = Counter()
        requests = []
        for prompt in prompts:
            self._check_length(prompt, settings)
            index = prompt.row.index
            # As for transformers' sampler: the seed depends on the row and how often it came before, not on what it is batched with.
            name = f"{base} {index} {seen[index]}".encode()
            seen[index] += 1
            seed = int.from_bytes(hashlib.sha256(name).digest()[:4]) >> 1
            images = [self.decode_image(image) for image in prompt.images]
            requests.append(Request(prompt.unexpanded_ids.tolist(), images, common | {"seed": seed}))
        return requests

    def _common(self, settings: SamplingSettings) -> dict[str, Any]:
        options = {
            # Greedy completions are all the same, and vLLM samples one.
            "n": settings.num_completions if settings.temperature else 1,
            "max_tokens": settings.max_completion_length,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "min_p": settings.min_p or 0.0,
            "repetition_penalty": settings.repetition_penalty,
            "stop_token_ids": list(self.facts.stop_ids),
            "ignore_eos": True,  # the stop ids say it all
            "logprobs": 0,  # of the sampled token alone
            "detokenize": False,
            "extra_args": {BANNED: list(self.facts.modality_ids)},
        }
        return options | ({"structured_outputs": self.structured} if self.structured else {})

    def _check_length(self, prompt: Prompt, settings: SamplingSettings) -> None:
        longest = len(prompt.ids) + settings.max_completion_length
        if longest > self.max_model_len:
            raise ConfigError(
                f"row {prompt.row.index}: {len(prompt.ids)} tokens of prompt and max_completion_length={settings.max_completion_length} "
                f"do not fit into the {self.max_model_len} of {self.engine.where}: raise vllm_max_model_length (a server: --max-model-len)."
            )

    # ---- Back -------------------------------------------------------------------------------------------------------------------

    def _group(self, prompt: Prompt, answer: Answer, settings: SamplingSettings) -> Group:
        self._check_prompt(prompt, answer.prompt_ids)
        k = settings.num_completions
        asked = k if settings.temperature else 1
        if len(answer.completions) != asked:
            raise EngineError(
                f"row {prompt.row.index}: {self.engine.where} returned {len(answer.completions)} completions of {asked}."
            )
        completions = tuple(self._completion(prompt, *each) for each in answer.completions)
        return Group(prompt, completions if settings.temperature else completions * k)

    def _check_prompt(self, prompt: Prompt, read: Sequence[int]) -> None:
        ours, theirs = prompt.ids.tolist(), list(read)
        if ours == theirs:
            return
        place = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        pair = [self._token(ids, place) for ids in (ours, theirs)]
        raise EngineError(
            f"row {prompt.row.index}: {self.engine.where} read another prompt than the trainer: {len(theirs)} tokens instead of "
            f"{len(ours)}, the first difference at token {place} ({pair[1]} instead of {pair[0]}). The two have different processors or "
            "pixel budgets: give the server the trainer's min_pixels and max_pixels "
            "(boresight vllm-serve --min_pixels … --max_pixels …) and the same model folder."
        )

    def _token(self, ids: Sequence[int], place: int) -> str:
        return repr(self.tokenizer.decode([ids[place]])) if place < len(ids) else "the end"

    def _completion(self, prompt: Prompt, ids: Sequence[int], logp: Sequence[float]) -> Completion:
        if len(ids) != len(logp) or not ids:
            raise EngineError(
                f"row {prompt.row.index}: {self.engine.where} returned {len(ids)} tokens with {len(logp)} log-probabilities."
            )
        if banned := set(ids) & set(self.facts.modality_ids):
            raise EngineError(
                f"row {prompt.row.index}: {self.engine.where} sampled {self.tokenizer.decode([min(banned)])!r}, which only a "
                "processor may place, although it was banned."
            )
        return Completion(
            ids=torch.tensor(ids),
            mask=torch.ones(len(ids), dtype=torch.bool),
            text=self.tokenizer.decode(list(ids), skip_special_tokens=True),  # pyright: ignore[reportArgumentType]
            sampler_logp=torch.tensor(logp, dtype=torch.float32),
            truncated=ids[-1] not in self.facts.stop_ids,
        )
