"""The options of each method: what the trainers themselves read, with the options of the rooms beside it.

These are plain dataclasses, so that the command line and the reference pages read them without transformers. `SFTConfig`, `DPOConfig`
and `GRPOConfig` are these and `transformers.TrainingArguments`; ranges and refusals of its options are in `training_arguments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from boresight.advantage.options import AdvantageOptions
from boresight.data.options import DataOptions
from boresight.loss.policy_options import PolicyLossOptions
from boresight.loss.preference_options import PreferenceLossOptions
from boresight.model.options import ModelOptions
from boresight.options import SET, Needs, Range, option
from boresight.report.options import ReportOptions
from boresight.rewards.options import RewardOptions
from boresight.rollout.options import SamplingOptions
from boresight.rollout.vllm.options import VLLMOptions
from boresight.trainer.training_arguments import UNSUPPORTED

NOTHING_SAMPLED = dict.fromkeys(("log_completions", "num_completions_to_print"), "it samples no completions")
"""Options that mean nothing to a trainer which learns from what others wrote."""
NARROWED = "the objective would need log-probabilities of the narrowed distribution"

Count = Range(at_least=1)
Rate = Range(at_least=0)


class OptimizerSteps(int):
    """A value of `steps_per_generation` that counts optimizer steps; a plain number counts micro-batches, as TRL does."""


@dataclass
class ReferenceSyncOptions:
    """How the reference follows the policy. Names and defaults are TRL's."""

    heading: ClassVar[str] = "trainer"

    sync_ref_model: Annotated[bool, Needs("beta", Range(above=0), "set beta above 0 (else there is no reference)")] = (
        option(False, "Move the reference towards the policy now and then (TR-DPO).")
    )
    ref_model_mixup_alpha: Annotated[float, Range(above=0, at_most=1), Needs("sync_ref_model", True)] = option(
        0.6, "Share of the policy in each move: reference = α policy + (1 − α) reference."
    )
    ref_model_sync_steps: Annotated[int, Count, Needs("sync_ref_model", True)] = option(
        512, "Optimizer steps from one move to the next."
    )


@dataclass
class DynamicSamplingOptions:
    """How groups without spread are replaced. Neither option is in TRL."""

    heading: ClassVar[str] = "rollout"

    dynamic_sampling: bool = option(
        False, "Replace groups whose rewards are all equal, which teach nothing, by groups of further prompts (DAPO)."
    )
    max_sampling_rounds: Annotated[int, Range(at_least=2), Needs("dynamic_sampling", True)] = option(
        10,
        "Most rounds of sampling in a rollout, including the first, which replaces nothing. At the limit the groups without spread that "
        "are still needed stay in the step, and the log reports it.",
    )


@dataclass
class TrainerOptions(DataOptions, ModelOptions, ReportOptions):
    """Options of every trainer. Defaults that differ from transformers' are TRL's."""

    heading: ClassVar[str] = "trainer"
    unsupported: ClassVar[dict[str, str]] = UNSUPPORTED

    output_dir: str | None = option(
        "trainer_output", "The run folder: checkpoints, completions, images, metrics.", metavar="FOLDER"
    )
    bf16: bool | None = option(None, "Compute in bfloat16. None: where the hardware has it (CUDA; never on a CPU).")
    gradient_checkpointing: bool = option(True, "Recompute activations in the backward pass to save memory.")
    logging_steps: Annotated[float, Rate] = option(10, "Log every so many optimizer steps.")
    remove_unused_columns: bool = option(False, "Must stay False: reward functions receive every column.")
    dataloader_pin_memory: bool = option(False, "Groups are moved when they are packed, so pinning helps nothing.")
    max_tokens_per_pass: Annotated[int | None, Count] = option(
        None,
        "Cut a step into micro-batches of at most so many tokens, counted as they are packed. None: of as many groups as "
        "per_device_train_batch_size asks for.",
    )


@dataclass
class SFTOptions(TrainerOptions):
    """Options of `SFTTrainer`."""

    unsupported: ClassVar[dict[str, str]] = UNSUPPORTED | NOTHING_SAMPLED

    learning_rate: Annotated[float, Rate] = option(2e-5, "Peak learning rate of AdamW.")
    assistant_only_loss: bool = option(
        False, "In `messages` rows, count only the assistant's turns. The chat template stays as it is."
    )
    completion_only_loss: bool | None = option(
        None, "In `prompt`/`completion` rows, count only the completion. None: yes."
    )
    max_length: Annotated[int | None, Count] = option(
        None, "Most tokens of a row; text is cut from the end, images never. None: no limit."
    )


@dataclass
class DPOOptions(PreferenceLossOptions, ReferenceSyncOptions, TrainerOptions):
    """Options of `DPOTrainer`."""

    heading: ClassVar[str] = "trainer"
    unsupported: ClassVar[dict[str, str]] = UNSUPPORTED | NOTHING_SAMPLED

    learning_rate: Annotated[float, Rate] = option(1e-6, "Peak learning rate of AdamW.")
    disable_dropout: bool = option(True, "Switch dropout off in policy and reference.")
    max_length: Annotated[int | None, Count] = option(
        None, "Most tokens of a prompt with either answer, images expanded. None: no limit."
    )
    overlong_pairs: Annotated[Literal["error", "drop", "truncate_completion"], Needs("max_length", SET)] = option(
        "error",
        "What becomes of pairs beyond max_length: 'error' names them, 'drop' leaves them out, 'truncate_completion' cuts answers from "
        "their end, never an image. Decided and counted before training.",
    )
    precompute_ref_log_probs: bool = option(
        False,
        "Compute the reference's log-probabilities of all pairs before training and keep them on disk, so that no reference model is held "
        "beside the policy.",
    )
    precompute_ref_batch_size: Annotated[int | None, Count, Needs("precompute_ref_log_probs", True)] = option(
        None, "Pairs of one pass while precomputing. None: per_device_train_batch_size."
    )
    precomputed_ref_path: Annotated[str | None, Needs("precompute_ref_log_probs", True)] = option(
        None,
        "The file that keeps precomputed log-probabilities. None: reference_logps.safetensors in the run folder.",
        metavar="FILE",
    )


@dataclass
class GRPOOptions(
    PolicyLossOptions,
    AdvantageOptions,
    RewardOptions,
    SamplingOptions,
    VLLMOptions,
    DynamicSamplingOptions,
    ReferenceSyncOptions,
    TrainerOptions,
):
    """Options of `GRPOTrainer`."""

    heading: ClassVar[str] = "trainer"
    unsupported: ClassVar[dict[str, str]] = UNSUPPORTED | {
        "top_p": NARROWED,
        "top_k": NARROWED,
        "min_p": NARROWED,
        "repetition_penalty": "the objective would need log-probabilities of the bent distribution",
    }

    learning_rate: Annotated[float, Rate] = option(1e-6, "Peak learning rate of AdamW.")
    per_device_train_batch_size: Annotated[int, Count] = option(8, "Completions of one micro-batch on a rank.")
    per_device_eval_batch_size: Annotated[int, Count] = option(8, "Completions of one evaluation batch on a rank.")
    num_prompts_per_step: Annotated[int | None, Count] = option(
        None, "Groups of one optimizer step over all ranks, instead of gradient_accumulation_steps."
    )
    max_prompt_length: Annotated[int | None, Count] = option(
        None, "Longest prompt in tokens; a longer one is an error, never cut. None: no limit."
    )
    num_iterations: Annotated[int, Count] = option(
        1, "How often the completions of one generation are learned from (µ)."
    )
    steps_per_generation: Annotated[int | None, Count] = option(
        None,
        "Micro-batches that one generation serves, as TRL counts. None: one optimizer step's, gradient_accumulation_steps.",
    )
    generation_batch_size: Annotated[int | None, Count] = option(
        None, "Completions of one generation over all ranks, instead of steps_per_generation."
    )
