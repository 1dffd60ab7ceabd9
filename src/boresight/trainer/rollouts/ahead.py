"""Rollouts that are sampled one ahead, while optimizer steps learn from the one before (`rollout_lag=1`).

    engine    sample 0 │ sample 1 ──────▶│ sample 2 ──────▶│
    trainer            │ learn from 0    │ learn from 1    │ …
                       └ weights 0       └ weights 1         are sent, then rollout 1 (2) begins

A rollout's completions are of the weights at which the rollout before it began to be learned from. Weights are sent between two rollouts,
when nothing is sampled; with `vllm_in_flight_sync`, into the rollout that is still being sampled, whose last tokens are then of newer
weights than its first. A checkpoint holds the completions that are sampled and not yet learned from, so a resumed run learns what an
uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object

from boresight.errors import ConfigError
from boresight.ranks import on_every_rank
from boresight.rollout.sampler import sampling_settings
from boresight.rollout.synced import SyncedSampler
from boresight.sampling import SamplingSettings
from boresight.trainer.grpo_config import GRPOConfig
from boresight.trainer.rollouts.rows import PromptRows, seed_of_rollout
from boresight.trainer.rollouts.scored import group_from_state, group_state
from boresight.types import Group, Prompt


def check_lag(config: GRPOConfig, *, has_tools: bool, is_streamed: bool) -> None:
    """Check that rollouts can be sampled ahead, if `rollout_lag` asks for it.

    Raises:
        ConfigError: tools are called, or the data set is streamed.
    """
    if config.rollout_lag and has_tools:
        raise ConfigError(
            "rollout_lag=1 samples completions of one turn, and tools are called between turns: set rollout_lag=0."
        )
    if config.rollout_lag and is_streamed:
        raise ConfigError(
            "rollout_lag=1 takes the next rollout's prompts by row number, and a streamed data set has no row numbers: load it without "
            "streaming, or set rollout_lag=0."
        )


class Ahead:
    """The rollout that is being sampled, or was sampled and is not yet learned from.

    All ranks call it together, except for `state` and `restore`.

    Args:
        sampler: samples from an engine in another process.
        rows: the training rows.
        rollout_at: this rank's rows of the rollout that begins at an optimizer step.
        config: the options of sampling.
        log_once: prints a line on one rank.
    """

    def __init__(
        self,
        sampler: SyncedSampler,
        rows: PromptRows,
        rollout_at: Callable[[int], Sequence[int]],
        config: GRPOConfig,
        log_once: Callable[[str], None],
    ) -> None:
        self.sampler = sampler
        self.rows = rows
        self.rollout_at = rollout_at
        self.config = config
        self.log_once = log_once
        self._step: int | None = None
        """The optimizer step at which the sampler's groups are learned from."""
        self._restored: list[Group] | None = None
        self._taken: list[Group] | None = None
        """The groups of the optimizer step that is under way, if it began a rollout."""

    def take(self, step: int) -> list[Group]:
        """This rank's groups of the rollout that begins at an optimizer step. Without any that were begun for it, they are sampled now.

        Raises:
            EngineError: on all ranks, if sampling failed on one.
        """
        groups, self._restored = self._restored, None
        if not all(gather_object([groups is not None])):
            groups = None
            if any(gather_object([self._step == step and self.sampler.has_begun])):
                groups = self._finished(step)
            else:
                self.sampler.drop()
                if step:
                    self.log_once(
                        f"step {step + 1}: nothing was sampled for it ahead, so it waits for its own rollout."
                    )
                prompts = on_every_rank(lambda: [self.rows.prompt(row) for row in self.rollout_at(step)])
                groups = self.sampler.sample(prompts, self._settings(step))
        assert groups is not None
        self._step, self._taken = None, groups
        return groups

    def _finished(self, step: int) -> list[Group]:
        try:
            if self.config.vllm_in_flight_sync:
                self.sampler.renew()
            return self.sampler.finish()
        except Exception as error:
            error.add_note(f"boresight: it was sampled ahead (rollout_lag=1), for step {step + 1}.")
            raise

    def begin(self, prompts: Sequence[Prompt], step: int) -> None:
        """Send the policy's weights to the engine, and begin to sample this rank's prompts of the rollout that begins at a later step."""
        self.sampler.begin(prompts, self._settings(step))
        self._step = step

    def _settings(self, step: int) -> SamplingSettings:
        return sampling_settings(self.config, seed=seed_of_rollout(self.config.seed, step))

    def finish_step(self) -> None:
        """Note the end of an optimizer step: from now on, a checkpoint holds the next rollout."""
        self._taken = None

    # ---- Checkpoints ------------------------------------------------------------------------------------------------------------

    def state(self) -> list[dict[str, Any]] | None:
        """This rank's groups that the last finished step did not learn from, once they are sampled; None if there are none."""
        if self._taken is not None:
            groups = self._taken
        elif self._restored is not None:
            groups = self._restored
        else:
            groups = self.sampler.begun_groups()
        return None if groups is None else [group_state(group) for group in groups]

    def restore(self, state: Sequence[Mapping[str, Any]] | None, prompt: Callable[[int], Prompt]) -> None:
        """The inverse of `state`.

        Args:
            prompt: encodes a row by its number.
        """
        self._restored = None if state is None else [group_from_state(dict(each), prompt) for each in state]
