"""The options of each method: the trainers' own options and those of the rooms.

These are plain dataclasses, so that the command line and the reference pages read them without transformers. `SFTConfig`, `DPOConfig`
and `GRPOConfig` combine them with `transformers.TrainingArguments`, whose ranges and refusals are in `training_arguments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from boresight.advantage.options import SCALES, AdvantageOptions
from boresight.data.options import DataOptions
from boresight.loss.objectives import OBJECTIVES
from boresight.loss.policy_options import PolicyLossOptions
from boresight.loss.preference_options import PreferenceLossOptions
from boresight.model.options import ModelOptions
from boresight.model.part_options import PartOptions
from boresight.options import SET, Needs, OneOf, Range, Source, option
from boresight.report.options import ReportOptions
from boresight.rewards.options import RewardOptions
from boresight.rollout.options import SamplingOptions
from boresight.rollout.vllm.options import VLLMOptions
from boresight.tools.options import ToolOptions
from boresight.trainer.training_arguments import UNSUPPORTED
from boresight.trainer.trl_options import TRLGRPOOptions, TRLOptions, TRLPaddingOptions, TRLSFTOptions

NOTHING_SAMPLED = dict.fromkeys(("log_completions", "num_completions_to_print"), "it samples no completions")
"""Options without effect for a trainer that does not sample."""

Count = Range(at_least=1)
Rate = Range(at_least=0)


class OptimizerSteps(int):
    """A value of `steps_per_generation` that counts optimizer steps; a plain number counts micro-batches, as TRL does."""


@dataclass
class ReferenceSyncOptions:
    """How the reference follows the policy. Names and defaults are TRL's."""

    heading: ClassVar[str] = "trainer"

    sync_ref_model: Annotated[bool, Needs("beta", Range(above=0), "set beta above 0 (else there is no reference)")] = (
        option(False, "Move the reference towards the policy at regular intervals (TR-DPO).")
    )
    ref_model_mixup_alpha: Annotated[float, Range(above=0, at_most=1), Needs("sync_ref_model", True)] = option(
        0.6, "Share α of the policy in each update: reference = α policy + (1 − α) reference."
    )
    ref_model_sync_steps: Annotated[int, Count, Needs("sync_ref_model", True)] = option(
        512, "Optimizer steps between updates of the reference."
    )


@dataclass
class DynamicSamplingOptions:
    """How groups without spread are replaced. Neither option is in TRL."""

    heading: ClassVar[str] = "rollout"

    dynamic_sampling: bool = option(
        False,
        "Replace groups whose rewards are all equal, which give no learning signal, by groups of further prompts (DAPO).",
    )
    max_sampling_rounds: Annotated[int, Range(at_least=2), Needs("dynamic_sampling", True)] = option(
        10,
        "Maximum rounds of sampling in a rollout, including the first, which replaces nothing. At the limit, groups without spread stay in "
        "the step as needed, and the log reports it.",
    )


@dataclass
class TrainerOptions(PartOptions, DataOptions, ModelOptions, ReportOptions, TRLOptions):
    """Options of every trainer. Defaults that differ from transformers' are TRL's."""

    heading: ClassVar[str] = "trainer"
    unsupported: ClassVar[dict[str, str]] = UNSUPPORTED

    output_dir: str | None = option(
        "trainer_output", "The run folder: checkpoints, completions, images, metrics.", metavar="FOLDER"
    )
    overwrite_output_dir: Annotated[bool, Source("transformers 4, where it deleted them")] = option(
        False,
        "Start a new run in a folder that holds another run or a model, which is moved aside, into a subfolder. Nothing is deleted.",
    )
    bf16: bool | None = option(None, "Compute in bfloat16. None: if the hardware supports it (CUDA; never on a CPU).")
    gradient_checkpointing: bool = option(True, "Recompute activations in the backward pass to save memory.")
    activation_offloading: bool = option(
        False, "Keep activations in the CPU's memory until the backward pass needs them. On a GPU only."
    )
    logging_steps: Annotated[float, Rate] = option(10, "Optimizer steps between logs.")
    dataloader_pin_memory: bool = option(
        False, "Pin the loader's memory. Without benefit here, because groups are moved when they are packed."
    )
    bf16_stochastic_round: Annotated[bool, Source("torchao's option of this name; not in TRL")] = option(
        False,
        "Train bfloat16 weights (--dtype bfloat16) and round each update up or down at random, so that on average they move as float32 "
        "weights do, at half the memory. Needs torchao.",
    )
    nan_policy: Annotated[Literal["skip", "stop"], Source("not in TRL")] = option(
        "skip",
        "What to do when the loss or a gradient of an optimizer step is NaN or infinite. 'skip' leaves the weights as they are, counts the "
        "step and names its rows, and ends the run after three such steps in a row. 'stop' ends the run at the first.",
    )
    preflight: Annotated[Literal["auto", "off"], Source("not in TRL")] = option(
        "auto",
        "Before training, check disk, vocabulary, chat template, trained parts and longest row, in seconds: errors end the run, warnings "
        "are printed. `boresight doctor` checks more, with passes of the model.",
    )
    max_tokens_per_pass: Annotated[int | None, Count] = option(
        None,
        "Maximum packed tokens of a micro-batch. None: the size of a micro-batch follows from per_device_train_batch_size.",
    )


@dataclass
class EvalSamplesOptions:
    """Options of a trainer that learns from given completions."""

    num_eval_samples: Annotated[int, Range(at_least=0)] = option(
        4, "Held-out prompts that the model answers greedily at every evaluation, for the run page. 0: none."
    )


@dataclass
class SFTOptions(TrainerOptions, EvalSamplesOptions, TRLSFTOptions):
    """Options of `SFTTrainer`."""

    unsupported: ClassVar[dict[str, str]] = UNSUPPORTED | NOTHING_SAMPLED

    learning_rate: Annotated[float, Rate] = option(2e-5, "Peak learning rate of AdamW.")
    assistant_only_loss: bool = option(
        False, "In `messages` rows, compute the loss only on the assistant's turns. The chat template is not changed."
    )
    completion_only_loss: bool | None = option(
        None, "In `prompt`/`completion` rows, compute the loss only on the completion. None: yes."
    )
    dataset_text_field: str = option(
        "text",
        "The column of rows of plain text to imitate. An empty string, as TRL's vision examples write it, means none but text.",
    )
    max_length: Annotated[int | None, Count] = option(
        None, "Maximum tokens of a row; text is cut from the end, images are never cut. None: no limit."
    )


@dataclass
class DPOOptions(PreferenceLossOptions, ReferenceSyncOptions, TrainerOptions, EvalSamplesOptions, TRLPaddingOptions):
    """Options of `DPOTrainer`."""

    heading: ClassVar[str] = "trainer"
    unsupported: ClassVar[dict[str, str]] = UNSUPPORTED | NOTHING_SAMPLED

    learning_rate: Annotated[float, Rate] = option(1e-6, "Peak learning rate of AdamW.")
    disable_dropout: bool = option(True, "Disable dropout in policy and reference.")
    max_length: Annotated[int | None, Count] = option(
        None, "Maximum tokens of a prompt with either answer, images expanded. None: no limit."
    )
    overlong_pairs: Annotated[Literal["error", "drop", "truncate_completion"], Needs("max_length", SET)] = option(
        "error",
        "Handling of pairs longer than max_length, before training: 'error' stops and names them, 'drop' leaves them out, "
        "'truncate_completion' cuts answers from the end, and never an image.",
    )
    precompute_ref_log_probs: bool = option(
        False,
        "Compute the reference's log-probabilities of all pairs before training and store them on disk, so that no reference model stays "
        "in memory.",
    )
    precompute_ref_batch_size: Annotated[int | None, Count, Needs("precompute_ref_log_probs", True)] = option(
        None, "Pairs per pass while precomputing. None: per_device_train_batch_size."
    )
    precomputed_ref_path: Annotated[str | None, Needs("precompute_ref_log_probs", True)] = option(
        None,
        "The file of precomputed log-probabilities. None: reference_logps.safetensors in the run folder.",
        metavar="FILE",
    )


@dataclass
class GRPOOptions(
    PolicyLossOptions,
    AdvantageOptions,
    RewardOptions,
    SamplingOptions,
    VLLMOptions,
    ToolOptions,
    DynamicSamplingOptions,
    ReferenceSyncOptions,
    TrainerOptions,
    TRLGRPOOptions,
):
    """Options of `GRPOTrainer`."""

    heading: ClassVar[str] = "trainer"
    learning_rate: Annotated[float, Rate] = option(1e-6, "Peak learning rate of AdamW.")
    disable_dropout: bool = option(
        False,
        "Disable dropout in policy and reference. Sampling and passes without gradient run without it in any case.",
    )
    per_device_train_batch_size: Annotated[int, Count] = option(8, "Completions of one micro-batch on a rank.")
    per_device_eval_batch_size: Annotated[int, Count] = option(8, "Completions of one evaluation batch on a rank.")
    num_prompts_per_step: Annotated[int | None, Count] = option(
        None, "Groups of one optimizer step over all ranks, instead of gradient_accumulation_steps."
    )
    max_prompt_length: Annotated[int | None, Count] = option(
        None, "Maximum tokens of a prompt; a longer prompt is an error and is never cut. None: no limit."
    )
    num_iterations: Annotated[int, Count] = option(1, "Number of passes over the completions of one rollout (µ).")
    steps_per_generation: Annotated[int | None, Count] = option(
        None,
        "Micro-batches that one rollout serves, as TRL counts. None: those of one optimizer step, gradient_accumulation_steps.",
    )
    generation_batch_size: Annotated[int | None, Count] = option(
        None, "Completions of one rollout over all ranks, instead of steps_per_generation."
    )


@dataclass
class RLOOOptions(GRPOOptions):
    """Options of `RLOOTrainer`."""

    heading: ClassVar[str] = "trainer"

    loss_type: Annotated[str | None, OneOf(OBJECTIVES)] = option("rloo", "Objective: that of RLOO.")
    num_generations: Annotated[int, Range(at_least=1)] = option(2, "Completions per prompt: the group size.")
    beta: Annotated[float, Rate] = option(0.05, "Weight of the KL to the reference. 0: no reference is loaded.")
    kl_in_reward: Annotated[bool, Needs("beta", Range(above=0)), Source("Back to Basics, arXiv 2402.14740, eq. 3")] = (
        option(
            True,
            "Subtract beta times a completion's log ratio to the reference from its reward, instead of adding the KL to the loss.",
        )
    )
    advantage_baseline: Annotated[Literal["mean", "leave_one_out"], Source("Back to Basics, arXiv 2402.14740")] = (
        option("leave_one_out", "Baseline subtracted from a reward: leave_one_out, the mean of the others.")
    )
    scale_rewards: Annotated[str, OneOf(SCALES)] = option("none", "Divisor of R - baseline. RLOO has none.")
