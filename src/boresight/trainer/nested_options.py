"""Options inside options (`lr_scheduler_kwargs`, `optim_args`, `accelerator_config`, …), which libraries read long after they are set.

Each is tried when the configuration is made, by the function that will read it, on one weight: what it raises later, it raises now, under
the option's name.
"""

from __future__ import annotations

import inspect
import math
import multiprocessing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from transformers import Trainer, TrainingArguments
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_scheduler
from transformers.trainer_utils import SchedulerType

from boresight.errors import BoresightError, ConfigError, nearest

TRIED_STEPS = 20
"""Steps of a schedule that are tried."""
FROM_METRICS = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
"""Schedules that follow evaluations instead of steps."""
NEED_A_MODEL = ("galore", "apollo", "lomo")
"""Optimizers that are made of the model's own layers."""
NO_EFFECT = {
    "split_batches": "the loader hands every rank its own rows of a step",
    "dispatch_batches": "the loader hands every rank its own rows of a step",
    "gradient_accumulation_kwargs": "boresight accumulates a step's gradients itself: set gradient_accumulation_steps",
}
"""Entries of `accelerator_config` that are refused, each with the reason."""
SWITCHES = ("non_blocking", "use_configured_state", "even_batches", "use_seedable_sampler")
"""Entries of `accelerator_config` that are accepted. The last two change nothing: steps and their order are exact in any case."""
CHOICES: Mapping[str, Collection[str]] = {
    "log_level": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "log_level_replica": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "ddp_backend": ("nccl", "gloo", "mpi", "ccl", "xccl", "hccl", "cncl", "mccl"),
    "include_num_input_tokens_seen": ("all", "non_padding", "no"),
    "dataloader_multiprocessing_context": multiprocessing.get_all_start_methods(),
}
"""Choices that transformers does not check, or checks under another name."""


def check_before_transformers(config: Any) -> None:
    """What transformers' own checks would fail on without naming the option.

    Raises:
        ConfigError: the message names the option, the entry and the way out.
    """
    for name, known in CHOICES.items():
        value = getattr(config, name)
        if isinstance(value, str) and value not in known:
            raise ConfigError(f"{name}={value!r} is not one of {', '.join(known)}.{nearest(value, known)}")
    for name in ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "model_init_kwargs", "accelerator_config"):
        given = getattr(config, name)
        for key, value in given.items() if isinstance(given, Mapping) else ():
            if not isinstance(key, str):
                raise ConfigError(f"{name}: {key!r} is no name of an option: write the names as texts.")
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{name}: {key}={value} is not a finite number.")
    _check_accelerator(config.accelerator_config)
    _check_checkpointing(config.gradient_checkpointing_kwargs)
    if isinstance(config.model_init_kwargs, Mapping) and "torch_dtype" in config.model_init_kwargs:
        raise ConfigError("model_init_kwargs: torch_dtype is an old name: write dtype.")


def check_optimizer_and_schedule(config: TrainingArguments) -> None:
    """Make the optimizer and the schedule of one weight.

    Raises:
        ConfigError: that fails, an entry has no effect, or a learning rate of the first steps is not finite.
    """
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer: Any = torch.optim.SGD([weight], lr=config.learning_rate)
    optim = str(getattr(config.optim, "value", config.optim))
    if config.optim_args or config.optim != TrainingArguments.optim:
        with named(f"optim={optim!r}{f', optim_args={config.optim_args!r}' if config.optim_args else ''}"):
            made = _optimizer(config, weight, is_whole=not any(word in optim for word in NEED_A_MODEL))
        optimizer = made or optimizer
    _check_schedule(config, optimizer)


def _optimizer(config: TrainingArguments, weight: Any, *, is_whole: bool) -> Any:
    """The optimizer of one weight; None for one that needs the whole model."""
    given = dict(_entries(config.optim_args))
    if not is_whole:
        return None
    read = Trainer.get_optimizer_cls_and_kwargs
    cls, options = read(config)
    for name in given:
        if _is_ignored(config, given, name, options):
            raise ConfigError(f"it does not read {name!r}. Drop it.")
    return cls([weight], **options)


def _entries(text: str | None) -> Iterator[tuple[str, str]]:
    for entry in (text or "").replace(" ", "").split(","):
        name, equals, value = entry.partition("=")
        if text and (not name or not equals or not value or "=" in value):
            raise ConfigError(f"{entry!r} is not NAME=VALUE: write the entries like a=1,b=2.")
        if text:
            yield name, value


def _is_ignored(config: TrainingArguments, given: Mapping[str, str], name: str, options: Any) -> bool:
    """Whether another value, or none, leaves the optimizer's options as they are."""
    for changed in ({**given, name: "0.123"}, {key: value for key, value in given.items() if key != name}):
        other = _with(config, optim_args=",".join(f"{key}={value}" for key, value in changed.items()) or None)
        try:
            if Trainer.get_optimizer_cls_and_kwargs(other)[1] != options:
                return False
        except Exception:  # it was read, and this value does not suit it
            return False
    return True


def _with(config: TrainingArguments, **changes: Any) -> Any:
    """A view of a configuration with other values, which is not checked."""
    copied = object.__new__(type(config))
    copied.__dict__.update(config.__dict__, **changes)
    return copied


def _check_schedule(config: TrainingArguments, optimizer: Any) -> None:
    kind = SchedulerType(config.lr_scheduler_type)
    if isinstance(config.lr_scheduler_kwargs, str):  # transformers reads JSON objects alone
        raise ConfigError(
            f'lr_scheduler_kwargs={config.lr_scheduler_kwargs!r} is not a JSON object: write it like {{"key": 1}}.'
        )
    given: dict[str, Any] = dict(config.lr_scheduler_kwargs or {})
    what = f"lr_scheduler_type={kind.value!r}{f', lr_scheduler_kwargs={given!r}' if given else ''}"
    taken = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
    known = [name for name in inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[kind]).parameters if name not in taken]
    if kind not in FROM_METRICS:
        for name in given:
            if name not in known:
                listed = f"Options: {', '.join(known)}." if known else "It has none."
                raise ConfigError(f"{what}: it has no option {name!r}.{nearest(name, known)} {listed}")
    steps = config.max_steps if config.max_steps > 0 else 1000
    with named(what):
        warmup = config.get_warmup_steps(steps)
        schedule: Any = get_scheduler(kind, optimizer, warmup, steps, given)
        for _ in range(0 if kind in FROM_METRICS else min(steps, TRIED_STEPS)):
            rate = optimizer.param_groups[0]["lr"]
            if isinstance(rate, complex) or not math.isfinite(rate) or rate < 0:
                raise ConfigError(f"it gives a learning rate of {rate}.")
            optimizer.step()
            schedule.step()


def _check_accelerator(given: Any) -> None:
    if isinstance(given, str):
        with named(f"accelerator_config={given!r}"):
            open(given).close()  # noqa: PTH123 -- a text may also be no path at all
        return
    if not isinstance(given, Mapping):
        return
    known = (*SWITCHES, *NO_EFFECT)
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"accelerator_config has no entry {name!r}.{nearest(name, known)}")
        if name in NO_EFFECT and value is not None and value is not False:
            raise ConfigError(f"accelerator_config: {name}={value!r} has no effect: {NO_EFFECT[name]}. Drop it.")
        if name not in NO_EFFECT and not isinstance(value, bool):
            raise ConfigError(f"accelerator_config: {name}={value!r} is neither True nor False.")


def _check_checkpointing(given: Any) -> None:
    if not isinstance(given, Mapping):
        return
    function: Callable[..., Any] = torch.utils.checkpoint.checkpoint
    known = [name for name in inspect.signature(function).parameters if name not in ("function", "args", "kwargs")]
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"gradient_checkpointing_kwargs has no entry {name!r}.{nearest(name, known)}")
        if name not in ("context_fn", "determinism_check") and not isinstance(value, bool):
            raise ConfigError(f"gradient_checkpointing_kwargs: {name}={value!r} is neither True nor False.")


@contextmanager
def named(what: str) -> Iterator[None]:
    """Whatever a library raises, as an error that begins with the option."""
    try:
        yield
    except BoresightError as error:
        if isinstance(error, ConfigError) and not str(error).startswith(what):
            raise ConfigError(f"{what}: {error}") from error.__cause__
        raise
    except Exception as error:  # libraries raise many types
        raise ConfigError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error
