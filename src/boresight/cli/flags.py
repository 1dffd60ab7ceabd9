"""Flags from dataclasses: what transformers' parser makes of them, with errors that help and a `--help` that can be read."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, NoReturn, cast, get_args, get_type_hints

from transformers import HfArgumentParser, TrainingArguments

from boresight.cli.options import NOT_HERE
from boresight.errors import ConfigError, nearest

_THEIRS = {option.name: " ".join(str(option.metadata.get("help", "")).split()) for option in fields(TrainingArguments)}

PLAIN = {
    "dataloader_num_workers": "Processes that read and prepare rows ahead.",
    "eval_steps": "Evaluate every so many steps; below 1, a share of all. None: as --logging_steps.",
    "eval_strategy": "When to evaluate: never, every --eval_steps, or after each epoch.",
    "gradient_accumulation_steps": "Micro-batches of one optimizer step on a rank.",
    "max_grad_norm": "Gradients are shortened to this length.",
    "max_steps": "Stop after so many optimizer steps, whatever --num_train_epochs says.",
    "num_train_epochs": "How often to go through the rows.",
    "per_device_eval_batch_size": "Rows of one evaluation batch on a rank.",
    "per_device_train_batch_size": "Rows of one micro-batch on a rank.",
    "report_to": "Trackers that get the metrics: tensorboard, wandb, trackio, mlflow, all or none.",
    "resume_from_checkpoint": "Go on from a checkpoint: its folder, or last for the newest of the run.",
    "run_name": "What trackers call the run.",
    "save_steps": "Save a checkpoint every so many steps; below 1, a share of all.",
    "save_strategy": "When to save checkpoints: never, every --save_steps, after each epoch, or whenever the best.",
    "save_total_limit": "Keep only so many checkpoints, the newest.",
    "seed": "Of adapters drawn anew, the order of rows, and samples.",
    "use_cpu": "Train on the CPU even where there is a GPU.",
    "warmup_steps": "Steps in which the learning rate rises from 0; below 1, a share of all.",
}
"""What some options of transformers mean, in our words."""

VALUES = {
    "chat_template_kwargs": "JSON",
    "gradient_checkpointing_kwargs": "JSON",
    "lr_scheduler_kwargs": "JSON",
    "model_init_kwargs": "JSON",
    "output_dir": "FOLDER",
    "precomputed_ref_path": "FILE",
    "report_to": "NAME",
    "resume_from_checkpoint": "FOLDER|last",
}
"""What stands for the value of some options in the help."""
MAX_CHOICES = 48
"""Characters of a list of choices that still stands beside its flag."""

WIDTH = 79
"""Columns of `--help`."""
INDENT = 24


class FlagParser(HfArgumentParser):
    """A parser of a method's dataclasses. Every option has two spellings, `--like_this` and `--like-this`.

    Args:
        command: what people type, for messages.
        about: one sentence on what the command does.
        classes: the dataclasses, in the order of the help.
        unsupported: options that are there and refused, which `--help-all` leaves out.
        first: heading → options, what `--help` shows.
    """

    def __init__(
        self,
        command: str,
        about: str,
        classes: Sequence[type],
        *,
        unsupported: Mapping[str, str],
        first: Mapping[str, Sequence[str]],
    ) -> None:
        super().__init__(cast("Any", classes), prog=command, add_help=False, allow_abbrev=False)
        self.about = about
        self.unsupported = unsupported
        self.first = first
        self.options: dict[str, Field[Any]] = {option.name: option for cls in classes for option in fields(cls)}
        self._rooms = {option.name: room_of(cls, option.name) for cls in classes for option in fields(cls)}
        hints = {name: hint for cls in classes for name, hint in get_type_hints(cls).items() if name in self.options}
        self._words_or_lists = {name for name, hint in hints.items() if {str, list[str]} <= set(get_args(hint))}
        for action in self._actions:
            choices = get_args(hints[action.dest])
            if action.dest in self._words_or_lists:
                action.nargs = "+"
            if bool in choices and type(None) in choices:  # --bf16 alone means true
                action.nargs, action.const = "?", True
            if type(None) in choices and str not in choices and action.type is not None:
                action.type = or_none(action.type)  # pyright: ignore[reportArgumentType]

    def error(self, message: str) -> NoReturn:
        """What argparse itself finds wrong."""
        raise ConfigError(f"{message.removeprefix('argument ').replace('argument ', '')}. See {self.prog} --help.")

    def read(self, words: Sequence[str]) -> dict[str, Any]:
        """Option → value, of a command line.

        Raises:
            ConfigError: a flag that is not there, with the nearest that is, or a value of the wrong kind.
        """
        found, unknown = self.parse_known_args(list(words))
        if unknown:
            raise ConfigError(self._unknown(unknown[0]))
        return {name: self._single(name, value) for name, value in vars(found).items()}

    def _single(self, name: str, value: Any) -> Any:
        """One word of an option that takes a word or a list of them is that word."""
        takes_word = isinstance(value, list) and len(value) == 1 and name in self._words_or_lists
        return value[0] if takes_word else value

    def _unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{word!r} belongs to no option of {self.prog}: options begin with --."
        flag = word.split("=")[0]
        name = flag.lstrip("-").replace("-", "_")
        if name in NOT_HERE:
            return f"{flag} is TRL's and not here: {NOT_HERE[name]}."
        known = [name for name in self.options if name not in self.unsupported]
        return f"{self.prog} has no option {flag}.{nearest_flag(name, known)} All of them: {self.prog} --help-all."

    # ---- Help -------------------------------------------------------------------------------------------------------------------

    def help_text(self, *, everything: bool) -> str:
        """What `--help` shows, or `--help-all`."""
        sections = self._by_room() if everything else self.first
        known = [(title, [name for name in names if name in self.options]) for title, names in sections.items()]
        blocks = [f"usage: {self.prog} {self._usage()}", *textwrap.wrap(self.about, WIDTH)]
        for title, names in known:
            if names:
                blocks.append("\n".join([f"{title}:", *(line for name in names for line in self._described(name))]))
        blocks.append(textwrap.fill(self._closing(everything), WIDTH))
        return "\n\n".join(blocks) + "\n"

    def _usage(self) -> str:
        needed = ["model_name_or_path", "dataset_name", "reward_funcs"]
        return " ".join([*(f"--{name} {self._value(name)}" for name in needed if name in self.options), "…"])

    def _closing(self, everything: bool) -> str:
        spelling = "Every option may also be written with hyphens, --like-this."
        if not everything:
            hidden = len(
                self.options.keys() - self.unsupported - {name for names in self.first.values() for name in names}
            )
            return f"{spelling} {hidden} more options: {self.prog} --help-all."
        return f"{spelling} Options of transformers that are refused, each with its reason: {', '.join(sorted(self.unsupported))}."

    def _by_room(self) -> dict[str, list[str]]:
        rooms: dict[str, list[str]] = {room: [] for room in ROOMS}
        for name in self.options:
            if name not in self.unsupported:
                rooms.setdefault(self._rooms[name], []).append(name)
        return rooms

    def _described(self, name: str) -> Iterator[str]:
        """The lines of one option: its flag, then what it does beside or below."""
        option = self.options[name]
        words = " ".join(str(option.metadata.get("help", "")).split())
        if words == _THEIRS.get(name):
            words = PLAIN.get(name, f"{words.split('. ')[0].removesuffix('.')}." if words else "As in transformers.")
        default = option.default if option.default is not MISSING else self.get_default(name)
        if (choices := self._choices(name)) and not self._value(name).startswith("{"):
            words = f"{words} One of {', '.join(choices)}."
        if default not in (None, False, "") and default is not True:
            shown = " ".join(map(str, default)) if isinstance(default, list) else getattr(default, "value", default)
            words = f"{words} [{shown}]"
        flag = f"  --{'no_' if default is True else ''}{name} {self._value(name)}".rstrip()
        if default is True:
            words = f"Switch off: {words[:1].lower()}{words[1:]}" if words[1:2].islower() else f"Switch off: {words}"
        lines = textwrap.wrap(words, WIDTH - INDENT, break_on_hyphens=False)
        if len(flag) <= INDENT - 2:
            yield f"{flag:<{INDENT}}{lines[0]}"
            lines = lines[1:]
        else:
            yield flag
        yield from (" " * INDENT + line for line in lines)

    def _action(self, name: str) -> Any:
        return next(action for action in self._actions if action.dest == name)

    def _choices(self, name: str) -> list[str]:
        return [str(choice) for choice in self._action(name).choices or ()]

    def _value(self, name: str) -> str:
        """What stands for the option's value."""
        action = self._action(name)
        if action.const is True:
            return "true|false" if self.options[name].default is None else ""
        if action.metavar or name in VALUES:
            value = str(action.metavar or VALUES[name])
        elif choices := self._choices(name):
            value = "{" + ",".join(choices) + "}"
            value = value if len(value) <= MAX_CHOICES else "NAME"
        else:
            value = {"int": "N", "float": "X", "string_to_bool": "true|false"}.get(
                getattr(action.type, "__name__", ""), "TEXT"
            )
        return f"{value} [{value} …]" if action.nargs == "+" else value


def or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader of values that takes the word None too."""

    def read_or_none(word: str) -> Any:
        return None if word.lower() in ("none", "null") else read(word)

    read_or_none.__name__ = getattr(read, "__name__", "value")
    return read_or_none


def nearest_flag(name: str, known: Sequence[str]) -> str:
    """A hint for an unknown flag, spelt as people type it."""
    hint = nearest(name, known)
    return hint.replace("'", "--", 1).replace("'", "", 1)


# ---- Where an option lives ------------------------------------------------------------------------------------------------------

ROOMS = (
    "model", "adapter (LoRA)", "data", "rollout", "rewards", "advantage", "loss", "trainer", "report", "start",
    "optimizer", "checkpoints", "evaluation", "logging", "loading", "precision and device", "several processes", "hub",
    "everything else",
)  # fmt: skip
"""Headings of `--help-all`: the rooms in the order of causation, then what transformers' loop reads."""

_REWARDS = ("reward_", "gold_", "max_failed_rate")
_FOREIGN = {
    "optimizer": ("learning_rate", "lr_", "warmup", "optim", "adam_", "weight_decay", "max_grad_norm"),
    "checkpoints": ("save_", "resume_", "load_best", "metric_for", "greater_is", "ignore_data_skip", "restore_"),
    "evaluation": ("eval_", "per_device_eval", "do_eval", "do_predict"),
    "logging": ("logging_", "log_", "report_to", "run_name", "project", "trackio", "disable_tqdm", "include_num", "skip_memory"),
    "loading": ("dataloader_",),
    "precision and device": ("bf16", "fp16", "tf32", "use_cpu", "gradient_checkpointing", "use_cache", "debug", "full_determinism"),
    "several processes": ("ddp_", "local_rank", "accelerator_config", "average_tokens"),
    "hub": ("hub_", "push_to_hub"),
    "trainer": (
        "output_dir", "num_train_epochs", "max_steps", "per_device_train", "gradient_accumulation", "seed", "data_seed", "do_train",
    ),
}  # fmt: skip


def room_of(cls: type, name: str) -> str:
    """The heading of an option: the room whose class was the first to have it."""
    owner = next(base for base in reversed(cls.__mro__) if name in inspect.get_annotations(base))
    if issubclass(TrainingArguments, owner):
        return next((title for title, starts in _FOREIGN.items() if name.startswith(starts)), "everything else")
    if owner.__module__ == "boresight.cli.options":
        if name.startswith(("lora_", "use_peft", "use_rslora", "use_dora")):
            return "adapter (LoRA)"
        kinds = {"ModelOptions": "model", "RewardOptions": "rewards", "StartOptions": "start", "PresetOptions": "loss"}
        return kinds.get(owner.__name__, "data")
    if name.startswith(_REWARDS) and name != "reward_weights":
        return "rewards"
    return owner.__module__.split(".")[1]


def room_is_foreign(room: str) -> bool:
    """Whether the heading is one of transformers'."""
    return room in _FOREIGN or room == "everything else"
