"""Groups in, reward table out."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from functools import cache
from typing import Any

import torch

from boresight.errors import ConfigError, RewardError
from boresight.rewards.reward import (
    RewardFunc,
    RewardTable,
    accepted,
    asked_for,
    checked_values,
    is_async,
    load_reward,
    reward_names,
)
from boresight.types import Group, Picture, Prompt

logger = logging.getLogger(__name__)

DecodePictures = Callable[[Sequence[Picture]], Sequence[Any]]
ModelSizes = Callable[[Prompt], Sequence[tuple[int, int]]]


class Scorer:
    """Calls every reward function on every completion.

    A function that raises has *failed* on all completions of that call: they are left unscored, never given 0, and
    counted. The run stops when a function failed on more than `max_failed_rate` of the completions of its last
    `failed_window` calls: at once if its very first call fails, but one bad minute of a remote judge does not end a run
    that went well for hours.

    Async functions run side by side on one event loop that lives as long as the process, in a thread of its own:
    clients they keep stay usable from call to call, and it works inside a notebook. Sync functions run in the calling
    thread meanwhile.

    Args:
        reward_funcs: a function or several; each may also be a built-in reward's name or a dotted path.
        weights: one per function (`reward_weights`); 1 each by default.
        max_failed_rate: share of completions on which a function may fail before the run stops.
        failed_window: calls over which that share is taken.
        decode_pictures: decodes the pictures of one prompt, for functions that ask for `images`.
        model_sizes: (width, height) of a prompt's pictures as the model saw them, for functions that ask for
            `model_image_sizes`.

    Raises:
        ConfigError: no function, one that cannot be loaded, or weights that do not fit.
    """

    def __init__(
        self,
        reward_funcs: str | RewardFunc | Sequence[str | RewardFunc],
        weights: Sequence[float] | None = None,
        *,
        max_failed_rate: float = 0.5,
        failed_window: int = 16,
        decode_pictures: DecodePictures | None = None,
        model_sizes: ModelSizes | None = None,
    ) -> None:
        specs = [reward_funcs] if isinstance(reward_funcs, str) or callable(reward_funcs) else list(reward_funcs)
        if not specs:
            raise ConfigError("reward_funcs is empty: name at least one reward function.")
        self.funcs: list[RewardFunc] = [load_reward(spec) for spec in specs]
        self.names = reward_names(self.funcs)
        self.weights = _checked_weights(weights, self.names)
        self.max_failed_rate = max_failed_rate
        self._decode_pictures = decode_pictures
        self._model_sizes = model_sizes
        self._asked = frozenset[str]().union(*map(asked_for, self.funcs))
        self._recent = [deque[tuple[int, int]](maxlen=failed_window) for _ in self.funcs]

    def score(self, groups: Sequence[Group], *, trainer_state: Any = None) -> RewardTable:
        """The reward table of all completions of `groups`.

        Raises:
            RewardError: a function broke its contract (wrong length, not a number, infinite, a parameter that nothing
                provides), or fails too often.
        """
        rows = [group.prompt.row.index for group in groups for _ in group.completions]
        log = _Log()
        inputs = self._inputs(groups) | {
            "trainer_state": trainer_state,
            "log_metric": log.add_metric,
            "log_extra": log.add_column,
        }
        values = torch.full((len(rows), len(self.funcs)), math.nan)
        failed = torch.zeros(len(rows), dtype=torch.bool)
        for index, outcome in enumerate(self._call_all(inputs)):
            if isinstance(outcome, Exception):
                failed[:] = True
            else:
                values[:, index] = torch.tensor(checked_values(outcome, self.names[index], rows))
            self._record(index, len(rows), outcome)
        log.check(len(rows))
        return RewardTable(self.names, values, failed, self.weights, log.metrics, log.columns)

    def _inputs(self, groups: Sequence[Group]) -> dict[str, Any]:
        """The keywords that depend on the completions, each with one entry per completion."""
        per_group: dict[str, list[Any]] = {"prompts": [_shown_prompt(group) for group in groups]}
        if "image_sizes" in self._asked:
            per_group["image_sizes"] = [[picture.size for picture in group.prompt.pictures] for group in groups]
        if "images" in self._asked and self._decode_pictures:
            per_group["images"] = [list(self._decode_pictures(group.prompt.pictures)) for group in groups]
        if "model_image_sizes" in self._asked and self._model_sizes:
            per_group["model_image_sizes"] = [list(self._model_sizes(group.prompt)) for group in groups]
        columns = {name for group in groups for name in group.prompt.row.columns}
        if taken := columns & {*per_group, "completions", "completion_ids", "trainer_state", "log_metric", "log_extra"}:
            raise RewardError(
                f"the data set's column {min(taken)!r} bears a name under which reward functions receive something "
                "else: rename the column."
            )
        for name in columns:
            per_group[name] = [group.prompt.row.columns.get(name) for group in groups]
        return {
            name: [value for value, group in zip(values, groups, strict=True) for _ in group.completions]
            for name, values in per_group.items()
        } | {
            "completions": [completion for group in groups for completion in _shown_completions(group)],
            "completion_ids": [completion.ids.tolist() for group in groups for completion in group.completions],
        }

    def _call_all(self, inputs: Mapping[str, Any]) -> list[Any]:
        """What each function returned, or the exception it raised. Async ones are under way while sync ones run."""
        arguments = [accepted(func, name, inputs) for func, name in zip(self.funcs, self.names, strict=True)]
        outcomes: list[Any] = [None] * len(self.funcs)
        running: dict[int, Future[Any]] = {}
        try:
            for index, func in sorted(enumerate(self.funcs), key=lambda item: not is_async(item[1])):
                try:
                    returned = func(**arguments[index])
                except RewardError:
                    raise
                except Exception as error:
                    returned = error
                if asyncio.iscoroutine(returned):
                    running[index] = asyncio.run_coroutine_threadsafe(_outcome(returned), _event_loop())
                outcomes[index] = returned
            for index, future in running.items():
                outcomes[index] = future.result()
        finally:
            for future in running.values():
                future.cancel()
        return outcomes

    def _record(self, index: int, num_completions: int, outcome: Any) -> None:
        """Count the call; warn of a failure, and stop the run when there are too many."""
        name, recent = self.names[index], self._recent[index]
        failed = isinstance(outcome, Exception)
        recent.append((num_completions if failed else 0, num_completions))
        if not failed:
            return
        last_line = traceback.format_exception_only(outcome)[-1].strip()
        num_failed, num_called = map(sum, zip(*recent, strict=True))
        if num_failed > self.max_failed_rate * num_called:
            raise RewardError(
                f"reward function {name!r} failed on {num_failed} of its last {num_called} completions, "
                f"more than max_failed_rate={self.max_failed_rate} allows. Its error: {last_line}"
            ) from outcome
        logger.warning(
            "reward function %r failed; its %d completions stay unscored (%d of the last %d failed): %s",
            name,
            num_completions,
            num_failed,
            num_called,
            last_line,
        )


class _Log:
    """What reward functions record beside their rewards."""

    def __init__(self) -> None:
        self.metrics: dict[str, list[float]] = {}
        self.columns: dict[str, list[Any]] = {}

    def add_metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(name, []).append(float(value))

    def add_column(self, column: str, values: Sequence[Any]) -> None:
        self.columns[column] = list(values)

    def check(self, num_completions: int) -> None:
        for column, values in self.columns.items():
            if len(values) != num_completions:
                raise RewardError(
                    f"log_extra({column!r}, …) was given {len(values)} values for {num_completions} completions: "
                    "give one per completion."
                )


def _shown_prompt(group: Group) -> str | list[dict[str, Any]]:
    prompt = group.prompt.row.prompt
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def _shown_completions(group: Group) -> list[str | list[dict[str, str]]]:
    texts = [completion.text for completion in group.completions]
    if isinstance(group.prompt.row.prompt, str):
        return list(texts)
    return [[{"role": "assistant", "content": text}] for text in texts]


def _checked_weights(weights: Sequence[float] | None, names: Sequence[str]) -> torch.Tensor:
    if weights is None:
        return torch.ones(len(names))
    if len(weights) != len(names):
        raise ConfigError(
            f"reward_weights has {len(weights)} entries for {len(names)} reward functions ({', '.join(names)}): "
            "give one per function."
        )
    if not all(map(math.isfinite, weights)):
        raise ConfigError(f"reward_weights must be finite numbers, not {list(weights)}.")
    return torch.tensor(weights, dtype=torch.float32)


async def _outcome(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What the coroutine returns, or the exception it raises, as a value: one failure leaves its neighbours running."""
    try:
        return await coroutine
    except RewardError:
        raise
    except Exception as error:
        return error


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="boresight-rewards", daemon=True).start()
    return loop
