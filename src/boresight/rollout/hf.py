"""Sampling by transformers: each prompt and each picture once, its completions as branches."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from boresight.rollout.decode import Branches, Decoder, PictureFeatures, Prefill, Rows
from boresight.rollout.draw import Distribution, uniforms
from boresight.types import Completion, Group, ModelFacts, Prompt, SamplingSettings

logger = logging.getLogger(__name__)


class HFSampler:
    """Samples from the policy itself, with transformers.

    Ids that only the processor may place are never sampled, every stop id of `facts` ends a completion, and nothing of the
    checkpoint's own generation config is used. The model is in evaluation mode meanwhile, and in its former mode afterwards.

    Args:
        model: returns the policy: a transformers model, or one wrapped by PEFT.
        facts: stop ids and banned ids.
        tokenizer: decodes completions.
        features: encodes pictures, or knows them already (a frozen tower's, kept from another pass); None lets the model encode them.
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        facts: ModelFacts,
        tokenizer: PreTrainedTokenizerBase,
        *,
        features: PictureFeatures | None = None,
    ) -> None:
        self.model = model
        self.facts = facts
        self.tokenizer = tokenizer
        self.features = features
        self.counts: Counter[str] = Counter()
        """Work done so far: vision_encodes (pictures through the tower; 0 with `features`, which count their own), prompt_tokens,
        completion_tokens, padded_tokens (computed for completions that had ended)."""
        self._said: set[str] = set()

    def sample(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Group]:
        """`settings.num_completions` completions of each prompt, prompts in order.

        Log-probabilities are those of the distribution that was drawn from: after temperature, penalty and narrowing, without
        banned ids. With a seed, completions do not depend on which prompts share a call, up to rounding in the model.
        """
        model = self.model()
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        numbers = uniforms(prompts, settings)
        with torch.no_grad(), evaluating(model):
            prefill = Prefill(base, self.features)
            reason = prefill.why_not_branches()
            if reason is None:
                return self._groups(prompts, settings, Branches(prefill, prompts, settings.num_completions), numbers)
            self._say_once(f"{type(base).__name__} samples one prompt at a time, one row per completion: {reason}.")
            groups: list[Group] = []
            for prompt, share in zip(prompts, numbers.split(settings.num_completions), strict=True):
                groups += self._groups([prompt], settings, Rows(prefill, prompt, settings.num_completions), share)
            return groups
