"""From logits to tokens: the distribution that tokens are sampled from, and the choice of a token."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from boresight.sampling import SamplingSettings
from boresight.types import Prompt


class Distribution:
    """The distribution of the next token under some settings, in transformers' order: penalty, temperature, top-k, top-p, min-p.

    Ids that only the processor may place have zero probability, whatever their logits. At temperature 0 the most likely token is
    chosen, and log-probabilities are those of temperature 1 before top-k, top-p and min-p, which change nothing there.

    Args:
        banned: ids with zero probability.
    """

    def __init__(self, settings: SamplingSettings, banned: Tensor) -> None:
        self.banned = banned
        self.greedy = settings.temperature == 0
        self.needs_history = settings.repetition_penalty != 1
        self._processors = LogitsProcessorList()
        if self.needs_history:
            self._processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        if self.greedy:
            return
        if settings.temperature != 1:
            self._processors.append(TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k:
            self._processors.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            self._processors.append(TopPLogitsWarper(settings.top_p))
        if settings.min_p:
            self._processors.append(MinPLogitsWarper(settings.min_p))

    def logp(self, logits: Tensor, history: Tensor) -> Tensor:
        """Log-probabilities of the next token.

        Args:
            logits: [N, V] of any floating type.
            history: [N, ≥ 0] ids of prompt and completion so far, read only if `needs_history`. A row may be padded with
                ids that it contains.

        Returns:
            [N, V] in float32.
        """
        scores = logits.float().index_fill(-1, self.banned, -torch.inf)
        return self._processors(history, scores).log_softmax(-1)  # pyright: ignore[reportArgumentType]

    def choose(self, logp: Tensor, uniform: Tensor) -> Tensor:
        """[N] one token per row: the most likely one, or the one where the cumulative distribution passes `uniform` ([N], float64).

        With one random number per token, a choice does not depend on the other rows. It uses float64, because a float32 cumulative sum
        over a large vocabulary has errors above the probabilities of rare tokens.
        """
        if self.greedy:
            return logp.argmax(-1)
        cumulative = logp.double().exp().cumsum(-1)
        total = cumulative[:, -1:]
        # Below the total even after rounding, so that the chosen token never has zero probability.
        target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
        return torch.searchsorted(cumulative, target, right=True)[:, 0]


def uniforms(prompts: Sequence[Prompt], settings: SamplingSettings) -> Tensor:
    """[B, C] the random numbers that choose one call's tokens, completions in the order of their prompts.

    They are generated on the CPU, so that every device gives the same ones. With a seed, a prompt's numbers depend only on the seed, its
    row's index and how often that row occurred earlier in the call, not on the other prompts of the batch. Without a seed they come from
    torch's global generator.
    """
    shape = (settings.num_completions, settings.max_completion_length)
    if settings.temperature == 0:
        return torch.zeros(len(prompts) * shape[0], shape[1], dtype=torch.float64)
    if settings.seed is None:
        return torch.rand(len(prompts) * shape[0], shape[1], dtype=torch.float64)
    seen: Counter[int] = Counter()
    numbers = []
    for prompt in prompts:
        index = prompt.row.index
        name = f"{settings.seed} {index} {seen[index]}".encode()
        seen[index] += 1
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:4]))
        numbers.append(torch.rand(shape, dtype=torch.float64, generator=generator))
    return torch.cat(numbers)
