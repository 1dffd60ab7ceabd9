"""Options of the training commands that belong to no room: which model, which data, which rewards, how to start.

Names are those of TRL's `ModelConfig`, `ScriptArguments` and `DatasetMixtureConfig` where the meaning is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from boresight.trainer.presets import PRESETS


def option(default: Any, meaning: str, metavar: str | None = None, **more: Any) -> Any:
    """A field with its help, and what stands for its value there."""
    shown = {} if metavar is None else {"metavar": metavar}
    return field(default=default, metadata={"help": meaning, **shown, **more})


@dataclass
class ModelOptions:
    """Which model, and whether its weights are trained or an adapter beside them."""

    model_name_or_path: str = option("", "The model: a folder or a hub id.", "MODEL")
    model_revision: str | None = option(None, "Branch, tag or commit of a model on the hub. None: main.", "NAME")
    dtype: str | None = option(
        None,
        "Keep all weights in this type, trained ones too. None: frozen weights as the checkpoint has them, trained ones in "
        "float32 (under --bf16 computed in bfloat16).",
        "{auto,float32,bfloat16,float16}",
        aliases=["--torch_dtype", "--torch-dtype"],
    )
    attn_implementation: str | None = option(
        None, "Attention of the vision tower, and of the whole model where --layout is rows.", "NAME"
    )
    use_peft: bool = option(False, "Train a LoRA adapter instead of the weights.")
    lora_r: int = option(16, "Rank of the adapter.", "N")
    lora_alpha: int = option(32, "Scale of the adapter.", "N")
    lora_dropout: float = option(0.05, "Dropout before the adapter.", "X")
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Layers that get an adapter, by the end of their names, or all-linear. None: every linear layer of the language "
            "model; the vision tower and its projector stay as they are.",
            "metavar": "LAYER",
        },
    )
    lora_target_parameters: list[str] | None = field(
        default=None, metadata={"help": "Parameters that get an adapter, for layers of experts.", "metavar": "NAME"}
    )
    lora_modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Layers that are trained whole and saved beside the adapter.", "metavar": "LAYER"},
    )
    use_rslora: bool = option(False, "Scale the adapter by alpha / √r instead of alpha / r.")
    use_dora: bool = option(False, "Learn magnitude and direction apart (DoRA).")


@dataclass
class DatasetOptions:
    """Which rows, and what their columns are called."""

    dataset_name: str | None = option(
        None,
        "The rows: a file (csv, json, jsonl, parquet), a folder (of such files, of images with a table, or saved by "
        "datasets), a hub id, or a built-in set such as geometry.",
        "DATA",
    )
    dataset_config: str | None = option(None, "Which configuration of a data set on the hub.", "NAME")
    dataset_train_split: str | None = option(
        None, "Which split to train on, such as train or train[:1000]. None: train, or the only one.", "SPLIT"
    )
    dataset_test_split: str | None = option(
        None, "Which split to evaluate on, with --eval_strategy. None: test.", "SPLIT"
    )
    test_split_size: float | None = option(
        None,
        "Instead of a test split: a share of the training rows (below 1), or so many of them, drawn at random.",
        "X",
    )
    dataset_streaming: bool = option(False, "Read rows as they come instead of loading them first; needs --max_steps.")
    image_root: str | None = option(
        None, "Where paths of images start. None: the folder of the file that names them.", "FOLDER"
    )
    image_column: str | None = option(None, "The column with the image, or its path. None: image or images.", "NAME")
    prompt_column: str | None = option(
        None, "A column of plain text that asks: it becomes what the user says to the model.", "NAME"
    )
    system_prompt: str | None = option(None, "What the system says before every conversation.", "TEXT")


@dataclass
class DemonstrationColumns:
    """Columns of a table to imitate."""

    completion_column: str | None = option(None, "The column with the answer to imitate.", "NAME")


@dataclass
class PreferenceColumns:
    """Columns of a table of preferences."""

    chosen_column: str | None = option(None, "The column with the better answer.", "NAME")
    rejected_column: str | None = option(None, "The column with the worse answer.", "NAME")


@dataclass
class RewardOptions:
    """What completions are worth."""

    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward functions: names of boresight.rewards, or my_module.my_function (a file in the working directory).",
            "metavar": "REWARD",
        },
    )
    solution_column: str | None = option(
        None, "The column with the right answer, which rewards read as solution.", "NAME"
    )


@dataclass
class StartOptions:
    """How a command starts."""

    config: str | None = option(None, "Read options from a YAML file; the command line wins over it.", "FILE")
    accelerate_config: str | None = option(
        None, "Start through accelerate: single_gpu, multi_gpu, cpu, or a file of `accelerate config`.", "NAME"
    )
    num_processes: int | None = option(None, "Processes over all machines, with --accelerate_config.", "N")
    num_machines: int | None = option(None, "Machines, with --accelerate_config.", "N")
    machine_rank: int | None = option(None, "Which of the machines this is, from 0.", "N")
    main_process_ip: str | None = option(None, "Address of machine 0.", "ADDRESS")
    main_process_port: int | None = option(None, "Port of machine 0.", "N")


@dataclass
class PresetOptions:
    """A published algorithm by name."""

    preset: str | None = option(
        None,
        f"Set what a paper sets: {', '.join(name for name in PRESETS if name != 'mpo')}. Your own flags win over it.",
        "NAME",
    )


LAUNCH = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")
"""Options of `StartOptions` that accelerate reads."""

LORA = (
    "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters", "lora_modules_to_save",
    "use_rslora", "use_dora",
)  # fmt: skip
"""Options of `ModelOptions` that mean nothing without an adapter."""

NOT_HERE = {
    "activation_offloading": "gradient_checkpointing saves memory instead",
    "bnb_4bit_quant_storage": "quantised weights are not tried yet",
    "bnb_4bit_quant_type": "quantised weights are not tried yet",
    "cast_lm_head_to_fp32": "log-probabilities are computed in float32 already",
    "dataset_num_proc": "rows are read as they are needed",
    "dataset_text_field": "rename the column to messages, or use --prompt_column and --completion_column",
    "eval_packing": "groups are packed by themselves, see --max_tokens_per_pass",
    "generation_kwargs": "each option of sampling has a flag of its own",
    "ignore_bias_buffers": "no model here needs it",
    "load_in_4bit": "quantised weights are not tried yet",
    "load_in_8bit": "quantised weights are not tried yet",
    "lora_task_type": "every model here is a causal language model",
    "log_unique_prompts": "every completion is kept in the run folder",
    "packing": "groups are packed by themselves, see --max_tokens_per_pass",
    "packing_strategy": "groups are packed by themselves, see --max_tokens_per_pass",
    "padding_free": "groups are packed without padding already",
    "reward_model_name_or_path": "wrap the reward model in a function and name it in --reward_funcs",
    "truncation_mode": "text is cut from its end, images never",
    "use_bnb_nested_quant": "quantised weights are not tried yet",
    "use_transformers_paged": "sampling shares the prompt's cache already",
}
"""Flags of TRL that boresight does without, and why."""
