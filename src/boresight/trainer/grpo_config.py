"""The configuration of GRPO and its variants, and the arithmetic of their steps."""

from __future__ import annotations

from dataclasses import dataclass

from boresight.advantage.options import check_advantage
from boresight.errors import ConfigError
from boresight.loss.policy_options import check_policy_loss
from boresight.rollout.options import apply_generation_kwargs
from boresight.rollout.vllm.options import check_vllm
from boresight.trainer.config import TrainerConfig, strict
from boresight.trainer.options import GRPOOptions, OptimizerSteps, RLOOOptions
from boresight.trainer.steps import StepPlan


@strict
@dataclass
class GRPOConfig(GRPOOptions, TrainerConfig):
    """Options of `GRPOTrainer`. Names and defaults are TRL's; the rooms' own option classes document the deviations.

    `per_device_train_batch_size` counts completions, as in TRL: a rank's optimizer step holds per_device_train_batch_size ×
    gradient_accumulation_steps / num_generations groups. `num_prompts_per_step` sets the number of groups over all ranks directly.
    """

    def __post_init__(self) -> None:
        apply_generation_kwargs(self)
        super().__post_init__()
        check_policy_loss(self)
        check_advantage(self)
        check_vllm(self, corrects=self.vllm_importance_sampling_correction)
        if self.num_generations < 2:
            raise ConfigError(
                f"num_generations={self.num_generations}: an advantage compares completions of one prompt, so it must be at least 2."
            )
        if self.temperature == 0:
            raise ConfigError(
                "temperature=0 makes all completions of a prompt the same, so none is better than another: set temperature above 0."
            )
        if self.reward_weights is not None and not any(self.reward_weights):
            raise ConfigError(
                f"reward_weights={self.reward_weights!r}: every reward would be 0. Set one of them to another value."
            )
        if self.mask_truncated_completions and self.max_completion_length < 2:
            raise ConfigError(
                "mask_truncated_completions=True with max_completion_length=1 leaves out every completion: raise max_completion_length."
            )
        if isinstance(self.steps_per_generation, OptimizerSteps):
            self.steps_per_generation = int(self.steps_per_generation) * self.gradient_accumulation_steps
        self.step_plan()

    def step_plan(self) -> StepPlan:
        """The number of groups of a step, a pass and a rollout on this rank.

        Raises:
            ConfigError: the numbers do not divide evenly, or contradict one another; the message suggests the nearest valid numbers.
        """
        groups = self._groups_per_step()
        return StepPlan(
            groups_per_step=groups,
            groups_per_pass=max(1, self.per_device_train_batch_size // self.num_generations),
            steps_per_rollout=self._steps_per_rollout(groups),
            num_iterations=self.num_iterations,
        )

    def _groups_per_step(self) -> int:
        g, per_device, accumulation = (
            self.num_generations,
            self.per_device_train_batch_size,
            self.gradient_accumulation_steps,
        )
        if self.num_prompts_per_step is not None:
            if accumulation != 1 and per_device * accumulation * self.world_size != self.num_prompts_per_step * g:
                raise ConfigError(
                    f"num_prompts_per_step={self.num_prompts_per_step} × num_generations={g} is not "
                    f"per_device_train_batch_size={per_device} × "
                    f"gradient_accumulation_steps={accumulation} × {self.world_size} ranks: leave gradient_accumulation_steps out."
                )
            if self.num_prompts_per_step % self.world_size:
                raise ConfigError(
                    f"num_prompts_per_step={self.num_prompts_per_step} must be a multiple of the {self.world_size} ranks."
                )
            return self.num_prompts_per_step // self.world_size
        groups, rest = divmod(per_device * accumulation, g)
        if rest:
            nearest = max(1, round(per_device * accumulation / g))
            raise ConfigError(
                f"per_device_train_batch_size={per_device} × gradient_accumulation_steps={accumulation} completions are not "
                f"whole groups of num_generations={g}. "
                f"Nearest: num_prompts_per_step={nearest * self.world_size}, or a product of {nearest * g}."
            )
        return groups

    def _steps_per_rollout(self, groups: int) -> int:
        """Optimizer steps that one rollout serves."""
        accumulation = self.gradient_accumulation_steps
        if self.generation_batch_size is not None:
            if self.steps_per_generation is not None:
                raise ConfigError(
                    "generation_batch_size and steps_per_generation both set the size of a rollout: set one of them."
                )
            completions = groups * self.num_generations * self.world_size
            steps, rest = divmod(self.generation_batch_size, completions)
            if rest or not steps:
                raise ConfigError(
                    f"generation_batch_size={self.generation_batch_size} must be a multiple of the {completions} "
                    "completions of an optimizer step."
                )
            return steps
        if self.steps_per_generation is None or accumulation % self.steps_per_generation == 0:
            # Several rollouts within one optimizer step would use the same weights, so a single one serves them all.
            return 1
        steps, rest = divmod(self.steps_per_generation, accumulation)
        if rest:
            raise ConfigError(
                f"steps_per_generation={self.steps_per_generation} micro-batches are not whole optimizer steps of "
                f"gradient_accumulation_steps={accumulation}: use a multiple or a divisor of it."
            )
        return steps


@strict
@dataclass
class RLOOConfig(RLOOOptions, GRPOConfig):
    """Options of `RLOOTrainer`: those of `GRPOConfig` with the defaults of TRL's `RLOOConfig`."""
