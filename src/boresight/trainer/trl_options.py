"""Options of TRL that are accepted so that its scripts run as they are, and that change nothing here.

A value that would ask for something else is refused with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from boresight.options import Ignored, option

HEADING = "accepted for TRL"

NO_PADDING = Ignored("groups are packed, so nothing is padded")
WHEN_NEEDED = Ignored("rows are encoded when they are needed, by dataloader_num_workers processes")
NO_ADAPTIVE_ENTROPY = Ignored("an adaptive entropy coefficient is not built; set entropy_coef", ())
ONE_SAMPLER = Ignored("the sampler has its own cache, which shares each prompt between its completions")


@dataclass
class TRLOptions:
    """Options of every TRL trainer."""

    heading: ClassVar[str] = HEADING

    remove_unused_columns: Annotated[bool, Ignored("every column reaches reports and reward functions")] = option(
        False, "All columns are kept: reward functions and reports receive them."
    )
    use_liger_kernel: Annotated[
        bool,
        Ignored(
            "the language-model head is computed in chunks already; Liger's norms and MLPs are not tested with packed rows"
        ),
    ] = option(False, "The language-model head is computed in chunks without it.")
    dataset_num_proc: Annotated[int | None, WHEN_NEEDED] = option(None, "Rows are not tokenised in advance.")
    pad_to_multiple_of: Annotated[int | str | None, NO_PADDING] = option("auto", "Nothing is padded.")


@dataclass
class TRLPaddingOptions:
    """Options of TRL's SFT and DPO trainers."""

    heading: ClassVar[str] = HEADING

    padding_free: Annotated[bool, NO_PADDING] = option(False, "Groups are packed without padding in any case.")
    pad_token: Annotated[str | None, NO_PADDING] = option(None, "Nothing is padded.")
    truncation_mode: Annotated[str, Ignored("completions are cut at their end, and images never", ())] = option(
        "keep_start", "Completions are cut at their end, images never."
    )


@dataclass
class TRLSFTOptions(TRLPaddingOptions):
    """Options of TRL's SFT trainer."""

    heading: ClassVar[str] = HEADING

    loss_type: Annotated[
        str, Ignored("the likelihood (nll) is computed in chunks in any case; dft is not built", ("chunked_nll",))
    ] = option("nll", "The likelihood of the completions, computed in chunks.")
    dataset_kwargs: Annotated[
        dict[str, Any] | str | None,
        Ignored(
            "rows are encoded when they are needed, so no preparation can be skipped",
            ({}, {"skip_prepare_dataset": True}, {"skip_prepare_dataset": False}),
        ),
    ] = option(None, "Rows are not prepared in advance.")
    packing: Annotated[
        bool, Ignored("a row is never merged with others; max_tokens_per_pass fills a micro-batch by tokens", ())
    ] = option(False, "Micro-batches are filled by max_tokens_per_pass instead.")
    packing_strategy: Annotated[str, Ignored("a row is never merged with others")] = option(
        "bfd", "Micro-batches are filled by max_tokens_per_pass instead."
    )
    eval_packing: Annotated[bool | None, Ignored("a row is never merged with others", (False,))] = option(
        None, "Evaluation rows are never merged."
    )
    eos_token: Annotated[
        str | None, Ignored("all end tokens of the model's own configuration end a completion", ())
    ] = option(None, "All of the model's own end tokens end a completion.")
    chat_template_path: Annotated[
        str | None,
        Ignored("a checkpoint's template is not edited; pass a processor or tokenizer with another chat_template", ()),
    ] = option(None, "Pass a processor or a tokenizer with another chat_template instead.")


@dataclass
class TRLGRPOOptions:
    """Options of TRL's GRPO trainer."""

    heading: ClassVar[str] = HEADING

    cast_lm_head_to_fp32: Annotated[bool, Ignored("log-probabilities are computed in float32 in any case")] = option(
        False, "Log-probabilities are computed in float32 in any case."
    )
    ds3_gather_for_generation: Annotated[bool, Ignored("DeepSpeed is not supported")] = option(
        True, "DeepSpeed is not supported."
    )
    cache_implementation: Annotated[str | None, ONE_SAMPLER] = option(None, "The sampler has its own cache.")
    use_transformers_paged: Annotated[bool, ONE_SAMPLER] = option(False, "The sampler has its own cache.")
    use_transformers_continuous_batching: Annotated[bool, ONE_SAMPLER] = option(False, "The sampler has its own cache.")
    transformers_continuous_batching_config: Annotated[Any, ONE_SAMPLER] = option(
        None, "The sampler has its own cache."
    )
    log_multimodal: Annotated[bool, Ignored("every completion and image is kept in the run folder")] = option(
        True, "Every completion and image is kept in the run folder."
    )
    log_unique_prompts: Annotated[bool, Ignored("every completion and image is kept in the run folder")] = option(
        False, "Every completion and image is kept in the run folder."
    )
    log_completions_hub_repo: Annotated[
        str | None, Ignored("nothing is uploaded; the run folder's completions are Parquet files", ())
    ] = option(None, "Completions are Parquet files in the run folder.")
    use_adaptive_entropy: Annotated[bool, NO_ADAPTIVE_ENTROPY] = option(False, "Not built.")
    entropy_coef_min: Annotated[float, NO_ADAPTIVE_ENTROPY] = option(0.0, "Not built.")
    entropy_coef_max: Annotated[float, NO_ADAPTIVE_ENTROPY] = option(1.0, "Not built.")
    entropy_coef_delta: Annotated[float, NO_ADAPTIVE_ENTROPY] = option(0.005, "Not built.")
    entropy_target: Annotated[float, NO_ADAPTIVE_ENTROPY] = option(0.2, "Not built.")
    vllm_importance_sampling_cap: Annotated[
        float | None, Ignored("its name is vllm_importance_sampling_clip_max now", ())
    ] = option(None, "TRL's old name of vllm_importance_sampling_clip_max.")
