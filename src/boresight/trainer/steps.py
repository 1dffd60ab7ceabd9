"""The rows of an optimizer step, and how a step is cut into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import IterableDataset, Sampler

from boresight.errors import ConfigError


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Numbers of groups and steps on this rank."""

    groups_per_step: int
    """Groups of one optimizer step on this rank."""
    groups_per_pass: int
    """Groups of one micro-batch, if no token budget is set."""
    steps_per_rollout: int = 1
    """Optimizer steps with different groups that one rollout serves."""
    num_iterations: int = 1
    """Number of passes over the groups of one rollout."""

    @property
    def groups_per_rollout(self) -> int:
        return self.groups_per_step * self.steps_per_rollout

    @property
    def rollout_period(self) -> int:
        """Optimizer steps from one rollout to the next."""
        return self.steps_per_rollout * self.num_iterations


class StepBatches(Sampler[list[int]]):
    """The numbers of this rank's rows for every optimizer step.

    The first step of a rollout gets all of its rows, the other steps get none.

    Every rank iterates over the same order and takes its own share, so groups are never split over ranks and no row is used twice in an
    epoch. The last step of an epoch may be smaller if `keep_last` is set; this is exact, because totals are computed per step.

    With `ahead`, a rollout's place holds the rows of the next rollout, over the end of an epoch too: those to sample while optimizer steps
    learn from it. Its own rows are `rollout_at`.
    """

    def __init__(
        self,
        num_rows: int,
        plan: StepPlan,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        keep_last: bool = True,
        ahead: bool = False,
    ) -> None:
        self.ahead = ahead
        self.num_rows = num_rows
        self.plan = plan
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        rows_per_rollout = plan.groups_per_rollout * world_size
        full, rest = divmod(num_rows, rows_per_rollout)
        keep_last &= plan.rollout_period == 1
        if keep_last and full and rest < world_size:
            # A rank without a group could not take part in a step, so the last two steps are one.
            full, rest = full - bool(rest), rest + rows_per_rollout * bool(rest)
        self.num_full = full
        self.num_rest = rest if keep_last and rest >= world_size else 0
        if not full and not self.num_rest:
            raise ConfigError(
                f"The training set has {num_rows} rows, but one rollout takes {rows_per_rollout} (groups per step on a rank × ranks × "
                "steps per generation): lower gradient_accumulation_steps, steps_per_generation or num_prompts_per_step."
            )

    @property
    def num_dropped(self) -> int:
        """Number of rows that no step of an epoch uses; with shuffling, other rows are left out in each epoch."""
        return self.num_rows - self.num_full * self.plan.groups_per_rollout * self.world_size - self.num_rest

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_full * self.plan.rollout_period + bool(self.num_rest)

    def __iter__(self) -> Iterator[list[int]]:
        rollouts = self._rollouts(self.epoch)
        if self.ahead:
            rollouts = chain(islice(rollouts, 1, None), islice(self._rollouts(self.epoch + 1), 1))
        for rows in rollouts:
            yield rows
            for _ in range(self.plan.rollout_period - 1):
                yield []

    def rollout_at(self, step: int) -> list[int]:
        """This rank's rows of the rollout that begins at an optimizer step of the run, counted from 0."""
        epoch, place = divmod(step, len(self))
        return next(islice(self._rollouts(epoch), place // self.plan.rollout_period, None))

    def _rollouts(self, epoch: int) -> Iterator[list[int]]:
        """This rank's rows of every rollout of an epoch."""
        order = torch.arange(self.num_rows)
        if self.shuffle:
            order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(self.seed + epoch))
        rows_per_rollout = self.plan.groups_per_rollout * self.world_size
        for rollout in range(self.num_full):
            rows = order[rollout * rows_per_rollout : (rollout + 1) * rows_per_rollout]
            # [steps, ranks, groups]: each step's rows are cut over the ranks.
            mine = rows.view(self.plan.steps_per_rollout, self.world_size, -1)[:, self.rank]
            yield mine.flatten().tolist()
        if self.num_rest:
            yield order[-self.num_rest :].tensor_split(self.world_size)[self.rank].tolist()


def check_step_fits(plan: StepPlan, num_rows: int, world_size: int) -> None:
    """Check that there are as many rows as an optimizer step holds groups.

    Raises:
        ConfigError: there are fewer.
    """
    groups = plan.groups_per_step * world_size
    if groups > num_rows:
        raise ConfigError(
            f"An optimizer step holds {groups} prompts, and the training data has {num_rows} rows: lower per_device_train_batch_size, "
            "gradient_accumulation_steps or num_prompts_per_step, or give more rows."
        )


class StreamedBatches(IterableDataset[list[Any]]):
    """As `StepBatches`, for a data set that can only be iterated. Yields the rows instead of their numbers.

    Rows that do not fill the last step of the stream are a smaller step if `keep_last` is set, as there.
    """

    def __init__(
        self,
        rows: Iterable[Any],
        plan: StepPlan,
        *,
        encode: Callable[[Any], Any] | None = None,
        rank: int = 0,
        world_size: int = 1,
        keep_last: bool = True,
    ) -> None:
        self.rows = rows
        self.plan = plan
        self.encode = encode
        self.rank = rank
        self.world_size = world_size
        self.keep_last = keep_last and plan.rollout_period == 1

    def __iter__(self) -> Iterator[list[Any]]:
        size = self.plan.groups_per_rollout * self.world_size
        before: list[Any] = []  # a full rollout that is held back, in case fewer rows than ranks follow it
        rows: list[Any] = []
        for row in self.rows:
            rows.append(row)
            if len(rows) == size:
                if before:
                    yield from self._steps(before)
                before, rows = rows, []
            elif before and len(rows) >= self.world_size:
                yield from self._steps(before)
                before = []
        if self.keep_last and before and 0 < len(rows) < self.world_size:
            before, rows = before + rows, []
        if before:
            yield from self._steps(before)
        if self.keep_last and len(rows) >= self.world_size:
            yield from self._steps(rows)

    def _steps(self, rows: Sequence[Any]) -> Iterator[list[Any]]:
        """This rank's rows of one rollout, followed by the other steps that it serves, which get none."""
        steps = self.plan.steps_per_rollout
        numbers = torch.arange(len(rows))
        if len(rows) == self.plan.groups_per_rollout * self.world_size:
            mine = numbers.view(steps, self.world_size, -1)[:, self.rank].flatten()
        else:
            mine = numbers.tensor_split(self.world_size)[self.rank]
        yield [rows[number] if self.encode is None else self.encode(rows[number]) for number in mine.tolist()]
        yield from ([] for _ in range(self.plan.rollout_period - 1))


class Cuttable(Protocol):
    """A prompt with branches that can be cut: a `Group`, or a group with other inputs of an objective."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    def __len__(self) -> int: ...
    def branches(self, start: int, stop: int) -> Any: ...


Item = TypeVar("Item", bound=Cuttable)


def micro_batches(items: Sequence[Item], plan: StepPlan, max_tokens: int | None = None) -> list[list[Item]]:
    """Cut a step into passes, in order.

    Args:
        max_tokens: maximum packed tokens of a pass. The branches of a larger group run in several passes over the same prompt; a single
            branch is never cut. None: passes of `plan.groups_per_pass` groups.
    """
    if max_tokens is None:
        size = plan.groups_per_pass
        return [list(items[start : start + size]) for start in range(0, len(items), size)]
    passes: list[list[Item]] = []
    room = 0
    for item in (part for whole in items for part in _parts(whole, max_tokens)):
        if not passes or item.num_tokens > room:
            passes.append([])
            room = max_tokens
        passes[-1].append(item)
        room -= item.num_tokens
    return passes


def _parts(item: Item, max_tokens: int) -> Iterator[Item]:
    if item.num_tokens <= max_tokens or len(item) == 1:
        yield item
    else:
        half = len(item) // 2
        yield from _parts(item.branches(0, half), max_tokens)
        yield from _parts(item.branches(half, len(item)), max_tokens)


def smaller_budget(passes: Sequence[Sequence[Cuttable]]) -> int | None:
    """The token budget after a pass did not fit in memory: half the tokens of the largest pass that can be cut; None if none can."""
    cuttable = [part for part in passes if len(part) > 1 or len(part[0]) > 1]
    return max((sum(item.num_tokens for item in part) for part in cuttable), default=0) // 2 or None
