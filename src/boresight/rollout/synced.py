"""A `Sampler` over an engine. It syncs weights before sampling, repeats a batch if the engine restarts, and checks agreement once.

An engine is whatever has the interface `SyncedEngine`. vLLM is one; another is a file beside the folder `vllm`, and a row of the
trainer's table of engines.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from boresight.background import in_thread
from boresight.errors import EngineError, EngineRestartedError
from boresight.ranks import on_every_rank
from boresight.sampling import SamplingSettings, TrainingHooks
from boresight.types import Group, Prompt

logger = logging.getLogger(__name__)

AGREEMENT = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}
"""Largest allowed difference between the engine's log-probabilities and the trainer's, in nats, averaged over a group's tokens."""


MAX_REDONE = 3
"""How often a sync or a batch is repeated because the engine restarted during it."""


@dataclass(frozen=True, slots=True)
class SyncReport:
    """The result of a sync."""

    num_sent: int
    """How many tensors were sent, counted by saved name."""
    num_compared: int
    """How many of the engine's parameters had their fingerprints compared with the trainer's."""
    seconds: float


class SyncedEngine(Protocol):
    """One rank's connection to an engine that holds a copy of the policy's weights."""

    counts: Counter[str]
    """Work done so far: prompt_tokens, completion_tokens, and restarts of the engine."""
    version: str
    """The label of the weights that the engine must hold."""

    @property
    def where(self) -> str:
        """The engine's name for messages."""
        ...

    @property
    def dtype(self) -> str:
        """The dtype that the engine computes in."""
        ...

    @property
    def is_fresh(self) -> bool:
        """Whether the engine holds the policy's weights, so that `sync` sends none."""
        ...

    @property
    def pushes(self) -> bool:
        """Whether this rank sends the weights. If another does, it passes their label to `adopt`."""
        ...

    def requests(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> Sequence[Any]:
        """The engine's requests for these prompts. Nothing is sent yet.

        Raises:
            ConfigError: a request exceeds the engine's limits.
        """
        ...

    def completed(self, prompts: Sequence[Prompt], requests: Sequence[Any], settings: SamplingSettings) -> list[Group]:
        """The completions of these requests, each with the engine's log-probabilities, prompts in order.

        Raises:
            EngineRestartedError: the engine restarted, or lost the policy's weights: sync, and sample again.
            EngineError: the output does not match the request.
        """
        ...

    def sampled_by(self, place: int) -> str:
        """The name of the engine that sampled the group at this place of the last `completed`."""
        ...

    def sync(self, step: int, *, in_flight: bool = False) -> SyncReport | None:
        """Send the policy's weights of this optimizer step if the engine lacks them, and verify that they arrived.

        Args:
            in_flight: `completed` runs in another thread. The engine pauses to load the weights, and goes on with them. Before
                the next batch, `sync` is called once more.

        Raises:
            SyncError: weights did not arrive as they were sent.
            EngineError: the engine did not recover.
        """
        ...

    def adopt(self, version: str) -> None:
        """Record that some rank has sent the policy's weights to the engine under this label."""
        ...

    def outdate(self) -> None:
        """Mark the engine's weights as stale: the policy has changed, or the engine may have lost them."""
        ...

    def rest(self) -> None:
        """Note that these weights are not sampled from again: memory may be freed until the next sync."""
        ...

    def close(self) -> None:
        """Release the engine."""
        ...


@dataclass(slots=True)
class Batch:
    """Prompts that are sampled together on one rank."""

    sample: Callable[[], list[Group]]
    """Samples them from the engine."""
    step: int = 0
    """The optimizer steps behind the weights that sample them."""
    running: Future[list[Group]] | None = None
    """The same, in a thread; None: not started."""

    def groups(self) -> list[Group]:
        """The groups, each completion with its weights' version."""
        found = self.sample() if self.running is None else self.running.result()
        return [
            replace(group, completions=tuple(replace(each, sampler_step=self.step) for each in group.completions))
            for group in found
        ]


class SyncedSampler:
    """Samples on all ranks together from an engine that holds the policy's weights.

    Before any completion is used, the log-probabilities of the first completions of each engine, with and without images, are compared
    with the trainer's.

    `begin` and `finish` sample one batch while the caller goes on and the policy moves. The engine keeps the weights that it began with.

    Args:
        engine: this rank's connection to the engine.
        training: the trainer's hooks.
        distribution_differs: the engine samples from another distribution than the policy's (structured outputs, top-p), so its
            log-probabilities differ by design.
    """

    def __init__(self, engine: SyncedEngine, training: TrainingHooks, *, distribution_differs: bool = False) -> None:
        self.engine = engine
        self.training = training
        self.counts: Counter[str] = Counter()
        self._agrees = distribution_differs
        self._begun: Batch | None = None
        self._has_moved = False

    def sample(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Group]:
        """As `Sampler.sample`. If the engine restarts during a batch, the batch is sampled again."""
        self.settle()
        return self._completed(self._batch(prompts, settings))

    def begin(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        """Send the policy's weights to the engine, and start to sample in the background. All ranks call this together.

        The first batch of a sampler is waited for, since log-probabilities can be compared under the same weights alone.
        """
        assert self._begun is None
        batch = self._batch(prompts, settings)
        if self._agrees:
            self._sync()
            batch.step = self.training.step()
            batch.running = in_thread(batch.sample)
        else:
            groups = self._completed(batch)
            batch.running = Future()
            batch.running.set_result(groups)
        self._begun = batch

    def finish(self) -> list[Group]:
        """The groups that were begun. If the engine restarted, they are sampled again with the weights of now.

        Raises:
            EngineError: on all ranks, if the engine of any rank failed permanently.
        """
        assert self._begun is not None
        batch, self._begun = self._begun, None
        return self._completed(batch)

    def renew(self) -> None:
        """Send the policy's weights into the batch that is being sampled, if it still is. All ranks call this together.

        Completions that are not finished go on with the new weights, on keys and values of the old ones. Each token's log-probability is
        that of the weights that sampled it. `Completion.sampler_step` stays that of the oldest weights.
        """
        running = None if self._begun is None else self._begun.running
        if any(gather_object([running is not None and not running.done()])):
            self._sync(in_flight=True)
            self.training.metrics.sum("sync/in_flight", 1)

    @property
    def has_begun(self) -> bool:
        """Whether `finish` has groups to return."""
        return self._begun is not None

    def settle(self) -> None:
        """Wait until nothing is sampled in the background. `finish` returns its result, or raises its error, later."""
        if self._begun is not None and self._begun.running is not None:
            wait([self._begun.running])

    def drop(self) -> None:
        """Wait for what was begun, and forget it."""
        self.settle()
        self._begun = None

    def begun_groups(self) -> list[Group] | None:
        """What was begun on this rank, once it is there; `finish` returns it all the same. None: nothing, or it failed."""
        self.settle()
        if self._begun is None or self._begun.running is None or self._begun.running.exception() is not None:
            return None
        return self._begun.groups()

    def _batch(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> Batch:
        # All ranks build requests before any sends them: a rank that failed later would leave others that share its engine waiting.
        requests = on_every_rank(lambda: self.engine.requests(prompts, settings))
        return Batch(partial(self.engine.completed, prompts, requests, settings))

    def _completed(self, batch: Batch) -> list[Group]:
        groups: list[Group] | None = None
        is_of_now = batch.running is None
        for attempts_left in range(MAX_REDONE, -1, -1):
            if batch.running is None:
                self._sync()
                batch.step = self.training.step()
            groups = on_every_rank(partial(self._sampled, batch, groups, attempts_left))
            if all(gather_object([groups is not None])):
                break
            self.engine.outdate()
            batch.running = None
        assert groups is not None
        self.counts.update(self.engine.counts)
        self.engine.counts.clear()
        if is_of_now and not self._agrees:
            self._check_agreement(groups)
        return groups

    def _sampled(self, batch: Batch, done: list[Group] | None, attempts_left: int) -> list[Group] | None:
        """This rank's groups, reused from an earlier attempt if it succeeded; None if the engine restarted."""
        if done is not None:
            return done
        try:
            return batch.groups()
        except EngineRestartedError as error:
            if not attempts_left:
                raise
            logger.warning("%s The batch is sampled again.", error)
            return None

    def weights_moved(self) -> None:
        # The engine hears of it before its next sync: what it samples in the background is of the weights that it has.
        self._has_moved = True

    def rest(self) -> None:
        if self._begun is None:
            self.engine.rest()

    def close(self) -> None:
        self.engine.close()

    def _sync(self, *, in_flight: bool = False) -> None:
        """Sync on the ranks that send weights, and pass the version's name to the others."""
        training = self.training
        if self._has_moved:
            self.engine.outdate()
            self._has_moved = False
        sends = self.engine.pushes
        with training.timeline.phase("sync"):
            is_needed = any(gather_object([sends and not self.engine.is_fresh]))
            with training.sending(sends) if is_needed else nullcontext():
                report = on_every_rank(
                    lambda: self.engine.sync(training.step(), in_flight=in_flight) if sends else None
                )
            self.engine.adopt(broadcast_object_list([self.engine.version])[0])
        if report is not None:
            training.metrics.sum("sync/tensors", report.num_sent)
            training.metrics.sum("sync/modules_compared", report.num_compared)

    def _check_agreement(self, groups: Sequence[Group]) -> None:
        numbered = [*enumerate(groups)]
        chosen = {(bool(each.prompt.images), self.engine.sampled_by(place)): each for place, each in reversed(numbered)}
        first, sources = [*chosen.values()], [where for _, where in chosen]
        with self.training.timeline.phase("sync"):
            logp = self.training.logp(first)
        gap = on_every_rank(lambda: agreement(first, logp, self.engine.dtype, sources))
        self._agrees = True
        self.training.log_once(f"{self.engine.where} and the trainer agree within {gap:.1e} nats per token.")


def agreement(groups: Sequence[Group], logp: Sequence[Tensor], dtype: str, sources: Sequence[str]) -> float:
    """The mean difference per token between the engine's and the trainer's log-probabilities under the same weights, in nats.

    This finds errors that a comparison of weights does not.

    Args:
        groups: groups that the engine sampled.
        logp: [K, C] the trainer's log-probabilities of each group.
        dtype: the dtype that the engine computes in.
        sources: the name of the engine that sampled each group, for error messages.

    Returns:
        The largest mean over the groups.

    Raises:
        EngineError: a group's mean is above `AGREEMENT`.
    """
    worst = 0.0
    for group, rows, where in zip(groups, logp, sources, strict=True):
        gaps = [
            (completion.sampler_logp - row[: len(completion.ids)]).abs()  # pyright: ignore[reportOptionalOperand]
            for completion, row in zip(group.completions, rows, strict=True)
        ]
        gap = float(torch.cat(gaps).mean())
        if not gap <= AGREEMENT[dtype]:
            kind = "with" if group.prompt.images else "without"
            raise EngineError(
                f"row {group.prompt.row.index}: under the same weights, {where} and the trainer differ by {gap:.3g} nats per token on a "
                f"prompt {kind} images (allowed: {AGREEMENT[dtype]:g} in {dtype}). Training would be silently wrong. Does this version of "
                "the engine support the model's family? Try vllm_model_impl='transformers', or use_vllm=False."
            )
        worst = max(worst, gap)
    return worst
