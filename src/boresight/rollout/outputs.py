"""An engine's outputs as groups. Each output is checked against its request, whatever engine it is from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from boresight.errors import EngineError
from boresight.types import Completion, Group, ModelFacts, Prompt


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """What an engine returned for a request."""

    prompt_ids: Sequence[int]
    """The token ids of the prompt as the engine read it, images expanded."""
    completions: Sequence[tuple[Sequence[int], Sequence[float]]]
    """For each completion, its token ids and their log-probabilities in nats."""


@dataclass(frozen=True, slots=True)
class OutputReader:
    """Turns outputs into groups, and refuses those that do not match their request.

    Args:
        where: the engine's name for messages.
        facts: stop ids and banned ids.
        tokenizer: decodes completions, and tokens for messages.
    """

    where: str
    facts: ModelFacts
    tokenizer: PreTrainedTokenizerBase

    def group(self, prompt: Prompt, output: EngineOutput, *, num_completions: int) -> Group:
        """The group of one output.

        Raises:
            EngineError: the engine read another prompt than the trainer, or returned other completions than it was asked for.
        """
        self._check_prompt(prompt, output.prompt_ids)
        if len(output.completions) != num_completions:
            raise EngineError(
                f"row {prompt.row.index}: {self.where} returned {len(output.completions)} completions instead of {num_completions}."
            )
        return Group(prompt, tuple(self._completion(prompt, *each) for each in output.completions))

    def _check_prompt(self, prompt: Prompt, read: Sequence[int]) -> None:
        ours, theirs = prompt.ids.tolist(), list(read)
        if ours == theirs:
            return
        place = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        pair = [self._token(ids, place) for ids in (ours, theirs)]
        raise EngineError(
            f"row {prompt.row.index}: {self.where} read another prompt than the trainer: {len(theirs)} tokens instead of "
            f"{len(ours)}; the first difference is at token {place} ({pair[1]} instead of {pair[0]}). Their processors or pixel budgets "
            "differ: give the server the trainer's min_pixels and max_pixels "
            "(boresight vllm-serve --min_pixels … --max_pixels …) and the same model folder."
        )

    def _token(self, ids: Sequence[int], place: int) -> str:
        return repr(self.tokenizer.decode([ids[place]])) if place < len(ids) else "the end"

    def _completion(self, prompt: Prompt, ids: Sequence[int], logp: Sequence[float]) -> Completion:
        if len(ids) != len(logp) or not ids:
            raise EngineError(
                f"row {prompt.row.index}: {self.where} returned {len(ids)} tokens with {len(logp)} log-probabilities."
            )
        if banned := set(ids) & set(self.facts.modality_ids):
            raise EngineError(
                f"row {prompt.row.index}: {self.where} sampled {self.tokenizer.decode([min(banned)])!r}, which only a "
                "processor may place, although it was banned."
            )
        return Completion(
            ids=torch.tensor(ids),
            mask=torch.ones(len(ids), dtype=torch.bool),
            text=self.tokenizer.decode(list(ids), skip_special_tokens=True),  # pyright: ignore[reportArgumentType]
            sampler_logp=torch.tensor(logp, dtype=torch.float32),
            truncated=ids[-1] not in self.facts.stop_ids,
        )
