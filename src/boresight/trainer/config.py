"""The configurations of trainers: the options of a method and `transformers.TrainingArguments`, flat, under TRL's names.

An unknown option is an error that suggests the nearest name. An unsupported option and a value out of range are errors too.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

from boresight.errors import ConfigError, nearest
from boresight.loss.preference_options import check_preference_loss
from boresight.model.part_options import part_plan
from boresight.option_checks import check_options, read_json
from boresight.options import declarations, default_of
from boresight.trainer.nested_options import check_before_transformers, check_optimizer_and_schedule
from boresight.trainer.options import DPOOptions, SFTOptions, TrainerOptions
from boresight.trainer.training_arguments import RANGES

Config = TypeVar("Config", bound=type)
Method = TypeVar("Method", bound="TrainerConfig")


def strict(cls: Config) -> Config:
    """Make a dataclass raise `ConfigError` for an unknown option and suggest the nearest known one."""
    init = cls.__init__

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **options: Any) -> None:
        known = [option.name for option in fields(cls)]
        for name in options.keys() - known:
            raise ConfigError(f"{cls.__name__} has no option {name!r}.{nearest(name, known)}")
        init(self, *args, **options)

    cls.__init__ = checked
    return cls


@dataclass
class TrainerConfig(TrainerOptions, TrainingArguments):  # pyright: ignore[reportIncompatibleVariableOverride] -- bf16 may be None
    """Options of every trainer."""

    def __post_init__(self) -> None:
        self.output_dir = self.output_dir or "trainer_output"
        self._refuse_unsupported()
        theirs = {option.name for option in fields(TrainingArguments)}  # which may also be the path of a JSON file
        read_json(self, [declared for declared in declarations(type(self)) if declared.name not in theirs])
        check_options(self, RANGES)
        part_plan(self)
        if self.bf16 is None:
            has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            self.bf16 = has_bf16 and not self.fp16 and not self.use_cpu
        check_training(self)
        check_before_transformers(self)
        for name in (
            "checkpointing",
            "checkpointing_kwargs",
        ):  # transformers 5.24 names them activation_…, and warns of the old names
            if getattr(self, f"activation_{name}", True) is None:
                setattr(self, f"activation_{name}", getattr(self, f"gradient_{name}"))
        try:
            super().__post_init__()
        except ConfigError:
            raise
        except (ValueError, TypeError, ImportError) as error:  # transformers' own checks
            raise ConfigError(" ".join(str(error).split())) from error
        check_optimizer_and_schedule(self)

    def _refuse_unsupported(self) -> None:
        for option in fields(self):
            if option.name in self.unsupported and getattr(self, option.name) != default_of(option):
                raise ConfigError(
                    f"{type(self).__name__} does not support {option.name}={getattr(self, option.name)!r}: "
                    f"{self.unsupported[option.name]}. Leave it at {default_of(option)!r}."
                )


def as_config(args: TrainingArguments | None, cls: type[Method]) -> Method:
    """The configuration of a method from what a user passed.

    Args:
        args: the configuration itself, None for the defaults, or plain `transformers.TrainingArguments`, as TRL accepts them. Of these,
            the options that differ from transformers' defaults are taken.

    Raises:
        ConfigError: `args` is the configuration of another method, or an option is not supported.
    """
    if args is None:
        return cls()
    if isinstance(args, cls):
        return args
    if type(args) is not TrainingArguments:
        raise ConfigError(f"args is a {type(args).__name__}: pass a {cls.__name__}.")
    plain = {option.name: getattr(args, option.name) for option in fields(TrainingArguments) if option.init}
    as_made = TrainingArguments(output_dir=args.output_dir, use_cpu=args.use_cpu)
    return cls(
        **{name: value for name, value in plain.items() if name == "output_dir" or value != getattr(as_made, name)}
    )


def check_training(config: TrainerConfig) -> None:
    """Check the options of transformers that make no sense together.

    Raises:
        ConfigError: they do not; the message names the fix.
    """
    if config.activation_offloading and (config.use_cpu or not torch.cuda.is_available()):
        raise ConfigError(
            "activation_offloading=True moves activations from a GPU into the CPU's memory, and this run is on a CPU, where they are "
            "already: leave it out, and set gradient_checkpointing=True or max_tokens_per_pass."
        )
    if config.max_steps == 0:
        raise ConfigError("max_steps=0 trains nothing: set at least 1, or -1 to train num_train_epochs.")
    for name in ("save_steps", "eval_steps", "logging_steps", "warmup_steps"):
        value = getattr(config, name)
        if value is not None and value > 1 and value != int(value):
            raise ConfigError(f"{name}={value!r} is neither a whole number of steps nor a share of them below 1.")
        if (
            value == 0
            and name != "warmup_steps"
            and _word(getattr(config, name.replace("steps", "strategy"))) == "steps"
        ):
            raise ConfigError(
                f"{name}=0 is never reached: set at least 1, or {name.replace('steps', 'strategy')}='no'."
            )
    if _word(config.eval_strategy) == "no":
        needs = {
            "save_strategy='best'": _word(config.save_strategy) == "best",
            "load_best_model_at_end=True": config.load_best_model_at_end,
        }
        for option in (option for option, is_set in needs.items() if is_set):
            raise ConfigError(f"{option} needs evaluations: set eval_strategy='steps' and give an eval_dataset.")
    if config.dataloader_persistent_workers and not config.dataloader_num_workers:
        raise ConfigError("dataloader_persistent_workers=True has no effect: set dataloader_num_workers, or drop it.")
    _check_trackers(config.report_to)


def _word(choice: Any) -> str:
    """A choice that may be a member of an enumeration."""
    return str(getattr(choice, "value", choice))


def _check_trackers(report_to: object) -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK  # slow, and only for this check

    names = report_to if isinstance(report_to, list) else [report_to]
    known = ["none", "all", *INTEGRATION_TO_CALLBACK]
    for name in names:
        if name is not None and name not in known:
            raise ConfigError(
                f"report_to={name!r} is no tracker.{nearest(str(name), known)} Trackers: {', '.join(known)}."
            )


@strict
@dataclass
class SFTConfig(SFTOptions, TrainerConfig):
    """Options of `SFTTrainer`. Names and defaults are TRL's, except that `max_length` has no limit, because images must not be cut."""


@strict
@dataclass
class DPOConfig(DPOOptions, TrainerConfig):
    """Options of `DPOTrainer`, for DPO, MPO and every other sum of preference losses.

    Names and defaults are TRL's, except that `max_length` has no limit, because images must not be cut.

    `per_device_train_batch_size` counts pairs.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_preference_loss(self)
        if self.precompute_ref_log_probs and self.sync_ref_model:
            raise ConfigError(
                "precompute_ref_log_probs=True computes the reference once, and sync_ref_model=True updates it: set one of them."
            )
