"""What a reward function is, what it is called, and what becomes of what it returns.

A reward is TRL's callable, unchanged: ``f(prompts, completions, **columns) -> list[float | None]``, sync or async.
Everything is passed by keyword, one entry per completion:

| keyword | what it holds |
|---|---|
| `prompts` | the row's prompt: a conversation or a string |
| `completions` | ``[{"role": "assistant", "content": text}]`` after a conversation, `text` after a string |
| `completion_ids` | token ids of the completion |
| every other column of the data set | its value in the completion's row |
| `trainer_state` | transformers' `TrainerState`, one for all |
| `log_metric(name, value)` | adds a number to the metrics of the step |
| `log_extra(column, values)` | adds a column, one value per completion, to the stored completions |
| `images` | the row's decoded images. Only for a function that names this parameter |
| `image_sizes` | their (width, height) in pixels. Only for a function that names this parameter |
| `model_image_sizes` | their (width, height) as the model saw them. Only for a function that names this parameter |

`None` or NaN means that the reward does not apply to this completion; the others still count. A `Failure` means that the
function could not tell: the completion is unscored, and the failure is counted.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from boresight.errors import ConfigError, RewardError, nearest
from boresight.rewards.text import Failure, RewardFunc
from boresight.types import PerSequence

LARGEST = torch.finfo(torch.float32).max
"""Rewards are float32: a larger number would become infinite."""

BUILT_IN = {
    "accuracy_reward": "boresight.rewards.formula",
    "answer_format_reward": "boresight.rewards.format",
    "choice_letter_reward": "boresight.rewards.choice",
    "exact_answer_reward": "boresight.rewards.choice",
    "iou_reward": "boresight.rewards.grounding",
    "numeric_answer_reward": "boresight.rewards.choice",
    "point_in_box_reward": "boresight.rewards.grounding",
    "think_format_reward": "boresight.rewards.format",
}
"""Rewards that a command line may name without their module."""


@dataclass(frozen=True, slots=True)
class RewardTable:
    """What every reward function said of every completion, completions in the order of their groups."""

    names: tuple[str, ...]
    values: Float[Tensor, "B R"]
    """[B, R] NaN where a function does not apply to a completion or failed on it."""
    failed: Bool[Tensor, "B"]
    """[B] true where some function raised: the whole completion is then unscored, whatever the others said."""
    weights: Float[Tensor, "R"]
    metrics: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Every number that a function passed to `log_metric`."""
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """[B] per name: the columns that functions passed to `log_extra`."""

    @property
    def scored(self) -> Bool[Tensor, "B"]:
        """[B] true where no function failed and at least one applies."""
        return ~self.failed & ~self.values.isnan().all(dim=1)

    @property
    def total(self) -> PerSequence:
        """[B] weighted sum of the rewards that apply; NaN where unscored."""
        return (self.values * self.weights).nansum(dim=1).masked_fill(~self.scored, math.nan)

    @property
    def by_name(self) -> dict[str, PerSequence]:
        """[B] per function: what it said."""
        return dict(zip(self.names, self.values.unbind(dim=1), strict=True))

    def __add__(self, below: RewardTable) -> RewardTable:
        """This table, and below it another of the same functions."""
        num_own, num_more = len(self.values), len(below.values)
        extra = {
            name: [*self.extra.get(name, [None] * num_own), *below.extra.get(name, [None] * num_more)]
            for name in dict.fromkeys((*self.extra, *below.extra))
        }
        metrics = {
            name: [*self.metrics.get(name, ()), *below.metrics.get(name, ())]
            for name in dict.fromkeys((*self.metrics, *below.metrics))
        }
        values, failed = torch.cat([self.values, below.values]), torch.cat([self.failed, below.failed])
        return RewardTable(self.names, values, failed, self.weights, metrics, extra)


def unwrapped(func: RewardFunc) -> RewardFunc:
    """What `functools.partial` was made of."""
    while isinstance(func, functools.partial):
        func = func.func
    return func


def reward_name(func: RewardFunc) -> str:
    """The function's name, as TRL has it: a partial's is that of its function, an object's that of its class."""
    func = unwrapped(func)
    return getattr(func, "__name__", type(func).__name__)


def reward_names(funcs: Sequence[RewardFunc]) -> tuple[str, ...]:
    """One name per function; the second to bear a name gets ``_2`` added, so no metric hides another."""
    names: list[str] = []
    for name in map(reward_name, funcs):
        name = "lambda" if name == "<lambda>" else name
        count = 1
        unique = name
        while unique in names:
            count += 1
            unique = f"{name}_{count}"
        names.append(unique)
    return tuple(names)


def is_async(func: RewardFunc) -> bool:
    """Whether calling `func` returns a coroutine; an object's `__call__` may be async too."""
    func = unwrapped(func)
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(func, "__call__", None))  # noqa: B004


def asked_for(func: RewardFunc) -> frozenset[str]:
    """The parameters that `func` names."""
    return frozenset(inspect.signature(func).parameters)


def accepted(func: RewardFunc, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that `func` takes: all of them if it takes any keyword, else those it names.

    Raises:
        RewardError: nothing provides a required parameter.
    """
    parameters = inspect.signature(func).parameters.values()
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise RewardError(
                f"reward function {name!r}: parameter {parameter.name!r} is positional-only, "
                "but rewards are called by keyword."
            )
        wanted = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if wanted and parameter.default is parameter.empty and parameter.name not in inputs:
            raise RewardError(
                f"reward function {name!r} needs {parameter.name!r}, which neither the data set nor the trainer provides."
                f"{nearest(parameter.name, inputs)} It may ask for: {', '.join(sorted(inputs))}."
            )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(inputs)
    return {parameter.name: inputs[parameter.name] for parameter in parameters if parameter.name in inputs}


def load_reward(spec: str | RewardFunc) -> RewardFunc:
    """The function itself, found by name if need be.

    Args:
        spec: a callable, the name of a built-in reward, or a dotted path such as ``"my_module.my_reward"``
            (the working directory is searched, as for a script).

    Raises:
        ConfigError: nothing callable goes by that name.
    """
    if isinstance(spec, torch.nn.Module) or not (isinstance(spec, str) or callable(spec)):
        raise ConfigError(
            f"reward_funcs holds a {type(spec).__name__}; each entry is a function, the name of a built-in reward "
            "or a dotted path such as 'my_module.my_reward'. Wrap a reward model in a function."
        )
    if not isinstance(spec, str):
        return spec
    module_name, _, attribute = spec.rpartition(".")
    if not module_name:
        if spec not in BUILT_IN:
            known = ", ".join(BUILT_IN)
            raise ConfigError(f"{spec!r} is no built-in reward.{nearest(spec, BUILT_IN)} Built in: {known}.")
        module_name = BUILT_IN[spec]
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        func = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"reward {spec!r} cannot be loaded: {error}") from error
    if not callable(func):
        raise ConfigError(f"reward {spec!r} is a {type(func).__name__}, not a function.")
    return func


def checked_values(returned: Any, name: str, rows: Sequence[int]) -> list[float]:
    """What a reward function returned, as floats with NaN for `None`.

    Args:
        returned: whatever the function returned.
        name: the function's.
        rows: the data set's row of every completion.

    Raises:
        RewardError: not one finite number, `None` or NaN per completion.
    """
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(values, list | tuple):
        shown = repr(returned)[:80]
        raise RewardError(
            f"reward function {name!r} returned {shown} ({type(returned).__name__}); "
            f"it must return a list of {len(rows)} numbers or None, one per completion."
        )
    if len(values) != len(rows):
        raise RewardError(f"reward function {name!r} returned {len(values)} values for {len(rows)} completions.")
    return [
        _checked_value(value, name, index, row) for index, (value, row) in enumerate(zip(values, rows, strict=True))
    ]


def _checked_value(value: Any, name: str, index: int, row: int) -> float:
    number = value.tolist() if hasattr(value, "tolist") else value
    if number is None or isinstance(number, Failure):
        return math.nan
    if not isinstance(number, int | float) or abs(number) > LARGEST:
        raise RewardError(
            f"reward function {name!r} returned {value!r} for completion {index} (row {row}); "
            "a reward is a finite number, or None where it does not apply."
        )
    return float(number)
