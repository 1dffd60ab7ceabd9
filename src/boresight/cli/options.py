"""Options of the training commands that belong to no room: the model, the data, the rewards, and how to start.

Names are those of TRL's `ModelConfig`, `ScriptArguments` and `DatasetMixtureConfig` if the meaning is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from boresight.options import SET, Needs, Range, option
from boresight.trainer.presets import PRESETS

Adapter = Needs("use_peft", True, "add --train language=lora, or --use_peft")
FourBit = Needs("load_in_4bit", True)
Launched = Needs("accelerate_config", SET, "add --accelerate_config multi_gpu")


@dataclass
class ModelFlags:
    """The model."""

    heading: ClassVar[str] = "model"

    model_name_or_path: str = option("", "The model: a folder or a hub id.", metavar="MODEL")
    model_revision: str | None = option(
        None, "Branch, tag or commit of a model on the hub. None: main.", metavar="NAME"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = option(
        None,
        "Type of all weights. None: frozen ones keep the checkpoint's, trained ones are float32 (with --bf16, computed in bfloat16).",
        aliases=["--torch_dtype", "--torch-dtype"],
    )
    attn_implementation: str | None = option(
        None, "Attention implementation of the vision tower, and of the whole model with --layout rows.", metavar="NAME"
    )
    load_in_4bit: bool = option(False, "Hold the base in 4 bits and train an adapter beside it (QLoRA).")
    load_in_8bit: bool = option(False, "Hold the base in 8 bits and train an adapter beside it.")
    bnb_4bit_quant_type: Annotated[Literal["nf4", "fp4"], FourBit] = option("nf4", "The 16 values of a 4-bit weight.")
    use_bnb_nested_quant: Annotated[bool, FourBit] = option(
        False, "Quantise the scales of 4-bit weights too, which saves 0.4 bits a weight."
    )


@dataclass
class AdapterFlags:
    """Whether to train the weights or an adapter."""

    heading: ClassVar[str] = "adapter (LoRA)"

    use_peft: bool = option(False, "Train a LoRA adapter instead of the weights.")
    lora_r: Annotated[int, Range(at_least=1), Adapter] = option(16, "Rank of the adapter.")
    lora_alpha: Annotated[int, Range(at_least=1), Adapter] = option(32, "Scale of the adapter.")
    lora_dropout: Annotated[float, Range(at_least=0, below=1), Adapter] = option(0.05, "Dropout before the adapter.")
    lora_target_modules: Annotated[list[str] | None, Adapter] = option(
        None,
        "Layers that get an adapter, by the end of their names, or all-linear. None: every linear layer of the adapted parts.",
        metavar="LAYER",
    )
    lora_target_parameters: Annotated[list[str] | None, Adapter] = option(
        None, "Parameters that get an adapter, for mixture-of-experts layers.", metavar="NAME"
    )
    lora_modules_to_save: Annotated[list[str] | None, Adapter] = option(
        None, "Layers that are fully trained and saved with the adapter.", metavar="LAYER"
    )
    use_rslora: Annotated[bool, Adapter] = option(False, "Scale the adapter by alpha / √r instead of alpha / r.")
    use_dora: Annotated[bool, Adapter] = option(False, "Learn magnitude and direction separately (DoRA).")


@dataclass
class DatasetFlags:
    """The rows and the names of their columns."""

    heading: ClassVar[str] = "data"

    dataset_name: str | None = option(
        None,
        "The rows: a file (csv, json, jsonl, parquet), a folder (of such files, of images with a table, or saved by datasets), a hub id, "
        "or a built-in set such as geometry.",
        metavar="DATA",
    )
    dataset_config: str | None = option(None, "Which configuration of a data set on the hub.", metavar="NAME")
    data_dir: str | None = option(
        None,
        "Read only this folder inside the data set; with --dataset_name csv, json or parquet, this folder.",
        metavar="FOLDER",
    )
    data_files: list[str] | None = option(
        None,
        "Read only these files (or patterns such as part-*.jsonl) of the folder or data set as one split. With --dataset_name csv, json or "
        "parquet: these files.",
        metavar="FILE",
    )
    dataset_train_split: str | None = option(
        None,
        "Which split to train on, such as train or train[:1000]. None: train, or the only one.",
        metavar="SPLIT",
    )
    dataset_test_split: str | None = option(
        None, "Which split to evaluate on, with --eval_strategy. None: test.", metavar="SPLIT"
    )
    test_split_size: Annotated[float | None, Range(above=0)] = option(
        None, "Instead of a test split: a share of the training rows (below 1), or a number of them, chosen at random."
    )
    dataset_streaming: bool = option(False, "Stream the rows instead of loading them first; needs --max_steps.")
    image_root: str | None = option(
        None, "Folder that image paths are relative to. None: that of the file that contains them.", metavar="FOLDER"
    )
    image_column: str | None = option(
        None, "The column with the image, or its path. None: image or images.", metavar="NAME"
    )
    prompt_column: str | None = option(
        None, "A column of plain-text questions: each becomes the user's message.", metavar="NAME"
    )
    system_prompt: str | None = option(None, "The system message before every conversation.")


@dataclass
class DemonstrationColumns:
    """Columns of a table of demonstrations."""

    heading: ClassVar[str] = "data"

    completion_column: str | None = option(None, "The column with the answer to imitate.", metavar="NAME")


@dataclass
class PreferenceColumns:
    """Columns of a table of preferences."""

    heading: ClassVar[str] = "data"

    chosen_column: str | None = option(None, "The column with the better answer.", metavar="NAME")
    rejected_column: str | None = option(None, "The column with the worse answer.", metavar="NAME")


@dataclass
class RewardFlags:
    """The rewards of completions."""

    heading: ClassVar[str] = "rewards"

    reward_funcs: list[str] | None = option(
        None,
        "Reward functions: names of boresight.rewards, or my_module.my_function (a file in the working directory).",
        metavar="REWARD",
    )
    solution_column: str | None = option(
        None, "The column with the right answer, which rewards read as solution.", metavar="NAME"
    )


@dataclass
class ToolFlags:
    """The tools that a policy may call while it answers."""

    heading: ClassVar[str] = "tools"

    tools: list[str] | None = option(
        None,
        "Functions that the policy may call while it answers: calculator, or my_module.my_function (a file in the working directory).",
        metavar="TOOL",
    )
    environment_factory: str | None = option(
        None,
        "A class whose public methods are tools, with a state for each completion: ImageTools, or my_module.MyClass; or a dict of several, "
        "of which a row's column `environment` chooses.",
        metavar="CLASS",
    )

    def __bool__(self) -> bool:
        return bool(self.tools or self.environment_factory)

    def arguments(self) -> dict[str, Any]:
        """Those of a trainer; empty without tools.

        Raises:
            ConfigError: there is no tool, or no environment, of a name.
        """
        # Imported here, so that flags are read without it.
        from boresight.tools.named import load_environment, load_tools

        found = {"tools": load_tools(self.tools), "environment_factory": load_environment(self.environment_factory)}
        return {name: value for name, value in found.items() if value}


@dataclass
class StartFlags:
    """How a command starts."""

    heading: ClassVar[str] = "start"

    config: str | None = option(None, "Read options from a YAML file; the command line overrides it.", metavar="FILE")
    accelerate_config: str | None = option(
        None,
        "Start through accelerate: single_gpu, multi_gpu, fsdp2, fsdp2_layers, cpu, or your own file.",
        metavar="NAME",
    )
    num_processes: Annotated[int | None, Range(at_least=1), Launched] = option(
        None, "Number of processes over all machines, with --accelerate_config."
    )
    num_machines: Annotated[int | None, Range(at_least=1), Launched] = option(
        None, "Number of machines, with --accelerate_config."
    )
    machine_rank: Annotated[int | None, Range(at_least=0), Launched] = option(None, "Number of this machine, from 0.")
    main_process_ip: Annotated[str | None, Launched] = option(None, "Address of machine 0.", metavar="ADDRESS")
    main_process_port: Annotated[int | None, Range(at_least=0, at_most=65535), Launched] = option(
        None, "Port of machine 0."
    )


@dataclass
class PresetFlags:
    """The preset of a published algorithm."""

    heading: ClassVar[str] = "loss"

    preset: str | None = option(
        None,
        f"Use the options of a paper: {', '.join(name for name in PRESETS if name != 'mpo')}. Your own flags override them.",
        metavar="NAME",
    )


NOT_HERE = {
    "bnb_4bit_quant_storage": "it serves FSDP alone, which cannot divide quantised weights here",
    "ignore_bias_buffers": "no supported model needs it",
    "lora_task_type": "every supported model is a causal language model",
    "reward_model_name_or_path": "wrap the reward model in a function and name it in --reward_funcs",
}
"""Flags of TRL that boresight does not have, each with the reason."""
