"""A training command: flags, a file of options and a preset, read into the rooms' configurations.

torch is imported only after all flags are read, so that `--help` and most errors are printed at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from boresight.cli.config_file import ConfigFile, as_words, read_config
from boresight.cli.flags import FlagParser
from boresight.cli.help import help_about, help_text, help_topic
from boresight.cli.methods import METHODS, Method, options_of
from boresight.cli.options import AdapterFlags, DatasetFlags, ModelFlags, RewardFlags, StartFlags, ToolFlags
from boresight.cli.quantised import check_quantisation, quantisation_config
from boresight.errors import ConfigError, nearest
from boresight.model.part_options import PartOptions, part_plan
from boresight.option_checks import check_options
from boresight.trainer.presets import PRESETS, Setting

LAST = "last"
"""The value of `--resume_from_checkpoint` that selects the newest checkpoint."""

EVALUATION = (
    "eval_",
    "do_eval",
    "dataset_test_split",
    "test_split_size",
    "load_best_model",
    "metric_for_best",
    "num_generations_eval",
)
"""The beginnings of options that say what is evaluated."""

Flags = TypeVar("Flags")


@dataclass
class Command:
    """The arguments of a training command.

    Your own script reads it with `read_command`, and passes it to `load_datasets`, `peft_config` and `train`.
    """

    name: str
    """sft, dpo, mpo, grpo or gspo."""
    model: ModelFlags
    adapter: AdapterFlags
    data: DatasetFlags
    training: Any
    """The method's configuration: `SFTConfig`, `DPOConfig` or `GRPOConfig`."""
    rewards: RewardFlags
    start: StartFlags
    words: tuple[str, ...] = ()
    """The options as typed."""
    program: tuple[str, ...] = ()
    """The words before the options."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """boresight's name of a column → its name in the data set."""
    parts: tuple[Mapping[str, Any], ...] = ()
    """The data sets of a mixture."""
    preset: str | None = None
    """The name of the published algorithm."""
    recipe: Mapping[str, Setting] = field(default_factory=dict)
    """The options that the preset sets."""
    tools: ToolFlags = field(default_factory=ToolFlags)
    sets_evaluation: bool = False
    """Whether an option says what is evaluated, or that nothing is."""

    @property
    def method(self) -> Method:
        return METHODS[self.name]

    def sampled(self) -> dict[str, Any]:
        """The arguments of a trainer that samples: rewards and tools, as far as they are given.

        Raises:
            ConfigError: there is no tool, or no environment, of a name.
        """
        rewards = {"reward_funcs": self.rewards.reward_funcs} if self.rewards.reward_funcs else {}
        return rewards | self.tools.arguments()

    @property
    def settings(self) -> str:
        """The options that the preset sets, one line each: its value, the user's value if that differs, and the source."""
        lines = []
        for option, setting in self.recipe.items():
            value = getattr(self.training, option)
            instead = "" if value == setting.value else f"; here {value!r}"
            lines.append((f"{option}={setting.value!r}{instead}", setting.source))
        width = max((len(shown) for shown, _ in lines), default=0)
        return "\n".join(f"  {shown:<{width}}  {source}" for shown, source in lines)


def read_command(name: str, words: Sequence[str] | None = None, *, launches: bool = True, **defaults: Any) -> Command:
    """Read a training command.

    Typed options override `--config`, which overrides `defaults`, which override a preset. The options that a preset sets are printed.
    `--help`, `--help TOPIC` and `--help-all` print help and exit. `--accelerate_config` restarts the same command through accelerate.

    Args:
        name: sft, dpo, mpo, grpo or gspo.
        words: the options of `boresight NAME`; None: the arguments of this script.
        launches: whether `--accelerate_config` restarts the command; without, it is read and has no effect.
        defaults: a script's own defaults, where they differ from boresight's.

    Raises:
        ConfigError: an option is unknown, missing, contradictory or without effect, or its value has the wrong type.
    """
    program = ("python", sys.argv[0]) if words is None else ("boresight", name)
    words = list(sys.argv[1:] if words is None else words)
    method = METHODS[name]
    if asked := {"-h", "--help", "--help-all", "--help_all"} & set(words):
        topic = help_topic(words)
        typed_as = " ".join(program)
        print(
            help_about(method, typed_as, topic)
            if topic
            else help_text(method, typed_as, everything=not asked <= {"-h", "--help"}),
            end="",
        )
        sys.exit(0)
    parser = parser_of(name, " ".join(program))
    typed = parser.read(words)
    file = read_config(typed["config"], parser.options) if typed.get("config") else ConfigFile()
    if file.datasets:
        defaults.pop("dataset_name", None)
    set_here = parser.read([word for option, value in defaults.items() for word in as_words(option, value)])
    given = set_here | parser.read(file.words()) | dict.fromkeys(file.nulls) | typed
    preset = given.get("preset") or method.recipe
    recipe = _recipe(preset, method)
    start = _flags(StartFlags, given)
    if start.accelerate_config and launches:
        from boresight.cli.launch import launch  # imports accelerate, which imports torch

        launch(start, program, words)
    command = _command(method, given, recipe, file, start)
    command.words, command.program, command.preset = tuple(words), program, preset
    if recipe and os.environ.get("RANK", "0") == "0":
        print(f"{preset} sets:\n{command.settings}", flush=True)
    return command


def parser_of(name: str, program: str = "") -> FlagParser:
    """The parser of a training command."""
    return FlagParser(program or f"boresight {name}", options_of(name), hidden=METHODS[name].unsupported)


def _recipe(preset: str | None, method: Method) -> Mapping[str, Setting]:
    if preset is None:
        return {}
    if preset != method.recipe and preset not in method.presets:
        raise ConfigError(
            f"There is no preset {preset!r}.{nearest(preset, method.presets)} Presets: {', '.join(method.presets)}."
        )
    return PRESETS[preset]


def _displaced(given: Mapping[str, Any]) -> set[str]:
    """Options of a preset that an equivalent option of the user replaces."""
    return {"steps_per_generation"} if given.get("generation_batch_size") is not None else set()


def _flags(cls: type[Flags], given: Mapping[str, Any]) -> Flags:
    """A checked instance of a dataclass of flags, with the values that were passed."""
    found = cls(**{option.name: given[option.name] for option in fields(cls) if option.name in given})  # pyright: ignore[reportArgumentType]
    check_options(found)
    return found


def _command(
    method: Method, given: Mapping[str, Any], recipe: Mapping[str, Setting], file: ConfigFile, start: StartFlags
) -> Command:
    adapted = part_plan(PartOptions(given.get("train"), given.get("lr"))).parts("lora")
    adapter = _flags(AdapterFlags, {"use_peft": bool(adapted), **given})  # --train language=lora says so already
    model, data = _flags(ModelFlags, given), _flags(DatasetFlags, given)
    rewards, tools = _flags(RewardFlags, given), _flags(ToolFlags, given)
    _check_what(model, data, file)
    check_quantisation(model, trains_adapter=adapter.use_peft)
    _check_evaluation(given, data)
    if method.samples and not rewards.reward_funcs and tools.environment_factory is None:  # one may have a reward
        from boresight.rewards.function import BUILT_IN  # imports torch

        raise ConfigError(
            f"How is a completion scored? Name reward functions: --reward_funcs {next(iter(BUILT_IN))} or "
            f"my_module.my_reward. Built in: {', '.join(BUILT_IN)}."
        )
    preset = {option: setting.value for option, setting in recipe.items() if option not in _displaced(given)}
    training = _training(method, {**preset, **given})
    training.model_init_kwargs = _init_kwargs(model, training)
    _check_checkpoint(training)
    columns = {
        option.removesuffix("_column"): value
        for option, value in given.items()
        if option.endswith("_column") and value is not None
    }
    return Command(
        method.name,
        model,
        adapter,
        data,
        training,
        rewards,
        start,
        columns=columns,
        parts=file.datasets,
        recipe=recipe,
        tools=tools,
        sets_evaluation=any(option.startswith(EVALUATION) for option in given),
    )


def _training(method: Method, values: Mapping[str, Any]) -> Any:
    """The configuration of the method's trainer."""
    cls = method.config_class()
    try:
        return cls(**{option.name: values[option.name] for option in fields(cls) if option.name in values})
    except ConfigError:
        raise
    except (ValueError, ImportError) as error:  # transformers' own checks
        raise ConfigError(" ".join(str(error).split())) from error


def _check_what(model: ModelFlags, data: DatasetFlags, file: ConfigFile) -> None:
    if not model.model_name_or_path:
        raise ConfigError("Which model? Give a folder or a hub id: --model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct.")
    if data.dataset_name is not None and file.datasets:
        raise ConfigError(f"--dataset_name and the datasets of {file.path} both set the training data: leave one out.")
    for name in ("data_dir", "data_files"):
        if file.datasets and getattr(data, name) is not None:
            raise ConfigError(
                f"{name} has no effect beside the datasets of {file.path}: write it in the part that it is of."
            )
    if data.dataset_name is None and not file.datasets:
        raise ConfigError("Which training data? Give a file, a folder or a hub id: --dataset_name data/train.csv.")


def _check_evaluation(given: Mapping[str, Any], data: DatasetFlags) -> None:
    if given.get("eval_strategy") in ("no", None):
        for name in ("dataset_test_split", "test_split_size"):
            if getattr(data, name) is not None:
                raise ConfigError(f"--{name} has no effect while nothing is evaluated: add --eval_strategy steps.")
    if data.test_split_size is not None and data.dataset_test_split is not None:
        raise ConfigError("--dataset_test_split and --test_split_size both set the evaluation data: leave one out.")


def _init_kwargs(model: ModelFlags, training: Any) -> dict[str, Any] | None:
    """The arguments of `from_pretrained`; `model_init_kwargs` override the flags."""
    named = {
        "dtype": model.dtype,
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "quantization_config": quantisation_config(
            model, "bfloat16" if training.bf16 else "float16" if training.fp16 else None
        ),
    }
    found = {name: value for name, value in named.items() if value is not None and (name, value) != ("dtype", "auto")}
    return {**found, **(training.model_init_kwargs or {})} or None


def _check_checkpoint(training: Any) -> None:
    """Refuse a checkpoint that is not there. Which is the newest whole one is found when training begins."""
    asked = training.resume_from_checkpoint
    if asked is None or asked.lower() in ("none", "false"):
        training.resume_from_checkpoint = None
    elif asked.lower() in (LAST, "true"):
        training.resume_from_checkpoint = LAST
        if not any(Path(training.output_dir).glob("checkpoint-*")):
            raise ConfigError(f"{training.output_dir} has no checkpoint to resume from: drop --resume_from_checkpoint.")
    elif not Path(asked).is_dir():
        raise ConfigError(
            f"--resume_from_checkpoint {asked}: there is no such folder. `last` means the newest of {training.output_dir}."
        )
