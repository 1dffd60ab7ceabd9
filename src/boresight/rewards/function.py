"""The contract of a reward function: how it is found and named, what it is passed, and what it may return.

A reward is TRL's callable, unchanged: ``f(prompts, completions, **columns) -> list[float | None]``, sync or async.
Every argument is passed by keyword, with one entry per completion:

| keyword | what it holds |
|---|---|
| `prompts` | the row's prompt: a conversation or a string |
| `completions` | ``[{"role": "assistant", "content": text}]`` after a conversation, `text` after a string |
| `completion_ids` | token ids of the completion |
| every other column of the data set | its value in the completion's row |
| `trainer_state` | transformers' `TrainerState`, one for all completions |
| `log_metric(name, value)` | adds a number to the step's metrics |
| `log_extra(column, values)` | adds a column, one value per completion, to the stored completions |
| `images` | the row's decoded images, for a function that names this parameter |
| `image_sizes` | their (width, height) in pixels, for a function that names this parameter |
| `model_image_sizes` | their (width, height) after the processor resized them, for a function that names this parameter |
| `think_opened` | whether the prompt ends with ``<think>``, for a function that names this parameter |

A function owns its arguments: changes to them reach neither other functions nor the row. In a worker, `trainer_state` holds the fields
that are plain numbers, texts, lists and dicts, and of `log_history` the last entry. `log_metric` refuses the names of boresight's own
metrics.

`None` or NaN means that the reward does not apply to this completion; the other rewards still count. A `Failure` means that the function
could not score it: the completion is unscored, and the failure is counted.

This module does not import torch: reward workers load it.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boresight.dotted import named_object
from boresight.errors import ConfigError, RewardError, nearest

RewardFunc = Callable[..., Any]

LARGEST = 1e15
"""The largest size of a reward, and of a weighted sum. Rewards are float32, and group statistics square them."""

BUILT_IN = {
    "accuracy_reward": "boresight.rewards.formula",
    "answer_format_reward": "boresight.rewards.format",
    "article_format_reward": "boresight.rewards.format",
    "choice_letter_reward": "boresight.rewards.choice",
    "exact_answer_reward": "boresight.rewards.choice",
    "iou_reward": "boresight.rewards.grounding",
    "numeric_answer_reward": "boresight.rewards.number",
    "point_in_box_reward": "boresight.rewards.grounding",
    "reasoning_accuracy_reward": "boresight.rewards.formula",
    "think_format_reward": "boresight.rewards.format",
}
"""Built-in rewards, which may be given by name alone, and their modules."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Returned for a completion that the function could not score: the completion is then unscored, never given 0."""

    reason: str


def with_options(func: RewardFunc, **options: Any) -> RewardFunc:
    """The function with some of its keyword arguments set, under its own `__name__`; it can be pickled if the function can."""
    made = functools.partial(func, **options)
    made.__name__ = reward_name(func)  # pyright: ignore[reportAttributeAccessIssue]
    return made


def unwrapped(func: RewardFunc) -> RewardFunc:
    """The function inside any `functools.partial`."""
    while isinstance(func, functools.partial):
        func = func.func
    return func


def option_of(func: RewardFunc, name: str) -> Any:
    """The value of a keyword argument that has a default: as `with_options` set it, or the default."""
    return inspect.signature(func).parameters[name].default


def reward_name(func: RewardFunc) -> str:
    """The function's name, as in TRL: of a partial its function's, of an object its class's."""
    func = unwrapped(func)
    return getattr(func, "__name__", type(func).__name__)


def reward_names(funcs: Sequence[RewardFunc]) -> tuple[str, ...]:
    """One name per function; the second of the same name gets ``_2``, so that no metric hides another."""
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


def needs(func: RewardFunc, name: str) -> bool:
    """Whether `func` has a parameter of this name without a default."""
    parameter = inspect.signature(func).parameters.get(name)
    return parameter is not None and parameter.default is parameter.empty


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
    """The function itself, imported where it is given by name.

    Args:
        spec: a callable, the name of a built-in reward, or a dotted path such as ``"my_module.my_reward"``
            (the working directory is searched, as for a script).

    Raises:
        ConfigError: there is no callable of that name.
    """
    if _is_module(spec) or not (isinstance(spec, str) or callable(spec)):
        raise ConfigError(
            f"reward_funcs holds a {type(spec).__name__}; each entry is a function, the name of a built-in reward "
            "or a dotted path such as 'my_module.my_reward'. Wrap a reward model in a function."
        )
    if not isinstance(spec, str):
        return spec
    func = named_object(spec, BUILT_IN, "reward")
    if not callable(func):
        raise ConfigError(f"reward {spec!r} is a {type(func).__name__}, not a function.")
    return func


def _is_module(spec: object) -> bool:
    """Whether `spec` is a torch module; there is none where torch is not loaded, and this module does not load it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(spec, torch.nn.Module)


def checked_values(returned: Any, name: str, rows: Sequence[int]) -> list[float]:
    """A reward function's return value as floats, with NaN for `None`.

    Args:
        returned: the return value.
        name: the function's name.
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
            f"a reward is a number of at most ±{LARGEST:g}, or None where it does not apply."
        )
    return float(number)


MAX_NAMED = 10


def named(items: Sequence[str]) -> str:
    """The first ten, and how many more there are."""
    more = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
    return ", ".join(items[:MAX_NAMED]) + more
