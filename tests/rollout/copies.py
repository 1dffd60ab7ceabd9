"""An engine that holds a copy of the policy and samples from it with transformers. It can be away, or slow, or lose its weights."""

from __future__ import annotations

import copy
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from boresight.errors import EngineGoneError, EngineRestartedError
from boresight.modules import unwrap
from boresight.rollout.hf import HFSampler
from boresight.rollout.synced import SyncReport
from boresight.sampling import SamplingSettings
from boresight.types import Group, ModelFacts, Prompt


class CopyEngine:
    """Args:
    policy: returns the model that is trained.
    name: the engine's name for messages.
    waits_s: how long a batch takes beside the time to sample it.
    """

    pushes = True

    def __init__(
        self,
        policy: Callable[[], Any],
        facts: ModelFacts,
        tokenizer: Any,
        *,
        name: str = "copy",
        dtype: str = "float32",
        waits_s: float = 0.0,
    ) -> None:
        self.policy, self.where, self.dtype, self.waits_s = policy, name, dtype, waits_s
        self.model = copy.deepcopy(unwrap(policy()))
        self.counts: Counter[str] = Counter()
        self.version = ""
        self.held = ""
        """The label of the weights that it holds."""
        self.fresh = False
        self.away = False
        self.syncs: list[int] = []
        """The steps whose weights it was sent."""
        self.in_flight: list[int] = []
        """Those of them that it was sent while it sampled."""
        self.sampled: list[list[int]] = []
        """The rows of each batch."""
        self.before_batch: Callable[[int], None] = lambda number: None
        """Called with the number of the batch (from 0), which it may let fail."""
        self._sampler = HFSampler(lambda: self.model, facts, tokenizer)
        self._numbers = itertools.count()

    def is_up(self) -> bool:
        return not self.away

    def check(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        pass

    def requests(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[int]:
        return [prompt.row.index for prompt in prompts]

    def completed(self, prompts: Sequence[Prompt], requests: Sequence[int], settings: SamplingSettings) -> list[Group]:
        assert list(requests) == [prompt.row.index for prompt in prompts]
        self._reach()
        assert self.fresh
        self.before_batch(next(self._numbers))
        self._reach()
        time.sleep(self.waits_s)
        groups = self._sampler.sample(prompts, settings)
        self._reach()
        if self.held != self.version:
            raise EngineRestartedError(f"{self.where} holds {self.held!r} instead of {self.version!r}.")
        self.sampled.append(list(requests))
        self.counts["completion_tokens"] += sum(group.num_completion_tokens for group in groups)
        return groups

    def sampled_by(self, place: int) -> str:
        return self.where

    def restart(self) -> None:
        """It is there again, with other weights."""
        self.held = ""
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.normal_()
        self.away = False  # at the end, since a policy may wait for it in another thread

    def sync(self, step: int, *, in_flight: bool = False) -> SyncReport | None:
        self._reach()
        if self.fresh and self.held == self.version:
            return None
        self.model.load_state_dict(unwrap(self.policy()).state_dict())
        self.syncs.append(step)
        self.in_flight += [step] if in_flight else []
        self.held = f"{self.where}/{step}/{len(self.syncs)}"
        self.adopt(self.held)
        return SyncReport(1, 1, 0.0)

    def adopt(self, version: str) -> None:
        self.version, self.fresh = version, True

    @property
    def is_fresh(self) -> bool:
        return self.fresh and self.held == self.version

    def outdate(self) -> None:
        self.fresh = False

    def rest(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _reach(self) -> None:
        if self.away:
            raise EngineGoneError(f"{self.where} is away.")
