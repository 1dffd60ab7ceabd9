"""`Rollouts`, which turns prompts into scored groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from accelerate.utils import gather_object
from torch import Tensor

from boresight.ranks import on_every_rank
from boresight.report.completions import CompletionStore
from boresight.report.metrics import MeanMetrics
from boresight.rewards.score import Scorer
from boresight.rewards.table import RewardTable
from boresight.rollout.options import narrows
from boresight.rollout.sampler import sampling_settings
from boresight.sampling import Phases, Sampler, SamplingSettings
from boresight.trainer.grpo_config import GRPOConfig
from boresight.trainer.rollouts.ahead import Ahead
from boresight.trainer.rollouts.answers import answers_beside
from boresight.trainer.rollouts.dynamic_sampling import further_rows, note_resampling, resample
from boresight.trainer.rollouts.rollout import Place, Rollout, exchanged, shares
from boresight.trainer.rollouts.rows import PromptRows, seed_of_rollout
from boresight.trainer.rollouts.scored import Scored
from boresight.trainer.rollouts.turns import ToolLoop
from boresight.trainer.steps import StepPlan
from boresight.types import Completion, Group, Prompt


class Rollouts:
    """Samples completions, scores them, compares each with its group, and stores all of them in the run folder.

    All ranks call it together.

    Args:
        sampler: samples from the policy.
        scorer: the reward functions.
        store: stores completions in the run folder.
        config: options of sampling, dynamic sampling and advantages.
        plan: the number of groups of a rank's optimizer steps.
        rows: the training rows.
        rank: the rank of this process.
        timeline: records the time by phase.
        metrics: receives a rollout's metrics.
        log_once: prints a line on one rank.
        ahead: samples rollouts one ahead (`rollout_lag=1`); None: a rollout is sampled when it is learned from.
        turns: samples completions that call tools (`ToolLoop`); None: without tools.
        penalty: returns [K] for each group: what is subtracted from its completions' rewards before they are compared. It may run the
            model, and all ranks call it together. None: nothing.
    """

    def __init__(
        self,
        sampler: Sampler,
        scorer: Scorer,
        store: CompletionStore,
        config: GRPOConfig,
        plan: StepPlan,
        rows: PromptRows,
        *,
        rank: int,
        timeline: Phases,
        metrics: MeanMetrics,
        log_once: Callable[[str], None],
        ahead: Ahead | None = None,
        turns: ToolLoop | None = None,
        penalty: Callable[[Sequence[Group], MeanMetrics], list[Tensor]] | None = None,
    ) -> None:
        self.sampler = sampler
        self.scorer = scorer
        self.store = store
        self.config = config
        self.plan = plan
        self.rows = rows
        self.rank = rank
        self.timeline = timeline
        self.metrics = metrics
        self.log_once = log_once
        self.penalty = penalty
        self.ahead = ahead
        self.turns = turns

    def collect(self, prompts: Sequence[Prompt], state: Any) -> tuple[list[Scored], pa.Table]:
        """Completions of this rank's prompts with their advantages.

        Args:
            prompts: one for each group that this rank learns from; with `ahead`, those of the next rollout, whose sampling is begun.
            state: transformers' `TrainerState`, which reward functions may request.

        Returns:
            The groups in the order in which optimizer steps learn from them, and this rank's rows as stored in the run folder.
        """
        seed = seed_of_rollout(self.config.seed, state.global_step)
        groups = self._taken_ahead(state)
        if not self.config.dynamic_sampling:
            self._begin_ahead(prompts, state)
        rollout = self._sample(prompts, seed, state, groups)
        kept = rollout.ranks
        if self.config.dynamic_sampling:
            rollout, kept = self._resample(rollout, seed, state)
            self._begin_ahead(prompts, state)
        self.sampler.rest()
        observed = None if self.turns is None else self.turns.encoder.with_observation
        groups = exchanged(rollout.groups, kept, self.rank, self.rows.prompt, observed)
        advantages = rollout.advantages([place for own in kept for place in own], self.config)
        self._note(self.metrics, rollout)
        scored = [Scored(group, advantages[place]) for group, place in zip(groups, kept[self.rank], strict=True)]
        return scored, self._keep(rollout, advantages, state.global_step + 1)

    def evaluate(self, prompts: Sequence[Prompt], state: Any, metrics: MeanMetrics) -> list[Scored]:
        """Completions sampled for one batch of an evaluation set, with a separate seed, and their advantages.

        Reward metrics are added to `metrics`, and the completions are stored in the run folder.
        """
        settings = sampling_settings(self.config, evaluating=True, seed=self.config.seed)
        groups, table = self._scored(prompts, settings, state, metrics)
        rollout = Rollout.of(groups, table, self.config, self._penalty(groups, metrics))
        self._note(metrics, rollout)
        self.store.add(
            state.global_step,
            groups,
            rewards=table.by_name,
            reward=table.total,
            phase="eval",
            extra=table.extra,
            answers=answers_beside(groups),
        )
        advantages = rollout.advantages([place for own in rollout.ranks for place in own], self.config)
        own = [advantages[self.rank, place] for place in range(len(groups))]
        return [Scored(group, values) for group, values in zip(groups, own, strict=True)]

    def _taken_ahead(self, state: Any) -> list[Group] | None:
        if self.ahead is None:
            return None
        with self.timeline.phase("sample"):
            return self.ahead.take(state.global_step)

    def _begin_ahead(self, prompts: Sequence[Prompt], state: Any) -> None:
        """Begin the next rollout, if the run has one."""
        step = state.global_step + self.plan.rollout_period
        if self.ahead is not None and step < state.max_steps:
            with self.timeline.phase("sample"):
                self.ahead.begin(prompts, step)

    def _sample(self, prompts: Sequence[Prompt], seed: int, state: Any, groups: list[Group] | None = None) -> Rollout:
        """Completions of this rank's prompts, or the given ones, and the rewards of all ranks'."""
        groups, table = self._scored(prompts, sampling_settings(self.config, seed=seed), state, self.metrics, groups)
        penalty = self._penalty(groups, self.metrics)
        with self.timeline.phase("reward"):
            return Rollout.of(groups, table, self.config, penalty)

    def _scored(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        state: Any,
        metrics: MeanMetrics,
        groups: list[Group] | None = None,
    ) -> tuple[list[Group], RewardTable]:
        """Completions of this rank's prompts, or the given ones, with their rewards."""
        turns = None
        if self.turns is not None:
            turns = self.turns.sample(prompts, settings)
            turns.note(metrics)
            groups = turns.groups
        elif groups is None:
            with self.timeline.phase("sample"):
                groups = self.sampler.sample(prompts, settings)
        environments = turns.environments if turns is not None else None
        with self.timeline.phase("reward"):
            table = on_every_rank(lambda: self.scorer.score(groups, trainer_state=state, environments=environments))
        if self.turns is not None and turns is not None:
            self.turns.close(turns)
        return groups, table

    def _penalty(self, groups: Sequence[Group], metrics: MeanMetrics) -> list[Tensor] | None:
        if self.penalty is None:
            return None
        with self.timeline.phase("logp"):
            return self.penalty(groups, metrics)

    def _resample(self, first: Rollout, seed: int, state: Any) -> tuple[Rollout, list[list[Place]]]:
        """The rollout after dynamic sampling, and the groups that each rank learns from."""
        num_steps = self.plan.steps_per_rollout

        def sample(rows: Sequence[Sequence[int]]) -> Rollout:
            with self.timeline.phase("data"):
                prompts = [self.rows.prompt(row) for row in rows[self.rank]]
            return self._sample(prompts, seed, state)

        found = resample(
            first,
            sample,
            self._further_rows(first, seed),
            num_steps=num_steps,
            max_rounds=self.config.max_sampling_rounds,
        )
        note_resampling(self.metrics, found, self.rank)
        if found.num_flat:
            self.log_once(f"step {state.global_step + 1}: {found.shortage}")
        return found.rollout, shares(found.kept, [len(own) // num_steps for own in first.ranks], num_steps)

    def _further_rows(self, first: Rollout, seed: int) -> Iterator[int]:
        own = [group.prompt.row.index for group in first.groups]
        taken = {row for rows in gather_object([own]) for row in rows}
        return further_rows(self.rows.count(), taken, seed)

    def _note(self, metrics: MeanMetrics, rollout: Rollout) -> None:
        """Log metrics of all sampled completions, and of the sampler's work."""
        rollout.note(metrics)
        if narrows(self.config) or self.config.vllm_structured_outputs_regex is not None:
            metrics.mean("sampling/narrowed", 1.0)
        if self.ahead is not None:
            metrics.mean("sampling/lagged", 1.0)
        for name, count in self.sampler.counts.items():
            metrics.sum(f"work/sampler_{name}", count)
        self.sampler.counts.clear()

    def _keep(self, rollout: Rollout, advantages: Mapping[Place, Tensor], step: int) -> pa.Table:
        """Store this rank's completions in the run folder, including those of groups that dynamic sampling left out."""
        groups, table = rollout.groups, rollout.table
        own = [advantages.get((self.rank, place)) for place in range(len(groups))]
        blocks = [
            torch.full((len(group),), torch.nan) if known is None else known
            for known, group in zip(own, groups, strict=True)
        ]
        return self.store.add(
            step,
            groups,
            rewards=table.by_name,
            reward=table.total,
            advantage=torch.cat(blocks),
            kept=[known is not None for known in own],
            logp=[_values(completion) for group in groups for completion in group.completions],
            extra=table.extra,
            answers=answers_beside(groups),
            age=[
                None if completion.sampler_step is None else step - 1 - completion.sampler_step
                for group in groups
                for completion in group.completions
            ],
        )


def note_ages(metrics: MeanMetrics, items: Sequence[Scored], step: int) -> None:
    """Log how many optimizer steps older than the policy the weights are that sampled the completions of an optimizer step."""
    versions = [completion.sampler_step for item in items for completion in item.group.completions]
    if ages := [float(step - version) for version in versions if version is not None]:
        metrics.mean("rollout/age_mean", torch.tensor(ages))
        metrics.max("rollout/age_max", torch.tensor(ages))


def _values(completion: Completion) -> list[float]:
    """The sampler's log-probabilities, NaN for tokens that an environment wrote."""
    logp = completion.sampler_logp
    return [] if logp is None else logp.masked_fill(~completion.mask, torch.nan).tolist()
