"""From groups of completions to a table of rewards."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch

from boresight.errors import ConfigError, ModelError, RewardError
from boresight.rewards.async_calls import AsyncCalls
from boresight.rewards.function import (
    Failure,
    RewardFunc,
    accepted,
    asked_for,
    checked_values,
    is_async,
    load_reward,
    needs,
    reward_names,
)
from boresight.rewards.logged import Logged
from boresight.rewards.own_copies import own_copies
from boresight.rewards.pool import RewardPool
from boresight.rewards.table import RewardTable
from boresight.types import EncodedImage, Group, Prompt

logger = logging.getLogger(__name__)

DecodeImages = Callable[[Sequence[EncodedImage]], Sequence[Any]]
MAX_NAMED = 5
"""Failed completions that a message names."""

ModelSizes = Callable[[Prompt], Sequence[tuple[int, int]]]

_TAKEN = ("completions", "completion_ids", "trainer_state", "log_metric", "log_extra", "environments")


class _Shared(list[Any]):
    """A list that reward functions share: their copies of it have the same items."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return _Shared(self)


class Scorer:
    """Calls every reward function on every completion.

    A function that raises has *failed* on all completions of that call: they are left unscored, never given 0, and
    counted. So is a completion for which it returns a `Failure`. With `workers`, sync functions run in processes of
    their own, on one completion at a time, and fail on that one alone (see `RewardPool`).

    The run stops when a function failed on more than `max_failed_rate` of the completions of its last
    `failed_window` calls: at once if its very first call fails, but a short outage of a remote judge does not end a long run.

    Async functions run concurrently on one event loop, in a thread of its own for as long as the process lives: HTTP clients stay
    usable from call to call, and notebooks work. Sync functions run in the calling thread meanwhile.

    Args:
        reward_funcs: a function or several; each may also be a built-in reward's name or a dotted path.
        weights: one per function (`reward_weights`); 1 each by default.
        workers: processes per sync function; 0 calls them in this process, on the whole batch, as TRL does.
        timeout_s: seconds that a worker has for a completion, and an async function for a batch.
        memory_gib: data that a worker may allocate.
        max_failed_rate: share of completions on which a function may fail before the run stops.
        failed_window: calls over which that share is taken.
        decode_images: decodes the images of one prompt, for functions that ask for `images`.
        model_sizes: (width, height) of a prompt's images as the model saw them, for functions that ask for
            `model_image_sizes`.
        think_opened: whether a prompt ends with ``<think>``, for functions that ask for `think_opened`.
        is_taken: whether a metric of this name is logged by others, so that `log_metric` must not use it.

    Raises:
        ConfigError: no function, one that cannot be loaded, or weights that do not fit.
    """

    def __init__(
        self,
        reward_funcs: str | RewardFunc | Sequence[str | RewardFunc],
        weights: Sequence[float] | None = None,
        *,
        workers: int = 0,
        timeout_s: float = 60.0,
        memory_gib: float = 8.0,
        max_failed_rate: float = 0.5,
        failed_window: int = 16,
        decode_images: DecodeImages | None = None,
        model_sizes: ModelSizes | None = None,
        think_opened: Callable[[Prompt], bool] | None = None,
        is_taken: Callable[[str], bool] | None = None,
    ) -> None:
        specs = [reward_funcs] if isinstance(reward_funcs, str) or callable(reward_funcs) else list(reward_funcs)
        if not specs:
            raise ConfigError("reward_funcs is empty: name at least one reward function.")
        self.funcs: list[RewardFunc] = [load_reward(spec) for spec in specs]
        self.names = reward_names(self.funcs)
        self.weights = _checked_weights(weights, self.names)
        self.timeout_s = timeout_s
        self.max_failed_rate = max_failed_rate
        self._pools = {
            index: RewardPool(func, num_workers=workers, timeout_s=timeout_s, memory_gib=memory_gib)
            for index, func in enumerate(self.funcs)
            if workers and not is_async(func)
        }
        self._async_calls = AsyncCalls()
        self._decode_images = decode_images
        self._model_sizes = model_sizes
        self._think_opened = think_opened
        self._is_taken = is_taken
        self._asked = frozenset[str]().union(*map(asked_for, self.funcs))
        self._recent = [deque[tuple[int, int]](maxlen=failed_window) for _ in self.funcs]

    def only(self, wanted: Callable[[RewardFunc], bool]) -> Scorer | None:
        """A scorer of some of the functions, for a trial: failures do not stop it. None where no function is wanted."""
        places = [place for place, func in enumerate(self.funcs) if wanted(func)]
        if not places:
            return None
        some = copy.copy(self)
        some.funcs = [self.funcs[place] for place in places]
        some.names = tuple(self.names[place] for place in places)
        some.weights = self.weights[places]
        some._asked = frozenset[str]().union(*map(asked_for, some.funcs))
        some.max_failed_rate = 1.0
        some._pools = {new: self._pools[old] for new, old in enumerate(places) if old in self._pools}
        some._recent = [deque(maxlen=1) for _ in places]
        return some

    def without_tokens(self, think_opened: bool) -> Scorer:
        """A scorer for a trial of prompts that were not encoded, of which it is known whether they end with ``<think>``."""
        trial = copy.copy(self)
        trial._think_opened = lambda prompt: think_opened
        return trial

    def score(
        self, groups: Sequence[Group], *, trainer_state: Any = None, environments: Sequence[Any] | None = None
    ) -> RewardTable:
        """The reward table of all completions of `groups`.

        Args:
            environments: that of each completion, for functions that ask for them; None: there are none. They are passed as they are, not
                copied.

        Raises:
            RewardError: a function broke its contract (wrong length, not a number, infinite, a parameter that nothing
                provides), or fails too often.
        """
        rows = [group.prompt.row.index for group in groups for _ in group.completions]
        log = Logged(self._is_taken)
        inputs = self._inputs(groups) | {
            "trainer_state": trainer_state,
            "log_metric": log.add_metric,
            "log_extra": log.add_column,
        }
        if environments is not None and any(environment is not None for environment in environments):
            inputs["environments"] = _Shared(environments)
        values = torch.full((len(rows), len(self.funcs)), math.nan)
        failed = torch.zeros(len(rows), dtype=torch.bool)
        for index, outcome in enumerate(self._call_all(inputs, rows, log)):
            if isinstance(outcome, BaseException):
                failures = dict.fromkeys(range(len(rows)), _last_line(outcome))
            else:
                values[:, index] = torch.tensor(checked_values(outcome, self.names[index], rows))
                failures = {place: value.reason for place, value in enumerate(outcome) if isinstance(value, Failure)}
            failed[list(failures)] = True
            log.add_own(f"rewards/{self.names[index]}/failed", len(failures) / len(rows))
            self._record(index, rows, failures, outcome if isinstance(outcome, BaseException) else None)
        log.check(len(rows))
        table = RewardTable(self.names, values, failed, self.weights, log.metrics, log.columns)
        table.check_total(rows)
        return table

    def close(self) -> None:
        """End all workers."""
        for pool in self._pools.values():
            pool.close()

    def _inputs(self, groups: Sequence[Group]) -> dict[str, Any]:
        """The keywords that depend on the completions, each with one entry per completion."""
        per_group: dict[str, list[Any]] = {"prompts": [_shown_prompt(group) for group in groups]}
        if "image_sizes" in self._asked:
            per_group["image_sizes"] = [[image.size for image in group.prompt.images] for group in groups]
        if "images" in self._asked and self._decode_images:
            per_group["images"] = [list(self._decode_images(group.prompt.images)) for group in groups]
        if "model_image_sizes" in self._asked and self._model_sizes and (sizes := self._sizes_in_model(groups)):
            per_group["model_image_sizes"] = sizes
        if "think_opened" in self._asked and self._think_opened:
            per_group["think_opened"] = [self._think_opened(group.prompt) for group in groups]
        columns = {name for group in groups for name in group.prompt.row.columns}
        if taken := columns & {*per_group, *_TAKEN}:
            raise RewardError(
                f"the data set's column {min(taken)!r} has a name under which reward functions are passed something "
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

    def _sizes_in_model(self, groups: Sequence[Group]) -> list[list[tuple[int, int]]] | None:
        """The sizes of every group's images in the model; None where it cuts them into tiles, and no function insists.

        Raises:
            ModelError: a function insists.
        """
        assert self._model_sizes is not None
        try:
            return [list(self._model_sizes(group.prompt)) for group in groups]
        except ModelError:
            if any(needs(func, "model_image_sizes") for func in self.funcs):
                raise
            return None

    def _call_all(self, inputs: Mapping[str, Any], rows: Sequence[int], log: Logged) -> list[Any]:
        """What each function returned, or the exception it raised. Async functions run while sync ones do.

        Each function has copies of its own of all inputs: what it changes in them reaches neither the next function nor the row.
        """
        arguments = [accepted(func, name, inputs) for func, name in zip(self.funcs, self.names, strict=True)]
        outcomes: list[Any] = [None] * len(self.funcs)
        running: dict[str, Future[Any]] = {}
        deadline = time.monotonic() + self.timeout_s
        try:
            for index, func in sorted(enumerate(self.funcs), key=lambda item: not is_async(item[1])):
                name = self.names[index]
                try:
                    if index in self._pools:
                        returned = self._pooled(index, arguments[index], rows, log)
                    else:
                        returned = func(**own_copies(arguments[index]))
                except RewardError:
                    raise
                except (Exception, SystemExit, asyncio.CancelledError) as error:
                    returned = error
                if asyncio.iscoroutine(returned):
                    running[name] = self._async_calls.start(returned, name, self.timeout_s)
                outcomes[index] = returned
            for name, outcome in self._async_calls.outcomes(running, deadline).items():
                outcomes[self.names.index(name)] = outcome
        finally:
            for future in running.values():
                future.cancel()
        return outcomes

    def _pooled(self, index: int, arguments: Mapping[str, Any], rows: Sequence[int], log: Logged) -> list[Any]:
        """The function's value for each completion, called one by one in its workers."""
        outcomes = self._pools[index](arguments, len(rows))
        name = self.names[index]
        log.add_own(f"rewards/{name}/slowest_s", max(outcome.seconds for outcome in outcomes))
        columns: dict[str, list[Any]] = {}
        for place, outcome in enumerate(outcomes):
            for kind, key, value in outcome.logged:
                if kind == "log_metric":
                    log.add_metric(key, value)
                else:
                    columns.setdefault(key, [None] * len(rows))[place] = value[0]
        for key, column in columns.items():
            log.add_column(key, column)
        return [_one_value(outcome.value, name, row) for outcome, row in zip(outcomes, rows, strict=True)]

    def _record(
        self, index: int, rows: Sequence[int], failures: Mapping[int, str], cause: BaseException | None
    ) -> None:
        """Count the call; warn of failures, and stop the run when there are too many."""
        name, recent = self.names[index], self._recent[index]
        recent.append((len(failures), len(rows)))
        if not failures:
            return
        reasons = [f"row {rows[place]}: {reason}" for place, reason in failures.items()]
        more = " …" if len(reasons) > MAX_NAMED else ""
        shown = "; ".join(reasons[:MAX_NAMED]) + more if cause is None else _last_line(cause)
        num_failed, num_called = map(sum, zip(*recent, strict=True))
        if num_failed > self.max_failed_rate * num_called:
            raise RewardError(
                f"reward function {name!r} failed on {num_failed} of its last {num_called} completions, "
                f"more than max_failed_rate={self.max_failed_rate} allows. Its error: {shown}"
            ) from cause
        logger.warning(
            "reward function %r failed; its %d completions stay unscored (%d of the last %d failed): %s",
            name,
            len(failures),
            num_failed,
            num_called,
            shown,
        )


def _shown_prompt(group: Group) -> str | list[dict[str, Any]]:
    prompt = group.prompt.row.prompt
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def _shown_completions(group: Group) -> list[str | list[dict[str, Any]]]:
    if isinstance(group.prompt.row.prompt, str):
        return [completion.text for completion in group.completions]
    return [
        [{"role": "assistant", "content": completion.text}]
        if completion.messages is None
        else [dict(message) for message in completion.messages]
        for completion in group.completions
    ]


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


def _one_value(returned: Any, name: str, row: int) -> float | Failure:
    """The value of a function that was called with one completion."""
    if isinstance(returned, Failure):
        return returned
    (value,) = checked_values(returned, name, [row])
    return returned[0] if isinstance(returned[0], Failure) else value


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()
