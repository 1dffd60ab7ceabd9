"""What a model that learns from demonstrations or pairs answers by itself: a few held-out prompts, greedily, at every evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput

from boresight.data.encode import Encoder
from boresight.model.shards import gathered
from boresight.report.completions import CompletionStore
from boresight.report.metrics import MeanMetrics
from boresight.rewards.extract import completion_text, final_answer
from boresight.sampling import SamplingSettings
from boresight.trainer.base import GroupTrainer
from boresight.trainer.random_states import random_states_kept
from boresight.trainer.rollouts.answers import right_answer
from boresight.trainer.update import Item
from boresight.types import Group, Row

MAX_LENGTH = 512
"""The most tokens of an answer."""


class AnsweringTrainer(GroupTrainer[Item]):
    """A trainer that learns from given completions, and keeps its own answers to the first held-out prompts in the run folder.

    The first rank samples them, after an evaluation's metrics. They may be half as long again as the longest completion of their rows.
    Rows without a prompt, such as plain text, are passed over.
    """

    args: Any
    encoder: Encoder
    _held_out: list[Group]

    def evaluate_step(self, inputs: list[Any], metrics: MeanMetrics) -> None:
        super().evaluate_step(inputs, metrics)
        groups: list[Group] = [getattr(item, "group", item) for item in inputs]
        room = self.args.num_eval_samples - len(self._held_out)
        self._held_out += [group for group in groups if group.prompt.row.prompt and len(group)][: max(room, 0)]

    def evaluation_loop(self, *args: Any, **options: Any) -> EvalLoopOutput:
        self._held_out = []
        found = super().evaluation_loop(*args, **options)
        held_out, self._held_out = self._held_out, []
        if self.args.num_eval_samples:
            # Divided weights are gathered by all ranks together.
            with random_states_kept(), gathered(self.policy.outer):
                if self.is_world_process_zero() and held_out:
                    self._answer(held_out)
        return found

    @cached_property
    def _answers(self) -> CompletionStore:
        return CompletionStore(self.args.output_dir, tokenizer=self.encoder.tokenizer)

    def discard_after(self, step: int) -> int:
        return super().discard_after(step) + self._answers.discard_after(step)

    def _answer(self, held_out: Sequence[Group]) -> None:
        longest = max(len(completion.ids) for group in held_out for completion in group.completions)
        settings = SamplingSettings(
            num_completions=1, max_completion_length=min(longest + (longest + 1) // 2, MAX_LENGTH), temperature=0.0
        )
        prompts = [self.encoder.prompt(group.prompt.row) for group in held_out]
        with self.without_gradient():
            groups = self.own_sampler().sample(prompts, settings)
        self._answers.add(
            self.state.global_step,
            groups,
            rewards={},
            reward=torch.full((len(groups),), torch.nan),
            phase="eval",
            answers=[(final_answer(group.completions[0].text).strip(), _wanted(group.prompt.row)) for group in groups],
        )


def _wanted(row: Row) -> str | None:
    """The right answer of a row, or else that of its demonstration, or of the better of its pair."""
    if (right := right_answer(row)) is not None:
        return right
    return final_answer(completion_text(row.completions[0])).strip() if row.completions else None
