"""The options of GRPO and its kin, and the arithmetic of their steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from boresight.advantage.options import AdvantageOptions, check_advantage
from boresight.errors import ConfigError
from boresight.loss.policy_options import PolicyLossOptions, check_policy_loss
from boresight.options import check_options
from boresight.rewards.check import GOLD_TEMPLATE
from boresight.rollout.sampler import SamplingConfig, sampling_settings
from boresight.rollout.vllm.options import VLLMConfig, check_vllm
from boresight.trainer.config import UNSUPPORTED, TrainerConfig, strict
from boresight.trainer.reference import ReferenceSyncConfig, check_reference_sync
from boresight.trainer.rollouts.dynamic_sampling import DynamicSamplingConfig, check_dynamic_sampling
from boresight.trainer.steps import OptimizerSteps, StepPlan

NARROWING = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
"""Options that bend or narrow what is sampled from, at the values that do neither."""


@strict
@dataclass
class GRPOConfig(
    PolicyLossOptions,
    AdvantageOptions,
    SamplingConfig,
    VLLMConfig,
    DynamicSamplingConfig,
    ReferenceSyncConfig,
    TrainerConfig,
):
    """Options of `GRPOTrainer`. Names and defaults are TRL's; the deviations stand in the rooms' own configurations.

    `per_device_train_batch_size` counts completions, as in TRL: a rank's optimizer step holds per_device_train_batch_size ×
    gradient_accumulation_steps / num_generations groups. `num_prompts_per_step` says it directly.
    """

    unsupported: ClassVar[dict[str, str]] = UNSUPPORTED | {
        "top_p": "the objective would need log-probabilities of the narrowed distribution",
        "top_k": "the objective would need log-probabilities of the narrowed distribution",
        "min_p": "the objective would need log-probabilities of the narrowed distribution",
        "repetition_penalty": "the objective would need log-probabilities of the bent distribution",
    }

    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate of AdamW."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Completions of one micro-batch on a rank."})
    per_device_eval_batch_size: int = field(
        default=8, metadata={"help": "Completions of one evaluation batch on a rank."}
    )
    num_prompts_per_step: int | None = field(
        default=None,
        metadata={"help": "Groups of one optimizer step over all ranks, instead of gradient_accumulation_steps."},
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Longest prompt in tokens; a longer one is an error, never cut. None: no limit."},
    )
    num_iterations: int = field(
        default=1, metadata={"help": "How often the completions of one generation are learned from (µ)."}
    )
    steps_per_generation: int | None = field(
        default=None,
        metadata={
            "help": "Micro-batches that one generation serves, as TRL counts. None: one optimizer step's, gradient_accumulation_steps."
        },
    )
    generation_batch_size: int | None = field(
        default=None,
        metadata={"help": "Completions of one generation over all ranks, instead of steps_per_generation."},
    )
    gold_check: str = field(
        default="warn",
        metadata={
            "help": "Before training, have answer rewards mark the gold answers of up to 256 rows: 'warn' names rows without full marks, "
            "'error' stops there, 'off' does not look."
        },
    )
    gold_template: str = field(
        default=GOLD_TEMPLATE, metadata={"help": "The completion that the gold check puts {solution} into."}
    )
    reward_workers: int = field(
        default=0,
        metadata={
            "help": "Processes for each sync reward function, which then sees one completion at a time and can hang or crash without "
            "harm to others. 0: called in the training process on the whole batch, as in TRL."
        },
    )
    reward_timeout: float = field(
        default=60.0,
        metadata={
            "help": "Seconds that a reward worker has for a completion, and an async reward function for a batch."
        },
    )
    max_failed_rate: float = field(
        default=0.5, metadata={"help": "Share of completions on which a reward function may fail before the run stops."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self)
        check_policy_loss(self)
        check_advantage(self)
        check_dynamic_sampling(self)
        check_reference_sync(self)
        check_vllm(self, corrects=self.vllm_importance_sampling_correction)
        if self.sync_ref_model and self.beta == 0:
            raise ConfigError("sync_ref_model=True has no effect without a reference: set beta above 0.")
        sampling_settings(self)
        sampling_settings(self, evaluating=True)
        if self.num_generations < 2:
            raise ConfigError(
                f"num_generations={self.num_generations}: an advantage compares completions of one prompt, so at least 2."
            )
        if self.num_iterations < 1:
            raise ConfigError(f"num_iterations={self.num_iterations} must be at least 1.")
        if self.gold_check not in ("warn", "error", "off"):
            raise ConfigError(f"gold_check={self.gold_check!r} is not one of 'warn', 'error', 'off'.")
        if isinstance(self.steps_per_generation, OptimizerSteps):
            self.steps_per_generation = int(self.steps_per_generation) * self.gradient_accumulation_steps
        self.step_plan()

    def step_plan(self) -> StepPlan:
        """How many groups a step, a pass and a generation hold on this rank.

        Raises:
            ConfigError: the numbers do not come out whole, or contradict one another; the message names the nearest that do.
        """
        groups = self._groups_per_step()
        return StepPlan(
            groups_per_step=groups,
            groups_per_pass=max(1, self.per_device_train_batch_size // self.num_generations),
            steps_per_rollout=self._steps_per_draw(groups),
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

    def _steps_per_draw(self, groups: int) -> int:
        """Optimizer steps that one generation serves."""
        accumulation = self.gradient_accumulation_steps
        if self.generation_batch_size is not None:
            if self.steps_per_generation is not None:
                raise ConfigError("generation_batch_size and steps_per_generation say the same thing: set one of them.")
            completions = groups * self.num_generations * self.world_size
            steps, rest = divmod(self.generation_batch_size, completions)
            if rest or not steps:
                raise ConfigError(
                    f"generation_batch_size={self.generation_batch_size} must be a multiple of the {completions} "
                    "completions of an optimizer step."
                )
            return steps
        if self.steps_per_generation is None or accumulation % self.steps_per_generation == 0:
            # Several generations within one optimizer step have the same weights: one serves them all.
            return 1
        steps, rest = divmod(self.steps_per_generation, accumulation)
        if rest:
            raise ConfigError(
                f"steps_per_generation={self.steps_per_generation} micro-batches are not whole optimizer steps of "
                f"gradient_accumulation_steps={accumulation}: use a multiple or a divisor of it."
            )
        return steps
