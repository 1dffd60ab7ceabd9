"""A policy that calls tools in its first turns, whatever its weights: later turns are sampled for real."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from boresight.data.turns import continued
from boresight.sampling import SamplingSettings
from boresight.types import Completion, Group, Prompt


class Scripted:
    """A sampler that says what a script says, and passes the turns for which the script has nothing to the real sampler.

    Args:
        real: the trainer's own sampler.
        script: from (the place of the prompt or branch in this call, the completion's place in its group, the turn) to a text, or None.
        by_row: pass the row's number instead of the place.
    """

    def __init__(self, trainer: Any, script: Callable[[int, int, int], str | None], *, by_row: bool = False) -> None:
        self.by_row = by_row
        self.real, self.trainer, self.script = trainer.sampler, trainer, script
        self.counts = self.real.counts
        self.calls: list[list[Prompt]] = []
        self.turn = 0

    def sample(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Group]:
        if prompts:  # on a rank whose completions have all ended there are none
            self.turn = 0 if prompts[0].begun is None else self.turn + 1
        self.calls.append(list(prompts))
        groups = self.real.sample(prompts, settings)
        return [
            replace(
                group,
                completions=tuple(self._said(group.prompt, place, k, own) for k, own in enumerate(group.completions)),
            )
            for place, group in enumerate(groups)
        ]

    def _said(self, prompt: Prompt, place: int, k: int, sampled: Completion) -> Completion:
        text = self.script(prompt.row.index if self.by_row else place, k, self.turn)
        if text is None:
            return sampled
        tokenizer = self.trainer.encoder.tokenizer
        ids = torch.tensor([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])
        made = Completion(ids, torch.ones(len(ids), dtype=torch.bool), text, token_types=None)
        if prompt.begun is None:
            (logp,) = self.trainer.logp([Group(prompt, (made,))], self.trainer.policy)
        else:
            start, turns = prompt.begun
            (logp,) = self.trainer.logp([Group(start, (continued(turns, made),))], self.trainer.policy)
        return replace(made, sampler_logp=logp[0, -len(ids) :])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def call(name: str, **arguments: Any) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def sampled_groups(trainer: Any) -> list[Group]:
    """The groups that a trainer with tools will sample, all turns of each; filled as it trains."""
    groups: list[Group] = []
    loop = trainer.rollouts.turns
    sample = loop.sample

    def kept(*arguments: Any) -> Any:
        found = sample(*arguments)
        groups.extend(found.groups)
        return found

    loop.sample = kept
    return groups
