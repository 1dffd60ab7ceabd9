"""A training command as people typed it: flags, a file of options and a preset, read into the configurations of the rooms."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from boresight.cli.config_file import ConfigFile, as_words, read_config
from boresight.cli.flags import FlagParser
from boresight.cli.methods import METHODS, Method, first_options
from boresight.cli.options import LAUNCH, LORA, DatasetOptions, ModelOptions, RewardOptions, StartOptions
from boresight.errors import ConfigError, DataError, nearest
from boresight.trainer.presets import PRESETS, Setting

LAST = "last"
"""What `--resume_from_checkpoint` takes beside a folder."""


@dataclass
class Command:
    """Everything that a training command was told.

    A script reads it the same way: `command = read_command("grpo")`, then a trainer from its parts, then `command.train(trainer)`.
    """

    name: str
    """sft, dpo, mpo, grpo or gspo."""
    model: ModelOptions
    data: DatasetOptions
    training: Any
    """The method's configuration: `SFTConfig`, `DPOConfig` or `GRPOConfig`."""
    rewards: RewardOptions
    start: StartOptions
    words: tuple[str, ...] = ()
    """The options as typed."""
    program: tuple[str, ...] = ()
    """What was typed before them."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """What a column is called here → what it is called in the data set."""
    parts: tuple[Mapping[str, Any], ...] = ()
    """The data sets of a mixture."""
    preset: str | None = None
    """The published algorithm by name."""
    recipe: Mapping[str, Setting] = field(default_factory=dict)
    """What that sets."""

    @property
    def method(self) -> Method:
        return METHODS[self.name]

    @property
    def settings(self) -> str:
        """What the command's preset sets, each value with its paper, and where the user's own stands instead."""
        lines = []
        for option, setting in self.recipe.items():
            value = getattr(self.training, option)
            instead = "" if value == setting.value else f"; here {value!r}"
            lines.append((f"{option}={setting.value!r}{instead}", setting.source))
        width = max((len(shown) for shown, _ in lines), default=0)
        return "\n".join(f"  {shown:<{width}}  {source}" for shown, source in lines)

    def load_datasets(self) -> tuple[Any, Any]:
        """The rows to train on, and those to evaluate on, or None where nobody asked for an evaluation."""
        from boresight.cli.rows import load_datasets

        return load_datasets(self)

    def check_columns(self, found: Sequence[str]) -> None:
        """Check that the rows have what the method learns from.

        Raises:
            DataError: they do not; the message has the columns found and the flags that map them.
        """
        if any(set(wanted) <= set(found) for wanted in self.method.learns_from):
            return
        wanted = " or ".join(" + ".join(names) for names in self.method.learns_from)
        missing = [name for name in self.method.learns_from[-1] if name not in found]
        ways = " ".join(f"--{name}_column NAME" for name in missing)
        raise DataError(
            f"{self.name} learns from {wanted}, and the rows have the columns {', '.join(found)}. Say which is which: {ways}."
        )

    def peft_config(self) -> Any:
        """The adapter, or None where the weights themselves are trained."""
        from boresight.cli.adapter import lora_config

        return lora_config(self.model) if self.model.use_peft else None

    def train(self, trainer: Any) -> None:
        """Train, save the model to the run folder and say what to type next. An interrupt saves a checkpoint first."""
        from boresight.cli.training import train

        train(self, trainer)


def read_command(name: str, words: Sequence[str] | None = None, **defaults: Any) -> Command:
    """Read a training command.

    What is typed wins over `--config`, that over `defaults`, and those over a preset, which is printed with what it sets. `--help` prints
    and leaves; `--accelerate_config` starts the same command again through accelerate.

    Args:
        name: sft, dpo, mpo, grpo or gspo.
        words: the options of `boresight NAME`; None: those that this script was started with.
        defaults: options that a script sets otherwise than boresight does.

    Raises:
        ConfigError: an option is unknown, of the wrong kind, missing, contradictory or without effect.
    """
    program = ("python", sys.argv[0]) if words is None else ("boresight", name)
    words = list(sys.argv[1:] if words is None else words)
    method = METHODS[name]
    parser = parser_of(name, " ".join(program))
    if asked := {"-h", "--help", "--help-all", "--help_all"} & set(words):
        print(parser.help_text(everything=not asked <= {"-h", "--help"}), end="")
        sys.exit(0)
    typed = parser.read(words)
    file = read_config(typed["config"], parser.options) if typed["config"] else ConfigFile()
    if file.datasets:
        defaults.pop("dataset_name", None)
    said = [word for option, value in defaults.items() for word in as_words(option, value)] + file.words() + words
    preset = parser.read(said).get("preset") or method.recipe
    recipe = _recipe(preset, method)
    given = _given(name, said) | set(file.nulls)
    settings = {option: setting.value for option, setting in recipe.items() if option not in given | _displaced(given)}
    parser.set_defaults(**dict.fromkeys(file.nulls), **settings)
    values = parser.read(said)
    if values["accelerate_config"]:
        from boresight.cli.launch import launch

        launch(values, program, words)
    command = _command(name, values, given, recipe, file)
    command.words, command.program, command.preset = tuple(words), program, preset
    if recipe and os.environ.get("RANK", "0") == "0":
        print(f"{preset} sets:\n{command.settings}", flush=True)
    return command


def parser_of(name: str, program: str = "") -> FlagParser:
    """The parser of a training command."""
    method = METHODS[name]
    config = method.config_class()
    return FlagParser(
        program or f"boresight {name}",
        f"{method.help[:1].upper()}{method.help[1:]}.",
        method.classes(),
        unsupported=config.unsupported,
        first=first_options(method),
    )


def _recipe(preset: str | None, method: Method) -> Mapping[str, Setting]:
    if preset is None:
        return {}
    if preset != method.recipe and preset not in method.presets:
        raise ConfigError(
            f"There is no preset {preset!r}.{nearest(preset, method.presets)} Presets: {', '.join(method.presets)}."
        )
    return PRESETS[preset]


def _given(name: str, words: Sequence[str]) -> set[str]:
    """The options that somebody set, be it to their default."""
    parser, nothing = parser_of(name), object()
    parser.set_defaults(**dict.fromkeys(parser.options, nothing))
    return {option for option, value in parser.read(words).items() if value is not nothing}


def _displaced(given: set[str]) -> set[str]:
    """Options of a preset that another one says in other words."""
    return {"steps_per_generation"} if "generation_batch_size" in given else set()


def _command(
    name: str,
    values: dict[str, Any],
    given: set[str],
    recipe: Mapping[str, Setting],
    file: ConfigFile,
) -> Command:
    def part(cls: type) -> Any:
        return cls(**{option.name: values[option.name] for option in fields(cls) if option.name in values})

    model: ModelOptions = part(ModelOptions)
    data: DatasetOptions = part(DatasetOptions)
    _check_model(model, given)
    _check_data(data, file, values, given)
    _check_rewards(name, values)
    _check_start(values, given)
    try:
        training = part(METHODS[name].config_class())
    except ConfigError:
        raise
    except (ValueError, ImportError) as error:  # transformers' own checks
        raise ConfigError(" ".join(str(error).split())) from error
    training.model_init_kwargs = _init_kwargs(model, training)
    _resolve_checkpoint(training)
    columns = {
        option.removesuffix("_column"): value
        for option, value in values.items()
        if option.endswith("_column") and value is not None
    }
    rewards = part(RewardOptions)
    return Command(
        name,
        model,
        data,
        training,
        rewards,
        part(StartOptions),
        columns=columns,
        parts=file.datasets,
        recipe=recipe,
    )


def _check_model(model: ModelOptions, given: set[str]) -> None:
    if not model.model_name_or_path:
        raise ConfigError("Which model? Give a folder or a hub id: --model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct.")
    if model.dtype not in (None, "auto", "float32", "bfloat16", "float16"):
        raise ConfigError(f"--dtype {model.dtype} is not one of auto, float32, bfloat16, float16.")
    if not model.use_peft and (unused := [name for name in LORA if name in given]):
        raise ConfigError(f"--{unused[0]} has no effect without an adapter: add --use_peft.")


def _check_data(data: DatasetOptions, file: ConfigFile, values: dict[str, Any], given: set[str]) -> None:
    if data.dataset_name is not None and file.datasets:
        raise ConfigError(f"--dataset_name and the datasets of {file.path} both say what to learn from: leave one out.")
    if data.dataset_name is None and not file.datasets:
        raise ConfigError(
            "What should it learn from? Give a file, a folder or a hub id: --dataset_name data/train.csv."
        )
    if values["eval_strategy"] in ("no", None):
        for name in ("dataset_test_split", "test_split_size"):
            if name in given and values[name] is not None:
                raise ConfigError(f"--{name} has no effect while nothing is evaluated: add --eval_strategy steps.")
    if data.test_split_size is not None and data.dataset_test_split is not None:
        raise ConfigError("--dataset_test_split and --test_split_size both say what to evaluate on: leave one out.")


def _check_rewards(name: str, values: dict[str, Any]) -> None:
    if RewardOptions in METHODS[name].own and not values["reward_funcs"]:
        from boresight.rewards.function import BUILT_IN

        raise ConfigError(
            f"What is a completion worth? Name reward functions: --reward_funcs {' '.join(list(BUILT_IN)[:1])} or "
            f"my_module.my_reward. Built in: {', '.join(BUILT_IN)}."
        )


def _check_start(values: dict[str, Any], given: set[str]) -> None:
    if not values["accelerate_config"] and (unused := [name for name in LAUNCH if name in given]):
        raise ConfigError(f"--{unused[0]} has no effect alone: add --accelerate_config multi_gpu.")


def _init_kwargs(model: ModelOptions, training: Any) -> dict[str, Any] | None:
    """What `from_pretrained` is told, the user's own words on top."""
    named = {"dtype": model.dtype, "revision": model.model_revision, "attn_implementation": model.attn_implementation}
    found = {name: value for name, value in named.items() if value is not None and (name, value) != ("dtype", "auto")}
    return {**found, **(training.model_init_kwargs or {})} or None


def _resolve_checkpoint(training: Any) -> None:
    """The newest checkpoint of the run folder, where the user said `last`."""
    asked = training.resume_from_checkpoint
    if asked is None or asked.lower() in ("none", "false"):
        training.resume_from_checkpoint = None
    elif asked.lower() in (LAST, "true"):
        found = get_last_checkpoint(training.output_dir) if Path(training.output_dir).is_dir() else None
        if found is None:
            raise ConfigError(f"{training.output_dir} has no checkpoint to go on from: drop --resume_from_checkpoint.")
        training.resume_from_checkpoint = found
    elif not Path(asked).is_dir():
        raise ConfigError(
            f"--resume_from_checkpoint {asked}: there is no such folder. `last` is the newest of {training.output_dir}."
        )
