"""Sampling with transformers: each prompt and image is processed once, with completions as branches."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from boresight.modules import evaluating, unwrap
from boresight.rollout.choice import SAYS, Sampling, choose_sampling
from boresight.rollout.continuing import KnownTurns
from boresight.rollout.decode import Decoder, ImageFeatures, Prefill
from boresight.rollout.distribution import Distribution, uniforms
from boresight.sampling import SamplingSettings
from boresight.types import Completion, ExampleSource, Group, ModelFacts, Prompt

logger = logging.getLogger(__name__)


class HFSampler:
    """Samples from the policy itself, with transformers.

    Ids that only the processor may place are never sampled. Every stop id of `facts` ends a completion. The checkpoint's generation
    config is not used. The model is in evaluation mode during sampling, and returns to its former mode afterwards.

    Args:
        model: returns the policy: a transformers model, or one wrapped by PEFT.
        facts: stop ids and banned ids.
        tokenizer: decodes completions.
        features: returns image features, computed or cached by another pass (of a frozen vision tower); None lets the model encode
            images.
        examples: makes the groups on which sampling is verified at the first call. None verifies nothing.
        uncounted: a context in which `features` counts no work.
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        facts: ModelFacts,
        tokenizer: PreTrainedTokenizerBase,
        *,
        features: ImageFeatures | None = None,
        examples: ExampleSource | None = None,
        uncounted: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model = model
        self.facts = facts
        self.tokenizer = tokenizer
        self.features = features
        self.examples = examples
        self.uncounted = uncounted
        self._sampling: Sampling | None = None
        self.counts: Counter[str] = Counter()
        """Work done so far: vision_encodes (images through the vision tower; not counted here with `features`, which has its own
        counts), prompt_tokens (and those of earlier turns that were run again), completion_tokens, padded_tokens (computed for finished
        completions)."""
        self._warned: set[str] = set()
        self._known = KnownTurns(lambda reason: self._warn_once(f"{type(unwrap(self.model())).__name__} {reason}."))

    def sample(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Group]:
        """`settings.num_completions` completions of each prompt, prompts in order.

        Log-probabilities are those of the distribution that tokens were sampled from: after penalty, temperature, top-k, top-p and min-p,
        without banned ids. With a seed, completions do not depend on which prompts share a call, up to rounding in the model.
        """
        if not prompts:
            return []
        model = self.model()
        base = unwrap(model)
        numbers = uniforms(prompts, settings)
        with torch.no_grad(), evaluating(model):
            sampling, prefill = self._way(model), Prefill(base, self.features)
            if sampling.reason:
                self._warn_once(f"{type(base).__name__} {SAYS[sampling.way]}: {sampling.reason.rstrip('.')}.")
            batches = [prompts] if sampling.way == "branches" else [[prompt] for prompt in prompts]
            shares = numbers.split([settings.num_completions * len(batch) for batch in batches])
            known = self._known if settings.continues else None
            if any(prompt.begun is None for prompt in prompts):  # another rollout
                self._known.clear()
            groups: list[Group] = []
            for batch, share in zip(batches, shares, strict=True):
                (decoder,) = sampling.decoders(prefill, batch, settings.num_completions, known)
                groups += self._groups(batch, settings, decoder, share)
            self._known.turn_ended()
            self.counts.subtract(self._known.spared())
            return groups

    def _way(self, model: nn.Module) -> Sampling:
        """How the model is sampled from, chosen once."""
        if self._sampling is None:
            with self.uncounted():
                self._sampling = choose_sampling(model, self.features, self.examples)
        return self._sampling

    def _groups(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, decoder: Decoder, numbers: Tensor
    ) -> list[Group]:
        device = decoder.logits.device
        stop_ids = torch.tensor(self.facts.stop_ids, device=device)
        distribution = Distribution(settings, torch.tensor(self.facts.modality_ids, dtype=torch.long, device=device))
        rooms = torch.tensor([prompt.room(settings.max_completion_length) for prompt in prompts], device=device)
        numbers = numbers[:, : int(rooms.max())].to(device)
        ids, logp, computed = self._complete(prompts, decoder, distribution, numbers, stop_ids)
        room = rooms.repeat_interleave(settings.num_completions)
        stopped = torch.isin(ids, stop_ids) & (torch.arange(ids.shape[1], device=device) < room[:, None])
        truncated = ~stopped.any(1)
        lengths = torch.where(truncated, room.clamp(max=ids.shape[1]), stopped.int().argmax(1) + 1).tolist()
        self.counts["prompt_tokens"] += sum(len(prompt.ids) for prompt in prompts)
        self.counts["completion_tokens"] += sum(lengths)
        self.counts["padded_tokens"] += computed - sum(lengths)
        k = settings.num_completions
        self.counts["unshared_prompt_tokens"] += k * sum(len(prompt.ids) for prompt in prompts)
        num_images = sum(len(each.images) for prompt in prompts for each in prompt.image_sets)
        self.counts["unshared_vision_encodes"] += k * num_images
        if self.features is None:
            self.counts["vision_encodes"] += num_images
        texts = self.tokenizer.batch_decode(
            [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)], skip_special_tokens=True
        )
        completions = [
            Completion(
                ids=row[:length].clone(),
                mask=torch.ones(length, dtype=torch.bool),
                text=text,
                sampler_logp=values[:length].clone(),
                truncated=cut,
            )
            for row, values, length, text, cut in zip(
                ids.cpu(), logp.cpu(), lengths, texts, truncated.tolist(), strict=True
            )
        ]
        return [Group(prompt, tuple(completions[i * k : (i + 1) * k])) for i, prompt in enumerate(prompts)]

    def weights_moved(self) -> None:
        """What is known of prompts no longer holds."""
        self._known.clear()

    def rest(self) -> None:
        """Free what is known of prompts."""
        self._known.clear()

    def close(self) -> None:
        """Nothing to do, because it has no engine."""

    def _complete(
        self, prompts: Sequence[Prompt], decoder: Decoder, distribution: Distribution, numbers: Tensor, stop_ids: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        """Tokens [B, T], their log-probabilities [B, T] (both undefined after a stop id), and how many tokens were computed."""
        size, device = numbers.shape, numbers.device
        ids = torch.zeros(size, dtype=torch.long, device=device)
        logp = torch.zeros(size, device=device)
        history = _histories(prompts, size, device) if distribution.needs_history else ids
        place = history.shape[1] - size[1]
        slots = torch.arange(size[0], device=device)
        alive = torch.ones(size[0], dtype=torch.bool, device=device)
        logits, length, computed = decoder.logits, 0, 0
        for t in range(size[1]):
            every = distribution.logp(logits, history[slots, : place + t] if distribution.needs_history else history)
            tokens = distribution.choose(every, numbers[slots, t])
            ids[slots, t] = tokens
            logp[slots, t] = every.gather(1, tokens[:, None])[:, 0]
            if distribution.needs_history:
                history[slots, place + t] = tokens
            length, computed = t + 1, computed + len(slots)
            alive &= (tokens[:, None] != stop_ids).all(1)
            if length == size[1] or not alive.any():
                break
            kept = decoder.compact(alive)
            if kept is not None:
                slots, alive, tokens = slots[kept], alive[kept], tokens[kept]
            logits = decoder.step(tokens)
        return ids[:, :length], logp[:, :length], computed

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)


def _histories(prompts: Sequence[Prompt], size: torch.Size, device: torch.device) -> Tensor:
    """[B, P + T] every completion's prompt, padded on the left with its first id, then zeros in place of the completion."""
    width = max(len(prompt.ids) for prompt in prompts)
    rows = torch.stack([torch.cat([prompt.ids[:1].expand(width - len(prompt.ids)), prompt.ids]) for prompt in prompts])
    copies = rows.to(device).repeat_interleave(size[0] // len(prompts), 0)
    return torch.cat([copies, torch.zeros(size, dtype=torch.long, device=device)], 1)
